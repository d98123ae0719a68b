"""Planted faults: each is noticed by the check that is there for it, each check can fail, and nothing stays broken."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import client.preflight
from client import cohort_training, private_training
from client.bounded import bounded
from client.cohort_training import Member
from client.preflight import gradients
from client.preflight.rehearsal import flat, rehearse
from client.private_training import TrainedRound
from shared.config import PrivacySettings, RunConfig
from shared.errors import ConfigError, ModelError
from shared.privacy.noise import reproducible_source
from simulations.planted_faults import FAULTS, planted
from simulations.preflight import preflight_run
from tests.shared.example_runs import example_run, small

RECORD = {"unit": "record", "trust": "nobody", "epsilon": 8.0, "delta": 1e-3, "clip_norm": 0.3}
SITE = {**RECORD, "unit": "site", "trust": "server"}
OF_SITES = ("update-clipped", "server-sampling")
"""checks of runs that protect whole sites"""


def run_of(*, site: bool = False) -> RunConfig:
    """Two modalities, layers that every engine knows; records protected at the sites, or sites by the server."""
    run = example_run({"photo": small("cnn"), "vector": small("linear")})
    federation = run.federation.model_copy(update={"site_sample_rate": 0.5 if site else None})
    privacy = PrivacySettings.model_validate(SITE if site else RECORD)
    return RunConfig.model_validate({**run.model_dump(), "privacy": privacy, "federation": federation.model_dump()})


@pytest.mark.parametrize("name", FAULTS)
def test_every_planted_fault_is_caught_by_its_check(name: str) -> None:
    with planted(name) as fault:
        (check,) = preflight_run(run_of(site=fault.caught_by in OF_SITES), only={fault.caught_by})

    assert not check.passed, check.detail
    assert "could not be carried out" not in check.detail


@pytest.mark.parametrize(
    ("name", "check"),
    [
        ("unclipped-site-update", "server-clip"),
        ("noise-divided-by-four", "server-noise-scale"),
        ("noise-from-a-seed", "server-noise-fresh"),
    ],
)
def test_faults_of_the_server_are_caught_by_its_checks(name: str, check: str) -> None:
    with planted(name):
        (found,) = preflight_run(run_of(site=True), only={check})

    assert not found.passed, found.detail


def test_without_a_fault_every_check_passes_and_each_has_a_fault_that_it_is_there_for() -> None:
    checks = {check.name: check for site in (False, True) for check in preflight_run(run_of(site=site))}

    assert {name: check.detail for name, check in checks.items() if not check.passed} == {}
    # the server's other checks have their faults in the test above
    assert {fault.caught_by for fault in FAULTS.values()} == set(checks) - {
        "server-clip",
        "server-noise-scale",
        "server-noise-fresh",
    }


REACHING = (
    "batch-norm",
    "in-batch-contrastive-loss",
    "forgotten-clip",
    "subject-rows-unbounded",
    "noise-divided-by-four",
    "data-dependent-denominator",
    "shuffled-batches",
    "weighted-sampler",
    "empty-batch-skipped",
    "absent-taken-for-present",
    "cohort-shares-noise",
    "cohort-counts-padding",
    "cohort-mixes-up-sites",
)


@pytest.mark.parametrize("name", REACHING)
def test_faults_of_a_site_reach_sites_that_are_trained_in_one_pass(name: str) -> None:
    """The same draws of three sites give other updates; where nobody is drawn, no noise at all with the fault of that."""
    unit = "subject" if name == "subject-rows-unbounded" else "record"
    never = name == "empty-batch-skipped"
    before = updates(unit=unit, never=never)
    with planted(name):
        broken = updates(unit=unit, never=never)

    changed = [not torch.equal(first, second) for first, second in zip(before, broken, strict=True)]
    assert any(changed)
    assert all(first.any() for first in before)
    assert not never or not any(second.any() for second in broken)
    assert all(map(torch.equal, before, updates(unit=unit, never=never)))


def test_with_an_engine_of_ones_own_planted_no_cohort_goes_round_it() -> None:
    for name in ("ghost-clipping-with-the-ordinary-loss", "tied-weights"):
        with planted(name), rehearse(run_of()) as rehearsal:
            training = rehearsal.run.training
            why = cohort_training.why_apart(rehearsal.model, names=rehearsal.names, training=training, plan=None)
        assert why is not None


def test_updates_clipped_together_are_not_with_the_fault_of_that() -> None:
    trained = [TrainedRound({"weight": torch.full((3,), 5.0)}, None) for _ in range(2)]
    central = PrivacySettings.model_validate(SITE)
    with planted("unclipped-site-update"):
        longest = max(float(each.update["weight"].norm()) for each in bounded(trained, central=central, clip_norm=0.1))

    assert longest > 5
    assert float(bounded(trained, central=central, clip_norm=0.1)[0].update["weight"].norm()) == pytest.approx(0.1)


def updates(*, unit: str, never: bool) -> list[Tensor]:
    """What a cohort of three sites gets from fixed draws; `never`: of whom nobody is drawn."""
    run = run_of()
    privacy = PrivacySettings.model_validate({**RECORD, "unit": unit})
    run = RunConfig.model_validate({**run.model_dump(), "privacy": privacy.model_dump()})
    with rehearse(run) as rehearsal:
        members = []
        for site, rows in enumerate(([0, 4, 1, 5], [2, 3, 6, 7, 0], [1, 4])):
            plan = replace(
                rehearsal.plan(sample_rate=1e-9 if never else 0.6, steps=2),
                records_per_unit=2 if unit == "subject" else 1,
            )
            sources = [reproducible_source(site, purpose=purpose) for purpose in ("noise", "sampling")]
            members.append(Member(rehearsal.samples.subset(torch.tensor(rows)), plan, 10, *sources))
        trained = cohort_training.train_cohort(
            rehearsal.model,
            members,
            names=rehearsal.names,
            training=rehearsal.run.training.model_copy(update={"learning_rate": 1.0}),
            round_number=1,
            rounds=1,
            modality_dropout=0.0,
        )
    return [flat(each.update) for each in trained]


def test_a_run_with_a_planted_fault_is_refused_and_passes_once_the_fault_is_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(client.preflight, "_LOCAL", {"bounded": gradients.bounded})
    with planted("forgotten-clip"), pytest.raises(ModelError, match="bounded: one unit moved"):
        client.preflight.assert_sound(run_of())

    client.preflight.assert_sound(run_of())


def test_a_fault_leaves_the_code_as_it_was() -> None:
    before = private_training.train_round
    with planted("data-dependent-denominator"):
        assert private_training.train_round is not before

    assert private_training.train_round is before


def test_off_guard_a_run_with_a_fault_may_be_measured() -> None:
    with planted("forgotten-clip", is_guarded=False):
        client.preflight.assert_sound(run_of())
        (check,) = client.preflight.preflight(run_of(), only={"bounded"})

    assert not check.passed


def test_an_unknown_fault_is_named_with_those_that_there_are() -> None:
    with pytest.raises(ConfigError, match=r"gremlins: no such fault; allowed: batch-norm, "), planted("gremlins"):
        pass


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_the_whole_preflight_of_a_faulty_run_names_the_check(name: str) -> None:
    with planted(name) as fault:
        checks = preflight_run(run_of(site=fault.caught_by in OF_SITES))

    assert fault.caught_by in {check.name for check in checks if not check.passed}
