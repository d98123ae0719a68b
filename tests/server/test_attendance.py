"""Attendance: a run with too few sites asks nobody, says who is missing, and goes on when they are back."""

from pathlib import Path

import pytest

from server import attendance
from server.attendance import wait_for_enough
from server.checkpoint import load_progress
from shared.errors import RunError
from tests.server import conftest
from tests.server.conftest import CallTransport, small_run

SITES = {"north": ("left", "right"), "south": ("left", "right"), "west": ("left",)}
GONE = frozenset({"south", "west"})


class Looks:
    """Who is on line, look by look; the last answer stays."""

    def __init__(self, *answers: set[str]) -> None:
        self.answers = list(answers)

    def online(self) -> frozenset[str]:
        return frozenset(self.answers.pop(0) if len(self.answers) > 1 else self.answers[0])


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attendance, "LOOK_S", 0.001)


def waited(looks: Looks, *, needed: int = 2, timeout_s: float = 30.0) -> list[str]:
    said: list[str] = []
    wait_for_enough(
        looks, sites=lambda: tuple(SITES), needed=needed, round_number=7, timeout_s=timeout_s, say=said.append
    )
    return said


def test_with_enough_sites_nothing_is_said() -> None:
    assert waited(Looks({"north", "south"})) == []
    # more than there are is asked of nobody
    assert waited(Looks(set(SITES)), needed=99) == []


def test_who_is_missing_is_said_whenever_it_changes_and_so_is_the_end() -> None:
    said = waited(Looks(set(), set(), {"west"}, {"west"}, {"west", "north"}))
    assert said == [
        "paused before round 7: 0 of 3 sites are on line, 2 are needed; waiting for north, south, west",
        "paused before round 7: 1 of 3 sites are on line, 2 are needed; waiting for north, south",
        "round 7: 2 of 3 sites are on line; the run goes on",
    ]


def test_a_stranger_who_is_on_line_does_not_count() -> None:
    with pytest.raises(RunError, match="1 of 3 sites were on line"):
        waited(Looks({"west", "stranger"}), timeout_s=0.01)


def test_a_paused_run_asks_nobody_and_ends_with_the_model_of_one_that_was_not_paused(tmp_path: Path) -> None:
    run = small_run(rounds=4, min_sites=2)
    whole = conftest.train(run, tmp_path / "whole", transport=CallTransport(run, SITES))
    paused = CallTransport(run, SITES, away=[frozenset(), GONE, GONE, frozenset({"south"})])
    progress = conftest.train(run, tmp_path / "paused", transport=paused)
    assert [number for site, number, _ in paused.asked if site == "north"] == [1, 2, 3, 4]
    assert all(bool((progress.weights[name] == value).all()) for name, value in whole.weights.items())


def test_a_site_that_comes_late_ends_a_pause_and_is_asked_in_the_round_that_waited(tmp_path: Path) -> None:
    run = small_run(rounds=4, min_sites=2)
    # round 1 has two; before round 2 south goes, and west comes at the third look of the pause
    transport = CallTransport(run, SITES, away=[frozenset(), *[frozenset({"south"})] * 3], late={"west": 4})
    conftest.train(run, tmp_path, transport=transport)
    assert transport.looks == 6
    assert [number for site, number, _ in transport.asked if site == "west"] == [2, 3, 4]
    assert [number for site, number, _ in transport.asked if site == "north"] == [1, 2, 3, 4]


def test_a_pause_that_lasts_too_long_ends_the_run_and_keeps_what_was_trained(tmp_path: Path) -> None:
    run = small_run(rounds=4, min_sites=2, pause_s=0.01)
    transport = CallTransport(run, SITES, away=[frozenset(), *[GONE] * 1000])
    with pytest.raises(RunError, match="start the run again once they are back"):
        conftest.train(run, tmp_path, transport=transport)
    assert {number for _, number, _ in transport.asked} == {1}
    kept = load_progress(folder=tmp_path, run_digest=run.digest)
    assert kept is not None
    assert kept.round_number == 1
    transport.away = []
    assert conftest.train(run, tmp_path, transport=transport, attempt=1).round_number == 4
