"""Negatives: public values alone, spread over items, where the round's first weights place them."""

import json
from pathlib import Path

import pytest
import torch

from server.heldout import load_held_out
from server.negatives import CENTERS, NEGATIVES, public_negatives
from server.settings import ServerSettings
from shared.config import RunConfig
from shared.errors import RunError
from shared.model.multimodal import build_model
from tests.simulations.matching_runs import matching_run, write_matching_data


def _settings(folder: Path, run: RunConfig) -> ServerSettings:
    return ServerSettings(
        run=run,
        run_id="x",
        held_out=folder / "held-out",
        cache=folder / "cache",
        card=None,
        engine="local",
        num_sites=1,
        started="now",
    )


def _run(**matching: object) -> RunConfig:
    return RunConfig.model_validate(matching_run(private=False, matching=matching))


def test_public_values_lie_where_the_weights_place_them_around_their_mean(tmp_path: Path) -> None:
    settings = _settings(write_matching_data(tmp_path), _run(num_negatives=8))
    renew = public_negatives(settings, held_out=load_held_out(settings))
    model = build_model(settings.run).eval()
    assert renew is not None
    given = renew(model)
    assert {name: tuple(value.shape) for name, value in given.items()} == {NEGATIVES: (2, 8, 4), CENTERS: (2, 4)}
    assert torch.allclose(given[NEGATIVES].norm(dim=2), torch.ones(2, 8), atol=1e-5)
    with torch.no_grad():
        model.get_parameter("head.left.linear.bias").add_(1.0)
    moved = renew(model)
    assert torch.allclose(moved[CENTERS][0], given[CENTERS][0] + 1, atol=1e-5)
    assert torch.allclose(moved[CENTERS][1], given[CENTERS][1])
    # what all values share does not matter
    assert torch.allclose(moved[NEGATIVES], given[NEGATIVES], atol=1e-4)


def test_items_take_turns(tmp_path: Path) -> None:
    """Four rows of public/ are about each of its items: eight of them are two of each of four items, or one of eight."""
    settings = _settings(write_matching_data(tmp_path, public_items=8, rows_per_item=4), _run(num_negatives=8))
    renew = public_negatives(settings, held_out=load_held_out(settings))
    assert renew is not None
    given = renew(build_model(settings.run).eval())
    apart = torch.cdist(given[NEGATIVES][0], given[NEGATIVES][0]) + torch.eye(8)
    assert float(apart.min()) > 1e-3


def test_a_run_without_public_negatives_is_given_none(tmp_path: Path) -> None:
    settings = _settings(write_matching_data(tmp_path), _run(negatives="in-batch"))
    assert public_negatives(settings, held_out=load_held_out(settings)) is None


def test_too_few_or_no_public_values_are_refused(tmp_path: Path) -> None:
    folder = write_matching_data(tmp_path)
    settings = _settings(folder, _run(num_negatives=5000))
    held_out = load_held_out(settings)
    with pytest.raises(
        RunError, match=r"rows with left; allowed: at least model.matching.num_negatives, which is 5000"
    ):
        public_negatives(settings, held_out=held_out)
    (folder / "public").rename(folder / "elsewhere")
    with pytest.raises(RunError, match=r"needs one beside held-out/"):
        public_negatives(settings, held_out=held_out)


def test_an_item_that_is_public_and_held_out_is_refused(tmp_path: Path) -> None:
    folder = write_matching_data(tmp_path)
    settings = _settings(folder, _run(num_negatives=4))
    manifest = folder / "public" / "metadata.jsonl"
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    rows[0]["subject_id"] = "test-0"
    manifest.write_text("\n".join(json.dumps(row) for row in rows))
    with pytest.raises(RunError, match=r"1 items are held out as well, 'test-0' among them"):
        public_negatives(settings, held_out=load_held_out(settings))
