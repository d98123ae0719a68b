"""Rounds of runs that protect sites, move clip norms or ask for counts: what is charged, taken, and written down."""

import dataclasses
import json
import math
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch

from server.checkpoint import Progress
from server.history import used_replies
from server.intake import weight_of
from server.judgement import Reply
from server.plan import make_plan, start_central
from server.roster import open_roster
from server.tensorboard import EventWriter, round_scalars
from shared.config import RunConfig
from shared.errors import BudgetError, RunError
from shared.messages import (
    PROTOCOL_VERSION,
    Hello,
    PrivacyStatement,
    Refusal,
    StatisticsReply,
    TrainReply,
    TrainRequest,
)
from shared.model.multimodal import build_model
from shared.privacy.ledger import Ledger
from shared.privacy.mechanism import next_clip_norm
from tests.server.conftest import RECORD, SITE, CallTransport, protected_run, small_settings, train

SITES = {"north": ("left", "right"), "south": ("left", "right"), "deaf": ("left",)}
STATEMENT = PrivacyStatement(
    unit="record", epsilon=3.0, delta=1e-3, clip_norm=1.0, noise_multiplier=5.0, sample_rate=1.0, steps_per_round=1,
    accountant="rdp", reproducible_noise=False,
)  # fmt: skip


def ledger_of(folder: Path) -> Ledger:
    return Ledger.existing(folder / "server-ledger.sqlite")


def charged(folder: Path) -> list[tuple[int, int, int]]:
    """(round, attempt, steps) of every row of the server's ledger."""
    return [(row.round_number, row.attempt, row.use.steps) for row in ledger_of(folder).rows("small")]


def same(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@dataclasses.dataclass
class WatchedTransport(CallTransport):
    """Notes what the server's ledger holds when messages go out, and can break down at that moment."""

    folder: Path = Path()
    held: list[int] = dataclasses.field(default_factory=list)
    breaks_in: int = 0

    def train(self, requests: Mapping[str, TrainRequest], *, timeout_s: float) -> Iterator[tuple[str, Reply]]:
        """As ever, once it has looked."""
        self.held.append(len(charged(self.folder)))
        if len(self.held) == self.breaks_in:
            raise ConnectionError
        return super().train(requests, timeout_s=timeout_s)


def test_a_round_of_sites_is_charged_before_anybody_is_asked(tmp_path: Path) -> None:
    run = protected_run(changes={"privacy": SITE})
    transport = WatchedTransport(run, SITES, folder=tmp_path)
    progress = train(run, tmp_path, transport=transport)
    assert transport.held == [1, 2, 3, 4]
    spent = [record.site_epsilon for record in progress.history]
    assert spent[-1] == ledger_of(tmp_path).spent("small", unit="site", delta=1e-3, accountant="rdp")
    assert spent == sorted(spent, key=lambda epsilon: epsilon or 0)
    assert [record.site_clip_norm for record in progress.history] == [1.0] * 4


def test_a_repeated_round_is_charged_again(tmp_path: Path) -> None:
    """And the run ends a round early: its epsilon was for four, and one of them was paid twice."""
    run = protected_run(changes={"privacy": SITE})
    with pytest.raises(ConnectionError):
        train(run, tmp_path, transport=WatchedTransport(run, SITES, folder=tmp_path, breaks_in=2))
    progress = train(run, tmp_path, transport=CallTransport(run, SITES), attempt=1)
    assert charged(tmp_path) == [(1, 0, 1), (2, 0, 1), (2, 1, 1), (3, 1, 1)]
    assert progress.round_number == 3
    assert progress.history[-1].site_epsilon is not None
    assert progress.history[-1].site_epsilon <= 8.0


def test_a_run_stopped_between_rounds_is_charged_once_for_each(tmp_path: Path) -> None:
    run = protected_run(changes={"privacy": SITE}, sites_per_round=1)
    with pytest.raises(KeyboardInterrupt):
        train(run, tmp_path, transport=CallTransport(run, SITES), stop_after=2)
    progress = train(run, tmp_path, transport=CallTransport(run, SITES), attempt=1)
    # three sites, one a round: only the first round and the fourth add to what one site has been in
    assert charged(tmp_path) == [(1, 0, 1), (4, 1, 1)]
    assert progress.round_number == 4


@pytest.mark.parametrize("rate", [None, 0.5])
def test_a_run_folder_that_lost_its_counts_pays_for_every_round(rate: float | None, tmp_path: Path) -> None:
    """Whoever copies a run folder as it was before the first round and starts it again asks every site again."""
    run = protected_run(changes={"privacy": SITE}, site_sample_rate=rate)
    with pytest.raises(KeyboardInterrupt):
        train(run, tmp_path, transport=CallTransport(run, SITES), stop_after=2)
    (tmp_path / "participations.json").unlink()
    shutil.rmtree(tmp_path / "checkpoints")
    (tmp_path / "metrics.jsonl").unlink()
    progress = train(run, tmp_path, transport=CallTransport(run, SITES), attempt=1)
    assert charged(tmp_path) == [(1, 0, 1), (2, 0, 1), (1, 1, 1), (2, 1, 1)]
    assert progress.round_number == 2


@pytest.mark.parametrize("clipping", ["flat", "per-layer", "adaptive"])
def test_a_resumed_run_of_sites_equals_one_that_was_not_stopped(clipping: str, tmp_path: Path) -> None:
    run = protected_run(changes={"privacy": {**SITE, "clipping": clipping}}, site_sample_rate=0.6)
    within = False if clipping == "adaptive" else None
    whole = train(run, tmp_path / "whole", transport=CallTransport(run, SITES, is_within_clip=within))
    with pytest.raises(KeyboardInterrupt):
        train(run, tmp_path / "parts", transport=CallTransport(run, SITES, is_within_clip=within), stop_after=2)
    parts = train(run, tmp_path / "parts", transport=CallTransport(run, SITES, is_within_clip=within), attempt=1)
    assert same(whole.weights, parts.weights)
    assert whole.history == parts.history
    assert whole.site_clip_norm == parts.site_clip_norm
    assert (len({record.site_clip_norm for record in whole.history}) > 1) == (clipping == "adaptive")


def test_a_second_run_beyond_the_cap_asks_nobody(tmp_path: Path) -> None:
    run = protected_run(changes={"privacy": SITE})
    train(run, tmp_path, transport=CallTransport(run, SITES))
    again = CallTransport(run, SITES)
    model = build_model(run)
    plan = make_plan(again.hello(expected=3, min_sites=1, timeout_s=1), run=run, model=model)
    settings = small_settings(run, folder=tmp_path).model_copy(update={"run_id": "second"})
    with pytest.raises(BudgetError, match="would bring it to"):
        start_central(plan, settings=settings, model=model)
    assert len(charged(tmp_path)) == 4


def test_central_noise_differs_between_equal_runs(tmp_path: Path) -> None:
    run = protected_run(changes={"privacy": SITE})
    first, second, third = (
        train(run, tmp_path / str(number), transport=CallTransport(run, SITES), reproducible=number == 2)
        for number in range(3)
    )
    again = train(run, tmp_path / "again", transport=CallTransport(run, SITES))
    assert not same(first.weights, second.weights)
    assert same(third.weights, again.weights)


def test_a_round_nobody_answers_is_noised_and_counted(tmp_path: Path) -> None:
    run = protected_run(changes={"privacy": SITE}, min_sites=2)
    twisted: dict[tuple[str, int], Reply] = {(site, 2): Refusal("refused") for site in SITES}
    progress = train(run, tmp_path, transport=CallTransport(run, SITES, twisted=twisted))
    assert all(record.update_norm for record in progress.history)
    assert len(charged(tmp_path)) == 4


def drawn(folder: Path, *, nobody: bool) -> tuple[Progress, CallTransport]:
    """A run whose sites' updates are all so small that nothing of them shows, asked or, forcibly, never asked."""
    run = protected_run(changes={"privacy": SITE}, site_sample_rate=0.5)
    transport = CallTransport(run, SITES)
    if nobody:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("server.plan.draw_sites", lambda *_, **__: ())
            return train(run, folder, transport=transport), transport
    return train(run, folder, transport=transport), transport


def test_records_do_not_tell_who_was_drawn(tmp_path: Path) -> None:
    """Two runs, one of which asks nobody, differ in what follows from the noisy model and in nothing else."""
    told = []
    for nobody in (False, True):
        folder = tmp_path / str(nobody)
        progress, transport = drawn(folder, nobody=nobody)
        assert bool(transport.asked) is not nobody
        assert all(record.seconds == 0.0 for record in progress.history)
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        state = json.loads((folder / "checkpoints" / "state.json").read_text())
        follows = {"validation", "update_norm"}
        told.append(
            (
                [{key: value for key, value in line.items() if key not in follows} for line in lines],
                {key: value for key, value in state.items() if key not in {"best_round", "best_score", "digests"}},
                (folder / "participations.json").read_text(),
                sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*")),
                [row.use for row in ledger_of(folder).rows("small")],
            )
        )
    assert told[0] == told[1]
    assert {site["outcome"] for line in told[0][0] for site in line["sites"]} == {"withheld"}


def test_events_do_not_tell_who_was_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    progress, _ = drawn(tmp_path, nobody=False)
    tags = round_scalars(progress.history[0])
    assert not [tag for tag in tags if tag.startswith("sites/") or tag == "round/seconds"]
    assert "privacy/site_epsilon" in tags
    times: list[float | None] = []
    with EventWriter(tmp_path) as events:
        events.write(progress.history[0])
        writer = events._writer
        assert writer is not None
        monkeypatch.setattr(writer, "add_scalar", lambda *_, walltime, **__: times.append(walltime))
        events.write(progress.history[1])
    assert set(times) == {2.0}


def test_a_public_schedule_is_shown_as_it_was(tmp_path: Path) -> None:
    run = protected_run(changes={"privacy": SITE}, sites_per_round=2)
    progress = train(run, tmp_path, transport=CallTransport(run, SITES))
    outcomes = [sorted(site.outcome for site in record.sites) for record in progress.history]
    assert outcomes == [["not-asked", "used", "used"]] * 4
    assert all(record.seconds > 0 for record in progress.history)


def test_records_do_not_hold_the_bit_of_a_site(tmp_path: Path) -> None:
    """Two runs whose sites all say the opposite write the same but for what follows from the noisy model."""
    run = protected_run(changes={"privacy": {**SITE, "clipping": "adaptive"}}, sites_per_round=2)
    told = []
    for within in (False, True):
        folder = tmp_path / str(within)
        progress = train(run, folder, transport=CallTransport(run, SITES, is_within_clip=within))
        headers = [reply.header for reply in used_replies(progress.history)]
        assert len(headers) == 8
        assert {header.is_within_clip for header in headers} == {None}
        assert "is_within_clip" in next(site.fields for site in progress.history[0].sites if site.fields)
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        told.append([line["sites"] for line in lines])
    assert told[0] == told[1]


@pytest.mark.parametrize(("share", "direction"), [(0.0, 1), (1.0, -1), (0.5, 0)])
def test_adaptive_norms_of_records_follow_the_share_that_sites_tell(
    share: float, direction: int, tmp_path: Path
) -> None:
    run = protected_run(changes={"privacy": {**RECORD, "clipping": "adaptive"}})
    assert run.local_privacy is not None
    sent: list[float] = []

    class Following(CallTransport):
        def honest(self, site: str, request: TrainRequest) -> TrainReply:
            norm = request.header.clip_norm
            assert norm is not None
            sent.append(norm)
            self.privacy = STATEMENT.model_copy(update={"clipping": "adaptive", "clip_norm": norm})
            return super().honest(site, request)

    with pytest.raises(KeyboardInterrupt):
        train(run, tmp_path, transport=Following(run, SITES, unclipped_share=share), stop_after=2)
    progress = train(run, tmp_path, transport=Following(run, SITES, unclipped_share=share), attempt=1)
    norms = [record.clip_norm for record in progress.history]
    expected = [1.0]
    for _ in range(3):
        expected.append(next_clip_norm(expected[-1], unclipped_share=share, settings=run.local_privacy))
    assert norms == expected
    assert sorted(set(sent)) == sorted(set(expected))
    assert math.copysign(1, (norms[-1] or 0) - 1.0) == direction or direction == 0


def test_one_site_has_no_larger_say_over_the_clip_norm_than_another(tmp_path: Path) -> None:
    run = protected_run(changes={"privacy": {**RECORD, "clipping": "adaptive"}}, rounds=1)
    privacy = STATEMENT.model_copy(update={"clipping": "adaptive"})
    assert run.local_privacy is not None
    transport = CallTransport(run, SITES, privacy=privacy, unclipped_share=0.5)
    shouting = CallTransport(run, SITES, privacy=privacy, unclipped_share=1e300)
    norms: list[float | None] = []
    for one in (transport, shouting):

        class Mixed(CallTransport):
            def honest(self, site: str, asked: TrainRequest) -> TrainReply:
                return (one if site == "deaf" else transport).honest(site, asked)  # noqa: B023  used at once

        norms.append(train(run, tmp_path / str(len(norms)), transport=Mixed(run, SITES)).clip_norm)
    assert norms[1] == next_clip_norm(1.0, unclipped_share=(0.5 + 0.5 + 1.0) / 3, settings=run.local_privacy)
    assert norms[0] == 1.0


def counts(*numbers: float) -> StatisticsReply:
    privacy = STATEMENT.model_copy(update={"noise_multiplier": 4.0})
    return StatisticsReply(protocol_version=PROTOCOL_VERSION, run_id="r", counts=numbers, privacy=privacy)


def test_counts_are_asked_once_and_weigh_the_sites(tmp_path: Path) -> None:
    """A site that gives none counts by its nominal size, which is 30; a total below one counts as one."""
    changes = {"privacy": RECORD, "statistics": {"noise_multiplier": 4.0}}
    run = protected_run(changes=changes, weighting="examples")
    answers = {"north": counts(30.0, 20.0, 10.0), "deaf": counts(-5.0, 1.0, 2.0)}
    transport = CallTransport(run, SITES, privacy=STATEMENT, counts=dict(answers))
    with pytest.raises(KeyboardInterrupt):
        train(run, tmp_path, transport=transport, stop_after=1)
    progress = train(run, tmp_path, transport=transport, attempt=1)
    assert transport.counted == [("deaf", "north", "south")]
    assert progress.statistics == answers

    told = {site: sum(answer.counts) for site, answer in progress.statistics.items()}
    requests = _requests_of(run, transport, progress)
    headers = {site: transport.honest(site, request).header for site, request in requests.items()}
    weights = {site: weight_of(site, header, counts=told, run=run) for site, header in headers.items()}
    assert weights == {"north": 60.0, "south": 30.0, "deaf": 1.0}


def test_counts_asked_before_a_crash_are_not_asked_again(tmp_path: Path) -> None:
    """Whoever gave them has paid, even though no round was done."""
    run = protected_run(changes={"privacy": RECORD, "statistics": {"noise_multiplier": 4.0}})

    class Breaking(CallTransport):
        def train(self, requests: Mapping[str, TrainRequest], *, timeout_s: float) -> Iterator[tuple[str, Reply]]:
            raise ConnectionError

    with pytest.raises(ConnectionError):
        train(run, tmp_path, transport=Breaking(run, SITES, counts={"north": counts(1.0, 2.0, 3.0)}))
    again = CallTransport(run, SITES, privacy=STATEMENT)
    progress = train(run, tmp_path, transport=again, attempt=1)
    assert again.counted == []
    assert progress.statistics == {"north": counts(1.0, 2.0, 3.0)}


def _requests_of(run: RunConfig, transport: CallTransport, progress: Progress) -> dict[str, TrainRequest]:
    from server.rounds import _requests

    model = build_model(run)
    plan = make_plan(transport.hello(expected=3, min_sites=1, timeout_s=1), run=run, model=model)
    return _requests(plan.site_names, progress, plan=plan, settings=small_settings(run, folder=Path()), attempt=0)


def test_a_site_that_tells_no_size_ends_no_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Neither at the start nor, where it comes back with other words, at the end, when the report needs its size."""
    run = protected_run(changes={"privacy": RECORD, "site_privacy": SITE}, site_sample_rate=0.5)
    hello = Hello(protocol_version=PROTOCOL_VERSION, site="old", modalities=("left",))
    told, model = hello.model_copy(update={"site": "told", "nominal_size": 30}), build_model(run)
    assert make_plan([hello, told], run=run, model=model).site_names == ("told",)
    assert "old is left out: no site has the nominal size that it declares, or it declares none" in caplog.text
    with pytest.raises(RunError, match="0 of 1 sites"):
        make_plan([hello], run=run, model=model)
    roster = open_roster([told], run=run, model=model, folder=tmp_path, next_round=1)
    roster.take_in([told.model_copy(update={"nominal_size": None})], next_round=2, say=lambda _: None)
    assert roster.plan.nominal_size("told") == 30
    # where nobody needs it, it need not be told
    without = protected_run(changes={"privacy": SITE}, site_sample_rate=0.5)
    assert make_plan([hello], run=without, model=model).site_names == ("old",)
