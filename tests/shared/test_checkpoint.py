"""Folders that a run names: each gets the digest of what lies in it, where the part has a place for one."""

from pathlib import Path

import pytest
from torch import nn

from shared.config import RunConfig
from shared.errors import ModelError
from shared.model.encoders.checkpoint import named_folders, with_digests
from shared.model.multimodal import build_model
from shared.model.registry import EncoderPart, EncoderPlace, encoder_registry
from shared.preprocess.features import FeaturesOptions, FeaturesPreprocessor
from shared.preprocess.pretrained import local_checkpoint
from shared.settings import Option, Settings
from tests.shared.example_runs import example_run


class _PathOptions(Settings):
    """A folder, and nothing that could say what must lie in it."""

    path: str = ""


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A folder in which something lies that counts as weights."""
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "model.bin").write_bytes(b"numbers")
    return tmp_path / "weights"


@pytest.fixture
def _of_a_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """An encoder of a user's own file, that names a folder and takes no digest."""
    monkeypatch.setattr(encoder_registry, "_parts", dict(encoder_registry._parts))

    @encoder_registry.register("of-a-user", options=_PathOptions, takes="features")
    def of_a_user(place: EncoderPlace, options: _PathOptions) -> EncoderPart:
        vectors = FeaturesPreprocessor(place.preprocess(FeaturesOptions), width=place.schema.width or 1)
        return EncoderPart(preprocessor=vectors, module=lambda: nn.Linear(vectors.shape[0], place.width))


def options_of(run: RunConfig, modality: str) -> dict[str, Option]:
    return dict(run.model.encoders[modality].options)


@pytest.mark.usefixtures("_of_a_user")
def test_a_part_that_takes_no_digest_is_given_none(weights: Path) -> None:
    """It would be refused as an option that does not exist, and the folder is its owner's to permit all the same."""
    run = example_run({"vector": {"name": "of-a-user", "options": {"path": str(weights)}}})

    assert with_digests(run) is run
    assert named_folders(run) == {"encoder of vector (path)": str(weights)}
    build_model(with_digests(run))


@pytest.mark.usefixtures("_of_a_user")
def test_beside_a_part_that_takes_none_another_gets_its_digest(weights: Path) -> None:
    tables = {
        "vector": {"name": "of-a-user", "options": {"path": str(weights)}},
        "words": {"name": "pretrained-text", "options": {"path": str(weights)}},
    }

    run = with_digests(example_run(tables))

    assert options_of(run, "vector") == {"path": str(weights)}
    assert options_of(run, "words") == {"path": str(weights), "weights_digest": local_checkpoint(weights).digest}


def test_each_folder_has_a_digest_of_its_own_name_and_one_that_was_given_stays(weights: Path) -> None:
    options = {"path": str(weights), "network_path": str(weights), "weights_digest": "ab"}
    run = with_digests(example_run({"photo": {"name": "caption", "options": options}}))

    assert options_of(run, "photo") == {**options, "network_digest": local_checkpoint(weights).digest}


@pytest.mark.parametrize(
    ("image", "added"), [("pretrained-image", {"image_weights_digest"}), ("cnn", set()), (None, set())]
)
def test_the_pictures_of_a_clip_get_a_digest_where_their_encoder_takes_one(
    image: str | None, added: set[str], weights: Path
) -> None:
    options: dict[str, object] = {"image_path": str(weights), **({"image": image} if image else {})}
    run = with_digests(example_run({"clip": {"name": "video", "options": options}}))

    assert options_of(run, "clip").keys() - options.keys() == added


def test_a_folder_without_weights_is_told_where_a_digest_is_wanted(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no weights there"):
        with_digests(example_run({"words": {"name": "pretrained-text", "options": {"path": str(tmp_path)}}}))
