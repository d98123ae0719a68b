"""Planted faults: each is noticed by the check that is there for it, each check can fail, and nothing stays broken."""

import pytest

import client.preflight
from client import private_training
from client.preflight.gradients import bounded
from shared.config import PrivacySettings, RunConfig
from shared.errors import ConfigError, ModelError
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


def test_a_run_with_a_planted_fault_is_refused_and_passes_once_the_fault_is_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(client.preflight, "_LOCAL", {"bounded": bounded})
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
