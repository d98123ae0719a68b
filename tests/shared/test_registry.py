"""Registries: a name that is not there, an option that is not there, and a part of a user's own."""

from pathlib import Path

import pytest
import torch
from pydantic import Field

import shared.model.registry as registry_module
from shared.config import PartSettings
from shared.errors import ModelError
from shared.model.encoders import preprocessor
from shared.model.multimodal import build_model
from shared.model.registry import Registry, encoder_registry, load_extensions
from shared.settings import Settings
from tests.shared.example_runs import example_run, finished


class SizeOptions(Settings):
    size: int = Field(default=3, ge=1, description="how many")


def numbers() -> Registry[int, list[int]]:
    registry: Registry[int, list[int]] = Registry("row")

    @registry.register("repeat", options=SizeOptions)
    def repeat(place: int, options: SizeOptions) -> list[int]:
        return [place] * options.size

    return registry


def test_a_part_is_built_from_its_place_and_options() -> None:
    assert numbers().build(PartSettings(name="repeat", options={"size": 2}), place=7) == [7, 7]


def test_an_unknown_name_lists_the_known_ones_and_the_nearest() -> None:
    with pytest.raises(ModelError, match=r"row 'repaet' is not known; allowed: repeat; did you mean 'repeat'\?"):
        numbers().get("repaet")


@pytest.mark.parametrize("options", [{"sise": 2}, {"size": 0}, {"size": "many"}])
def test_a_wrong_option_lists_the_allowed_ones_with_their_defaults(options: dict[str, int | str]) -> None:
    with pytest.raises(ModelError, match=r"row 'repeat'(.|\n)*size = 3  \(how many\)"):
        numbers().build(PartSettings(name="repeat", options=dict(options)), place=7)


def test_a_name_can_be_taken_only_once() -> None:
    with pytest.raises(ModelError, match="registered already"):
        numbers().register("repeat", options=SizeOptions)


def test_an_encoder_of_another_kind_is_refused_with_those_that_fit() -> None:
    with pytest.raises(ModelError, match=r"'cnn' for a modality of kind text takes image; allowed: bag-of-ngrams, "):
        build_model(example_run({"words": {"name": "cnn"}}))


def test_every_kind_has_the_encoders_of_the_issue() -> None:
    assert set(encoder_registry.names(takes="image")) >= {"cnn", "frozen-efficientnet-lite0"}
    assert set(encoder_registry.names(takes="text")) >= {"transformer", "frozen-transformers", "minilm"}
    assert set(encoder_registry.names(takes="audio")) >= {"mel-cnn", "mfcc-lstm"}
    assert set(encoder_registry.names(takes="signal")) >= {"conv1d", "statistics"}
    assert set(encoder_registry.names(takes="features")) >= {"linear"}


def test_the_example_in_the_documentation_is_a_part_of_a_users_own(tmp_path: Path) -> None:
    lines = (registry_module.__doc__ or "").splitlines()
    example = "\n".join(line[4:] for line in lines if line.startswith("    ") or not line)
    own = tmp_path / "brightness.py"
    own.write_text(example[example.index("from pydantic") :])

    load_extensions(own)
    load_extensions(own)

    run = example_run({"photo": {"name": "brightness", "options": {"squares": 2}, "preprocess": {"size": 8}}})
    values = finished("photo", shape=preprocessor(run, "photo").shape, rows=2)
    outputs = build_model(run)({"photo": values}, torch.ones(2, 1, dtype=torch.bool))
    assert outputs.shape == (2, 3)
    with pytest.raises(ModelError, match="squares = 4"):
        build_model(example_run({"photo": {"name": "brightness", "options": {"squares": 0}}}))


@pytest.mark.parametrize(("content", "said"), [(None, "no Python file there"), ("1/0", "ZeroDivisionError")])
def test_a_file_of_parts_that_fails_is_named(tmp_path: Path, content: str | None, said: str) -> None:
    own = tmp_path / "own.py"
    if content is not None:
        own.write_text(content)
    with pytest.raises(ModelError, match=rf"own\.py: .*{said}"):
        load_extensions(own)
