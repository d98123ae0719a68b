"""Preflight of cohorts: passes for what there is, and fails when anything between draw and update is broken."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from unittest import mock

import pytest
import tomli_w
from torch import Tensor

import client.preflight
import simulations.preflight
from client import cohort_training
from client.gradient import stacked
from client.noisy_optimizer import StackedNoisyOptimizer
from client.private_training import TrainedRound
from server.settings import read_preflight
from shared.config import PrivacySettings, RunConfig
from shared.errors import ModelError
from shared.preflight import PreflightCheck
from shared.privacy.mechanism import clip_factors
from simulations.preflight_cohort import NAME, cohort_checks
from simulations.scenario import read_scenario
from simulations.simulate import _check_first, prepare_run
from tests.shared.example_runs import example_run, small
from tests.tiny import tiny_run, write_data_set

RECORD: Mapping[str, object] = {
    "unit": "record", "trust": "nobody", "epsilon": 8.0, "delta": 1e-3, "clip_norm": 0.3,
}  # fmt: skip


def run_of(privacy: Mapping[str, object] | None = RECORD, **training: object) -> RunConfig:
    table = example_run({"photo": small("cnn"), "vector": small("linear")}).model_dump()
    asked = "none" if privacy is None else PrivacySettings.model_validate(privacy).model_dump()
    model = {**table["model"], "modality_dropout": 0.3}
    return RunConfig.model_validate(
        {**table, "privacy": asked, "model": model, "training": {**table["training"], **training}}
    )


def found(run: RunConfig) -> PreflightCheck:
    (check,) = cohort_checks(run)
    assert check.name == NAME
    return check


@pytest.mark.parametrize(
    ("privacy", "training"),
    [
        (RECORD, {}),
        ({**RECORD, "clipping": "adaptive"}, {"gradient_engine": "bookkeeping"}),
        ({**RECORD, "unit": "subject", "clipping": "per-layer"}, {"records_per_subject": 3}),
        ({**RECORD, "unit": "site", "trust": "server"}, {}),
        (None, {}),
    ],
)
def test_sites_trained_together_get_what_each_gets_alone(
    privacy: Mapping[str, object] | None, training: dict[str, object]
) -> None:
    check = found(run_of(privacy, **training))

    assert check.passed, check.detail
    assert "updates of 3 sites differ" in check.detail


def test_sites_that_are_trained_one_by_one_need_no_comparison() -> None:
    check = found(run_of(gradient_engine="functional"))
    assert check.passed
    assert "one by one: gradient_engine 'functional' is asked for" in check.detail

    with mock.patch.object(cohort_training, "train_cohort", side_effect=ModelError("a weight from outside")):
        check = found(run_of())
    assert check.passed
    assert "one by one: a weight from outside" in check.detail


def test_only_the_checks_that_are_named_are_made() -> None:
    assert cohort_checks(run_of(), only={"bounded"}) == ()
    assert len(cohort_checks(run_of(), only={NAME})) == 1


def test_a_cohort_that_breaks_down_has_failed() -> None:
    with mock.patch.object(cohort_training, "train_cohort", side_effect=RuntimeError("broken")):
        check = found(run_of())

    assert not check.passed
    assert "could not be carried out: RuntimeError: broken" in check.detail


Broken = contextlib.AbstractContextManager[object]


def of_factor() -> Broken:
    def longer(norms: Tensor, *, clip_norm: float | Tensor) -> Tensor:
        return 1.02 * clip_factors(norms, clip_norm=clip_norm)

    return mock.patch.object(stacked, "clip_factors", longer)


def of_noise() -> Broken:
    original = StackedNoisyOptimizer.add_noise

    def only_the_first(self: StackedNoisyOptimizer) -> None:
        self.active = 1
        original(self)

    return mock.patch.object(StackedNoisyOptimizer, "add_noise", only_the_first)


def of_denominator() -> Broken:
    def by_the_first(self: StackedNoisyOptimizer) -> None:
        self.params[0].grad /= self.protections[0].denominator

    return mock.patch.object(StackedNoisyOptimizer, "scale_grad", by_the_first)


def of_order() -> Broken:
    original = cohort_training.train_cohort

    def turned(*members: object, **how: object) -> Sequence[TrainedRound]:
        return original(*members, **how)[::-1]  # type: ignore[arg-type]

    return mock.patch.object(cohort_training, "train_cohort", turned)


@pytest.mark.parametrize("broken", [of_factor, of_noise, of_denominator, of_order])
def test_a_broken_part_of_a_cohort_is_noticed(broken: Callable[[], Broken]) -> None:
    with broken():
        check = found(run_of())

    assert not check.passed, check.detail
    assert "differ from those of each site alone" in check.detail


def test_a_wrong_count_is_noticed() -> None:
    original = stacked.Stacked.clipped_sums

    def miscounted(self: stacked.Stacked, *values: object, **how: object) -> stacked.StackedSum:
        right = original(self, *values, **how)  # type: ignore[arg-type]
        return stacked.StackedSum(right.sums, right.unclipped + 1)

    with mock.patch.object(stacked.Stacked, "clipped_sums", miscounted):
        check = found(run_of({**RECORD, "clipping": "adaptive"}))

    assert not check.passed
    assert "were within the norm; alone it says" in check.detail


def test_simulate_makes_the_check_before_the_first_round_in_cohorts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once: a run that was begun one by one and goes on in cohorts makes this check alone."""
    data, file, folder = write_data_set(tmp_path / "data", rows=4), tmp_path / "tiny.toml", tmp_path / "run"
    table = {"about": "", "source": {"path": str(data)}, "run": tiny_run(private=True)}
    file.write_text(tomli_w.dumps(table), encoding="utf-8")
    scenario, data_set = read_scenario(file, changes=[], home=tmp_path)
    settings = prepare_run(scenario, data_set=data_set, folder=folder, engine="local")
    asked: list[str] = []

    def passed(name: str) -> Callable[..., tuple[PreflightCheck, ...]]:
        def checks(*_: object, **__: object) -> tuple[PreflightCheck, ...]:
            asked.append(name)
            return (PreflightCheck(name=name, passed=True, detail=""),)

        return checks

    monkeypatch.setattr(client.preflight, "preflight", passed("site"))
    monkeypatch.setattr(simulations.preflight, "server_checks", passed("server"))
    monkeypatch.setattr("simulations.preflight_cohort.cohort_checks", passed(NAME))
    for engine in ("local", "local", "cohort", "cohort", "local"):
        _check_first(settings, engine=engine, folder=folder)

    assert asked == ["site", "server", NAME]
    assert [check.name for check in read_preflight(folder)] == asked
    asked.clear()
    _check_first(settings, engine="cohort", folder=tmp_path)
    assert asked == ["site", "server", NAME]
