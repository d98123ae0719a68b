"""A run small enough for plain function calls: two modalities of features, linear encoders, no media."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from server.checkpoint import Progress
from server.judgement import Failure, Reply, StatisticsAnswer
from server.plan import start_central
from server.records import RoundRecord
from server.roster import open_roster
from server.rounds import run_rounds, start_or_resume
from server.settings import ServerSettings
from shared.batch import Samples
from shared.config import RunConfig
from shared.messages import (
    PROTOCOL_VERSION,
    Hello,
    PrivacyStatement,
    ReplyHeader,
    StatisticsHeader,
    TrainReply,
    TrainRequest,
)
from shared.model.multimodal import build_model
from shared.model.parameters import trainable_names

RECORD: Mapping[str, object] = {
    "unit": "record", "trust": "nobody", "epsilon": 8.0, "delta": 1e-3, "clip_norm": 1.0, "accountant": "rdp"
}  # fmt: skip
SITE: Mapping[str, object] = {**RECORD, "unit": "site", "trust": "server"}


def protected_run(*, changes: Mapping[str, object] | None = None, **federation: object) -> RunConfig:
    """The small run with whole parts of it changed."""
    table = small_run().model_dump()
    return RunConfig.model_validate({**table, "federation": {**table["federation"], **federation}, **(changes or {})})


def small_run(**federation: object) -> RunConfig:
    """Two feature modalities, three classes."""
    return RunConfig.model_validate(
        {
            "name": "small",
            "seed": 1,
            "data": {
                "task": "single-label",
                "labels": ["a", "b", "c"],
                "modalities": {"left": {"kind": "features", "width": 4}, "right": {"kind": "features", "width": 4}},
            },
            "model": {
                "embedding_width": 4,
                "encoders": {"left": {"name": "linear"}, "right": {"name": "linear"}},
                "fusion": {"name": "concat"},
            },
            "training": {"optimizer": "sgd", "learning_rate": 0.1, "sample_rate": 1.0, "local_steps": 1},
            "privacy": "none",
            "federation": {"rounds": 4, **federation},
        }
    )


def small_samples(run: RunConfig, *, rows: int = 30, seed: int = 0) -> Samples:
    """Rows whose class shows in both modalities."""
    draws = torch.Generator().manual_seed(seed)
    targets = torch.arange(rows) % 3
    shown = torch.nn.functional.one_hot(targets, 4).float()
    inputs = {name: shown + 0.3 * torch.randn(rows, 4, generator=draws) for name in run.modalities}
    return Samples(
        inputs=inputs,
        present=torch.ones(rows, len(run.modalities), dtype=torch.bool),
        targets=targets,
        subjects=tuple(str(row) for row in range(rows)),
        groups={},
    )


def small_settings(run: RunConfig, *, folder: Path) -> ServerSettings:
    """Settings of a server whose data is handed to it by the test."""
    return ServerSettings(
        run=run,
        run_id="r",
        held_out=folder,
        cache=folder,
        card=None,
        engine="calls",
        num_sites=2,
        started="2026-01-01",
        ledger=folder / "server-ledger.sqlite",
        federation="small",
    )


@dataclass
class CallTransport:
    """Sites that are function calls: each takes one plain gradient step on samples of its own."""

    run: RunConfig
    sites: Mapping[str, tuple[str, ...]]
    twisted: dict[tuple[str, int], Reply] = field(default_factory=dict)
    """(site, round) -> what it says instead"""
    asked: list[tuple[str, int, int]] = field(default_factory=list)
    """(site, round, attempt) of every request"""
    counts: dict[str, StatisticsAnswer] = field(default_factory=dict)
    """site -> what it answers when asked for counts"""
    counted: list[tuple[str, ...]] = field(default_factory=list)
    """sites of every request for counts"""
    privacy: PrivacyStatement | None = None
    """how the sites say that they protected their updates"""
    away: list[frozenset[str]] = field(default_factory=list)
    """who is not on line, look by look; everybody is after the last of them"""
    late: dict[str, int] = field(default_factory=dict)
    """site -> the look at which it comes on line, counted from 1"""
    looks: int = 0
    unclipped_share: float | None = None
    is_within_clip: bool | None = None

    def online(self) -> frozenset[str]:
        """Everybody, but for those that are away at this look."""
        there = frozenset(site for site in self.sites if self.looks >= self.late.get(site, 0))
        return there - (self.away.pop(0) if self.away else frozenset())

    def hello(self, *, expected: int, min_sites: int, timeout_s: float) -> list[Hello]:
        """Everybody is there, but for those that come late."""
        return [self.introduction(site) for site in self.sites if site not in self.late]

    def newcomers(self) -> list[Hello]:
        """Whoever comes at this look."""
        self.looks += 1
        return [self.introduction(site) for site, look in self.late.items() if look == self.looks]

    def introduction(self, site: str) -> Hello:
        """What a site says of itself."""
        return Hello(protocol_version=PROTOCOL_VERSION, site=site, modalities=self.sites[site], nominal_size=30)

    def statistics(
        self, requests: Mapping[str, StatisticsHeader], *, num_counts: int, timeout_s: float
    ) -> dict[str, StatisticsAnswer]:
        """What the test has them answer; nobody, if it has nothing."""
        self.counted.append(tuple(requests))
        return {site: self.counts.get(site, Failure("late", "no-reply")) for site in requests}

    def train(self, requests: Mapping[str, TrainRequest], *, timeout_s: float) -> Iterator[tuple[str, Reply]]:
        """One step each, or the twisted answer."""
        for site, request in sorted(requests.items()):
            yield site, self._answer(site, request)

    def _answer(self, site: str, request: TrainRequest) -> Reply:
        header = request.header
        self.asked.append((site, header.round_number, header.attempt))
        twisted = self.twisted.get((site, header.round_number))
        return twisted if twisted is not None else self.honest(site, request)

    def honest(self, site: str, request: TrainRequest) -> TrainReply:
        """What an honest site answers."""
        model = build_model(self.run)
        names = trainable_names(model, self.sites[site])
        parameters = dict(model.named_parameters())
        with torch.no_grad():
            for name in names:
                parameters[name].copy_(request.weights[name])
        samples = small_samples(self.run, seed=len(site))
        inputs = {name: values for name, values in samples.inputs.items() if name in self.sites[site]}
        loss = model.loss(model(inputs, samples.present), samples.targets).mean()
        gradients = torch.autograd.grad(loss, [parameters[name] for name in names])
        update = {name: -0.5 * gradient for name, gradient in zip(names, gradients, strict=True)}
        return TrainReply(
            header=ReplyHeader(
                protocol_version=PROTOCOL_VERSION,
                run_id=request.header.run_id,
                round_number=request.header.round_number,
                nominal_size=30,
                privacy=self.privacy,
                unclipped_share=self.unclipped_share,
                is_within_clip=self.is_within_clip,
            ),
            update=update,
        )


@pytest.fixture
def run() -> RunConfig:
    """The small run."""
    return small_run()


def train(
    run: RunConfig,
    folder: Path,
    *,
    transport: CallTransport,
    attempt: int = 0,
    stop_after: int | None = None,
    reproducible: bool = True,
) -> Progress:
    """A run from where it stands to its end, or until KeyboardInterrupt after a round."""
    model = build_model(run)
    folder.mkdir(exist_ok=True)
    settings = small_settings(run, folder=folder).model_copy(update={"reproducible_noise": reproducible})

    def tell(record: RoundRecord) -> None:
        if record.round == stop_after:
            raise KeyboardInterrupt

    progress = start_or_resume(model, settings=settings, folder=folder)
    sites = transport.hello(expected=3, min_sites=1, timeout_s=1)
    roster = open_roster(sites, run=run, model=model, folder=folder, next_round=progress.round_number + 1)
    progress, _ = run_rounds(
        transport,
        progress=progress,
        model=model,
        roster=roster,
        settings=settings,
        validation=small_samples(run, seed=99),
        folder=folder,
        attempt=attempt,
        tell=tell,
        central=start_central(roster.plan, settings=settings, model=model),
    )
    return progress
