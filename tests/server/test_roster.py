"""Roster: a site that comes late is in the plan from its first round on, and a run that is resumed keeps what it told."""

import json
from pathlib import Path

import pytest

from server.checkpoint import load_progress
from server.history import METRICS_FILE, read_rounds
from server.roster import Roster, first_rounds, open_roster
from server.settings import write_atomically
from shared.config import RunConfig
from shared.errors import RunError
from shared.messages import PROTOCOL_VERSION, Hello, TrainRequest
from shared.model.multimodal import build_model
from tests.server.conftest import RECORD, SITE, CallTransport, protected_run, small_run, train

SITES = {"north": ("left", "right"), "south": ("left", "right"), "west": ("left",)}
NOBODY: list[str] = []


def hello(site: str, **said: object) -> Hello:
    values = {"protocol_version": PROTOCOL_VERSION, "site": site, "modalities": ("left",), "nominal_size": 30, **said}
    return Hello.model_validate(values)


def opened(run: RunConfig, folder: Path, *sites: str, next_round: int = 1, said: list[str] | None = None) -> Roster:
    told = [] if said is None else said
    return open_roster(
        [hello(name) for name in sites],
        run=run,
        model=build_model(run),
        folder=folder,
        next_round=next_round,
        say=told.append,
    )


class Heard(CallTransport):
    """Notes how often each site is told that it will be asked."""

    told: dict[str, set[int]]

    def honest(self, site: str, request: TrainRequest) -> object:  # type: ignore[override]
        self.told.setdefault(site, set()).add(request.header.planned_rounds)
        return super().honest(site, request)


def heard(run: RunConfig, **given: object) -> Heard:
    made = Heard(run, SITES, **given)  # type: ignore[arg-type]
    made.told = {}
    return made


def test_a_site_that_comes_late_is_asked_from_the_next_round_on_and_told_the_rounds_that_are_left(
    tmp_path: Path,
) -> None:
    transport = heard(small_run(), late={"west": 3})
    progress = train(transport.run, tmp_path, transport=transport)
    assert [number for site, number, _ in transport.asked if site == "west"] == [3, 4]
    assert transport.told == {"north": {4}, "south": {4}, "west": {2}}
    assert first_rounds(tmp_path) == {"north": 1, "south": 1, "west": 3}
    # rounds before have no line of it, in memory as on disk
    for rounds in (progress.history, read_rounds(tmp_path / METRICS_FILE)):
        assert ["west" in {line.site for line in each.sites} for each in rounds] == [False, False, True, True]


def test_a_site_that_comes_in_the_last_moment_is_in_the_last_round_and_after_that_in_none(tmp_path: Path) -> None:
    transport = heard(small_run(), late={"west": 4})
    train(transport.run, tmp_path, transport=transport)
    assert [number for site, number, _ in transport.asked if site == "west"] == [4]
    after, said = opened(small_run(), tmp_path, *SITES, next_round=5), list[str]()
    after.take_in([hello("east")], next_round=5, say=said.append)
    assert (after.plan.site_names, said) == (("north", "south", "west"), [])


@pytest.mark.parametrize("stop_after", [1, 2, 3])
def test_a_run_that_is_resumed_tells_each_site_what_it_was_told(tmp_path: Path, stop_after: int) -> None:
    """Where two of three are asked in a round, other sites at resumption made another schedule of all of them."""
    run = small_run(rounds=9, sites_per_round=2)
    first = heard(run, late={"west": 2})
    with pytest.raises(KeyboardInterrupt):
        train(run, tmp_path, transport=first, stop_after=stop_after)
    again = heard(run, late={"south": 10**6})
    train(run, tmp_path, transport=again, attempt=1)
    for site in SITES:
        told, asked = first.told.get(site, set()) | again.told.get(site, set()), [*first.asked, *again.asked]
        assert len(told) <= 1
        assert sum(name == site for name, _, _ in asked) <= max(told, default=0)


def test_the_plan_is_the_same_after_any_resumption_whoever_is_there(tmp_path: Path) -> None:
    run = small_run(rounds=12, sites_per_round=2, min_sites=1)
    began = opened(run, tmp_path, "a", "b", "c")
    began.take_in([hello("e"), hello("d")], next_round=4, say=NOBODY.append)
    began.take_in([hello("f")], next_round=7, say=NOBODY.append)
    assert list(began.plan.joined.items()) == [("d", 4), ("e", 4), ("f", 7)]
    for present in (("a",), tuple("abcdef"), ("f", "e")):
        again = opened(run, tmp_path, *present, next_round=9)
        assert (again.plan.rounds, again.plan.planned) == (began.plan.rounds, began.plan.planned)
        assert again.plan.joined == began.plan.joined
        assert again.plan.exchanges.keys() == set("abcdef")


def test_a_site_that_is_new_at_a_resumption_comes_late(tmp_path: Path) -> None:
    run, said = small_run(rounds=10), list[str]()
    opened(run, tmp_path, "a", "b")
    again = opened(run, tmp_path, "a", "b", "c", next_round=4, said=said)
    assert again.plan.planned == {"a": 10, "b": 10, "c": 7}
    assert said == ["c came on line: it takes part from round 4 on, 7 times"]
    assert opened(run, tmp_path, "a", next_round=6).plan.planned == {"a": 10, "b": 10, "c": 7}


def test_what_a_site_says_when_it_is_back_counts_and_its_number_of_rounds_stays(tmp_path: Path) -> None:
    run = small_run()
    began = opened(run, tmp_path, "a", "b")
    assert began.plan.exchanges["b"].updated == began.plan.exchanges["a"].updated
    began.take_in([hello("b", modalities=["right"])], next_round=3, say=NOBODY.append)
    assert began.plan.exchanges["b"].updated != began.plan.exchanges["a"].updated
    assert began.plan.planned == {"a": 4, "b": 4}
    assert began.plan.joined == {}
    # who says that nothing can be trained there any more is not believed to have said nothing before
    began.take_in([hello("b", frozen=["*"])], next_round=3, say=NOBODY.append)
    assert began.plan.hello("b").modalities == ("right",)
    assert opened(run, tmp_path, "a", next_round=3).plan.hello("b").modalities == ("right",)


@pytest.mark.parametrize("federation", [{}, {"site_sample_rate": 0.5}, {"sites_per_round": 1}])
def test_a_run_that_protects_whole_sites_takes_in_none_after_its_start(
    tmp_path: Path, federation: dict[str, object]
) -> None:
    run, said = protected_run(changes={"privacy": SITE}, **federation), list[str]()
    began = opened(run, tmp_path, "a", "b")
    before = began.plan
    began.take_in([hello("c")], next_round=2, say=said.append)
    assert began.plan is before
    assert said == [
        "c came on line, and takes part in the next run: this one protects whole sites, and was calibrated for the 2 "
        "that it began with"
    ]
    assert opened(run, tmp_path, "a", "b", "c", next_round=2).plan.site_names == ("a", "b")
    # one of its own is let in again, and the number that the noise is divided by stays what it was
    assert opened(run, tmp_path, "b", next_round=3).plan.site_names == ("a", "b")


def test_sites_that_can_train_nothing_are_not_taken_in(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    began = opened(small_run(), tmp_path, "a")
    began.take_in([hello("b", frozen=["*"])], next_round=2, say=NOBODY.append)
    assert began.plan.site_names == ("a",)
    assert "b is left out" in caplog.text


def test_too_few_at_a_resumption_end_it_and_the_plan_stays(tmp_path: Path) -> None:
    run = small_run(min_sites=2)
    opened(run, tmp_path, "a", "b")
    with pytest.raises(RunError, match="min_sites asks for 2"):
        opened(run, tmp_path, "a", next_round=2)
    assert first_rounds(tmp_path) == {"a": 1, "b": 1}


def test_a_plan_that_would_ask_more_is_refused(tmp_path: Path) -> None:
    run, path = small_run(sites_per_round=1), tmp_path / "plan.json"
    opened(run, tmp_path, "a", "b")
    kept = json.loads(path.read_text())
    assert [site["planned_rounds"] for site in kept["sites"]] == [2, 2]
    kept["sites"].pop()
    path.write_text(json.dumps(kept))
    with pytest.raises(RunError, match="does not fit the schedule"):
        opened(run, tmp_path, "a", "b", next_round=2)
    path.write_text("{")
    with pytest.raises(RunError, match="The plan is damaged"):
        opened(run, tmp_path, "a", "b", next_round=2)
    path.unlink()
    opened(run, tmp_path, "a", "b")
    with pytest.raises(RunError, match="written under other settings"):
        opened(small_run(sites_per_round=1, rounds=5), tmp_path, "a", "b")


def test_nobody_is_asked_by_a_plan_that_is_not_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    transport = heard(small_run(), late={"west": 3})

    def full(path: Path, data: bytes) -> None:
        if b"west" in data:
            raise RunError("no room")
        write_atomically(path, data)

    monkeypatch.setattr("server.roster.write_atomically", full)
    with pytest.raises(RunError, match="no room"):
        train(transport.run, tmp_path, transport=transport)
    assert {site for site, _, _ in transport.asked} == {"north", "south"}
    kept = load_progress(folder=tmp_path, run_digest=transport.run.digest)
    assert kept is not None
    assert kept.round_number == 2


def test_a_plan_holds_no_signature(tmp_path: Path) -> None:
    run = protected_run(changes={"privacy": RECORD})
    sites = [hello("a", signature="ab" * 20), hello("b")]
    open_roster(sites, run=run, model=build_model(run), folder=tmp_path, next_round=1)
    assert "signature" not in (tmp_path / "plan.json").read_text()
