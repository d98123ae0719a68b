"""Rounds: what a site does wrong costs its own contribution only; a run goes on where it stopped."""

import dataclasses
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch

from server.checkpoint import Progress, load_progress
from server.judgement import Failure, Reply
from server.plan import make_plan
from shared.config import RunConfig
from shared.errors import RunError
from shared.messages import PROTOCOL_VERSION, Refusal, RequestHeader, TrainReply, TrainRequest
from shared.model.multimodal import build_model
from tests.server import conftest
from tests.server.conftest import SITE, CallTransport, protected_run, small_run

SITES = {"north": ("left", "right"), "south": ("left", "right"), "deaf": ("left",)}


def train(
    run: RunConfig,
    folder: Path,
    *,
    transport: CallTransport | None = None,
    attempt: int = 0,
    stop_after: int | None = None,
) -> tuple[Progress, CallTransport]:
    transport = transport or CallTransport(run, SITES)
    progress = conftest.train(
        run, folder, transport=transport, attempt=attempt, stop_after=stop_after, reproducible=False
    )
    return progress, transport


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_run_learns_and_writes_a_record_for_every_round(run: RunConfig, tmp_path: Path) -> None:
    progress, _ = train(small_run(rounds=30), tmp_path)
    last = progress.history[-1].validation
    assert [record.round for record in progress.history] == list(range(1, 31))
    assert last is not None
    assert last.metrics["macro_f1"].value > 0.9
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 30


@pytest.mark.parametrize("optimizer", ["fedavg", "fedavgm", "fedadam", "fedyogi", "fedadagrad"])
def test_a_stopped_run_ends_with_the_same_model_as_one_that_was_not(optimizer: str, tmp_path: Path) -> None:
    run = small_run(rounds=6, server_optimizer={"name": optimizer, "learning_rate": 0.1})
    whole, _ = train(run, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(run, tmp_path / "parts", stop_after=3)
    parts, transport = train(run, tmp_path / "parts", attempt=1)
    assert {(number, attempt) for _, number, attempt in transport.asked} == {(4, 1), (5, 1), (6, 1)}
    assert same(whole.weights, parts.weights)
    assert same(whole.best_weights, parts.best_weights)
    strip = [record.model_copy(update={"seconds": 0.0}) for record in parts.history]
    assert strip == [record.model_copy(update={"seconds": 0.0}) for record in whole.history]


def test_lines_of_a_round_without_its_checkpoint_are_dropped_on_resume(run: RunConfig, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(run, tmp_path, stop_after=2)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"round": 3, "seco')
    progress, _ = train(run, tmp_path, attempt=1)
    assert [record.round for record in progress.history] == [1, 2, 3, 4]


def test_a_damaged_or_foreign_checkpoint_is_refused(run: RunConfig, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(run, tmp_path, stop_after=2)
    with pytest.raises(RunError, match="other settings"):
        load_progress(folder=tmp_path, run_digest="another")
    next((tmp_path / "checkpoints").glob("*.safetensors")).write_bytes(b"half")
    with pytest.raises(RunError, match="not readable"):
        load_progress(folder=tmp_path, run_digest=run.digest)


@pytest.mark.parametrize("damage", ["a bit", "half", "state", "no text"])
def test_a_damaged_checkpoint_is_refused_with_the_file_and_what_to_do(
    run: RunConfig, damage: str, tmp_path: Path
) -> None:
    """One flipped bit of a weight is a number like any other: only the digest tells."""
    with pytest.raises(KeyboardInterrupt):
        train(run, tmp_path, stop_after=2)
    checkpoints = tmp_path / "checkpoints"
    path = checkpoints / ("state.json" if damage in ("state", "no text") else "round-000002.safetensors")
    content = path.read_bytes()
    damaged = {
        "a bit": content[:-1] + bytes([content[-1] ^ 1]),
        "half": content[: len(content) // 2],
        "state": content[: len(content) // 2],
        "no text": b"\xff" + content[1:],
    }
    path.write_bytes(damaged[damage])
    with pytest.raises(RunError, match=r"restore .* from a backup or start a new run") as told:
        load_progress(folder=tmp_path, run_digest=run.digest)
    assert str(path) in str(told.value)


def test_a_best_model_that_is_not_written_anew_keeps_its_digest(run: RunConfig, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(run, tmp_path, stop_after=1)
    train(run, tmp_path, attempt=1)
    best = next((tmp_path / "checkpoints").glob("best-*"))
    best.write_bytes(best.read_bytes()[:-1] + b"\x01")
    with pytest.raises(RunError, match=best.name):
        load_progress(folder=tmp_path, run_digest=run.digest)


def poisoned(transport: CallTransport, site: str, run: RunConfig, number: int) -> TrainReply:
    """An honest reply of that site for a round, built beforehand so that a test can twist it."""
    model = build_model(run)
    plan = make_plan(transport.hello(expected=3, min_sites=1, timeout_s=1), run=run, model=model)
    header = RequestHeader(
        protocol_version=PROTOCOL_VERSION, run=run, run_id="r", round_number=number, planned_rounds=plan.planned[site]
    )
    weights = {name: value.detach() for name, value in model.named_parameters()}
    return transport.honest(site, TrainRequest(header, weights))


@pytest.mark.parametrize("twist", ["refused", "failed", "late", "invalid", "another-round", "another-run"])
def test_a_site_that_goes_wrong_costs_its_own_contribution_only(run: RunConfig, twist: str, tmp_path: Path) -> None:
    transport = CallTransport(run, SITES)
    honest = poisoned(transport, "south", run, 2)
    answers: dict[str, Reply] = {
        "refused": Refusal("refused"),
        "failed": Failure("failed", "flower-1"),
        "late": Failure("late", "no-reply"),
        "invalid": Failure("invalid", "message-invalid"),
        "another-round": dataclasses.replace(honest, header=honest.header.model_copy(update={"round_number": 1})),
        "another-run": dataclasses.replace(honest, header=honest.header.model_copy(update={"run_id": "old"})),
    }
    transport.twisted = {("south", number): answers[twist] for number in (1, 2, 3, 4)}
    if twist == "another-round":  # a valid reply in round 1, stale ever after
        transport.twisted.pop(("south", 1))
    with_fault, _ = train(run, tmp_path / "fault", transport=transport)
    without_site = CallTransport(run, {site: has for site, has in SITES.items() if site != "south"})
    expected, _ = train(run, tmp_path / "without", transport=without_site)
    named = [site for record in with_fault.history[1:] for site in record.sites if site.site == "south"]
    outcome = "invalid" if twist.startswith("another") else twist
    assert {site.outcome for site in named} == {outcome}
    assert all(site.code for site in named)
    if twist != "another-round":
        assert same(with_fault.weights, expected.weights)


def test_a_round_with_too_few_usable_updates_changes_nothing(tmp_path: Path) -> None:
    run = small_run(min_sites=3)
    transport = CallTransport(run, SITES, twisted={("south", 2): Refusal("refused")})
    progress, _ = train(run, tmp_path, transport=transport)
    assert [record.update_norm is None for record in progress.history] == [False, True, False, False]


def test_a_site_without_a_modality_neither_gets_nor_sends_its_encoder(run: RunConfig, tmp_path: Path) -> None:
    progress, _ = train(run, tmp_path)
    fields = {site.site: site.fields for record in progress.history[:1] for site in record.sites}
    assert any("right" in name for name in fields["north"])
    assert not any("right" in name for name in fields["deaf"])


def test_too_few_sites_with_a_modality_of_the_run_are_refused_before_anything_is_asked(run: RunConfig) -> None:
    transport = CallTransport(run, {"blind": ("smell",)})
    with pytest.raises(RunError, match="have any of"):
        make_plan(transport.hello(expected=1, min_sites=1, timeout_s=1), run=run, model=build_model(run))


def test_patience_ends_a_run_that_gets_no_better(tmp_path: Path) -> None:
    run = small_run(rounds=20, patience_rounds=2)
    transport = CallTransport(run, SITES)
    transport.twisted = {(site, number): Refusal("refused") for site in SITES for number in range(3, 21)}
    progress, _ = train(run, tmp_path, transport=transport)
    assert progress.round_number == progress.best_round + 2
    assert progress.round_number < 20


@dataclasses.dataclass
class WatchedTransport(CallTransport):
    """Counts the tensors of a site's update that are still held when the next is asked for."""

    held: list[int] = dataclasses.field(default_factory=list)

    def train(self, requests: Mapping[str, TrainRequest], *, timeout_s: float) -> Iterator[tuple[str, Reply]]:
        """One after the other, none of them held here."""
        for site, request in sorted(requests.items()):
            made = [self.honest(site, request)]
            tensors = [weakref.ref(value) for value in made[0].update.values()]
            yield site, made.pop()
            self.held.append(sum(tensor() is not None for tensor in tensors))


@pytest.mark.parametrize("aggregation", ["mean", "site", "norm-bound", "median"])
def test_an_update_is_dropped_before_the_next_is_made(aggregation: str, tmp_path: Path) -> None:
    """A median is the exception, and shows that the count can tell."""
    bound = {"norm_bound": 0.1} if aggregation == "norm-bound" else {}
    run = small_run(rounds=2, aggregation=aggregation, **bound) if aggregation != "site" else None
    run = run or protected_run(changes={"privacy": SITE}, rounds=2)
    transport = WatchedTransport(run, SITES)
    train(run, tmp_path, transport=transport)
    assert len(transport.held) == 6
    assert any(transport.held) == (aggregation == "median")


@pytest.mark.parametrize("is_protected", [False, True])
def test_a_site_is_in_the_sum_once_however_often_it_answers(is_protected: bool, tmp_path: Path) -> None:
    class Insistent(CallTransport):
        def train(self, requests: Mapping[str, TrainRequest], *, timeout_s: float) -> Iterator[tuple[str, Reply]]:
            for site, reply in super().train(requests, timeout_s=timeout_s):
                yield from [(site, reply)] * (3 if site == "south" else 1)

    run = protected_run(changes={"privacy": SITE}) if is_protected else small_run()
    once, often = (
        conftest.train(run, tmp_path / kind.__name__, transport=kind(run, SITES)) for kind in (CallTransport, Insistent)
    )
    assert same(once.weights, often.weights)


def test_sites_that_are_asked_the_same_share_one_request(run: RunConfig, tmp_path: Path) -> None:
    asked: list[Mapping[str, TrainRequest]] = []

    class Noting(CallTransport):
        def train(self, requests: Mapping[str, TrainRequest], *, timeout_s: float) -> Iterator[tuple[str, Reply]]:
            asked.append(requests)
            return super().train(requests, timeout_s=timeout_s)

    train(run, tmp_path, transport=Noting(run, SITES))
    assert asked[0]["north"] is asked[0]["south"]
    assert asked[0]["deaf"] is not asked[0]["south"]
    assert asked[0]["south"] is not asked[1]["south"]
