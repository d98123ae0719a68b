"""A whole run with an adversary: it travels and trains like any other part, privately, by both engines alike."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from client.preflight import preflight
from shared.dataset import load_samples
from shared.model.costs import ModalityAdversary
from shared.model.multimodal import build_model
from simulations.scenario import read_scenario
from simulations.simulate import prepare_run, run_simulation
from tests.simulations.runs import model_of, record_of, scenario_file, skip_preflight
from tests.tiny import PRIVACY, tiny_config

OURS = [f"costs.adversary.{name}" for name in ("hidden.weight", "hidden.bias", "guess.weight", "guess.bias")]
OWNERS = "[owners]\nreproducible_noise = true"
MODEL = {
    "embedding_width": 4,
    "encoders": {"left": {"name": "linear"}, "right": {"name": "linear"}},
    "fusion": {"name": "mean"},
    "adversary": {"weight": 0.05, "hidden": 8},
}
CHANGES: dict[str, object] = {
    "model": MODEL,
    "privacy": {**PRIVACY, "epsilon": 200.0},
    "federation": {"rounds": 6, "select": "last"},
}


def run_of(folder: Path, engine: str) -> dict[str, Tensor]:
    """The weights of a run; noise is that of its seed, so that two engines add the same."""
    scenario, data_set = read_scenario(
        scenario_file(folder, private=True, owners=OWNERS, changes=CHANGES), home=folder / "home"
    )
    prepare_run(scenario, data_set=data_set, folder=folder / engine, engine=engine)
    run_simulation(folder / engine)
    return model_of(folder / engine)


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of the same run by both engines."""
    folder = tmp_path_factory.mktemp("adversary")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MOTET_HOME", str(folder / "home"))
        skip_preflight(patch)
        for engine in ("local", "cohort"):
            run_of(folder, engine)
    return {engine: folder / engine for engine in ("local", "cohort")}


def test_the_cohort_trains_an_adversary_as_one_site_after_the_other_does(ended: dict[str, Path]) -> None:
    one, other = (model_of(folder) for folder in ended.values())
    assert set(OURS) <= one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=1e-4, atol=1e-5)


def test_every_site_sends_the_adversary_that_of_one_modality_too(ended: dict[str, Path]) -> None:
    record = record_of(ended["cohort"])
    model = build_model(record.run)
    numbers = sum(model.get_parameter(name).numel() for name in OURS)
    left_alone = sum(
        value.numel() for name, value in model.named_parameters() if not name.startswith("encoders.right.")
    )
    shares = {share.site: share.sent for share in record.shares}
    assert shares == {"north": record.num_parameters, "south": record.num_parameters, "west": left_alone}
    assert numbers == 4 * 8 + 8 + 8 * 2 + 2
    assert all(plan.epsilon <= 200 for plan in record.privacy)
    assert {plan.site for plan in record.privacy} == {"north", "south", "west"}


def test_a_run_with_an_adversary_passes_the_checks_of_its_gradients() -> None:
    run = tiny_config(private=True, model=MODEL)
    checks = preflight(run, only={"own-gradient", "bounded", "independent", "absent-modality"})
    assert [check.passed for check in checks] == [True] * 4, checks


def test_the_adversary_has_learned_from_sites_to_tell_modalities_on_rows_it_never_saw(ended: dict[str, Path]) -> None:
    """It starts at a coin's ln 2 or worse; the encoders work against it too little to keep it there."""
    run = record_of(ended["cohort"]).run
    held_out = load_samples(ended["cohort"].parent / "data" / "held-out" / "test", run=run, cache=ended["cohort"] / "c")
    trained = build_model(run)
    first = _cost(trained, inputs=held_out.inputs, present=held_out.present)
    with torch.no_grad():
        for name, value in model_of(ended["cohort"]).items():
            trained.get_parameter(name).copy_(value)
    last = _cost(trained, inputs=held_out.inputs, present=held_out.present)
    assert last < min(first, math.log(2)) - 0.1


def _cost(model: torch.nn.Module, *, inputs: dict[str, Tensor], present: Tensor) -> float:
    adversary = model.get_submodule("costs.adversary")
    assert isinstance(adversary, ModalityAdversary)
    with torch.no_grad():
        return float(adversary(model.embeddings(inputs, present), present).mean())  # type: ignore[operator]
