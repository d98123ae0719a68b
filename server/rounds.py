"""Rounds: ask sites, judge their replies, step the model, measure it, write it down; until the plan is done.

in        a Transport to the sites, the run's settings, the server's held-out samples
out       a RunRecord, and in the run folder a checkpoint after every round
relies on Flower for nothing: strategy.py is the Transport that speaks it
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from server.aggregation import ServerOptimizer, Weights, aggregate
from server.checkpoint import Progress, load_progress, save_progress
from server.evaluation import score
from server.records import Outcome, RoundRecord, Scores, SiteRound
from server.schedule import plan_rounds, planned_participations
from server.settings import ServerSettings
from shared.batch import Samples
from shared.config import RunConfig
from shared.errors import RunError
from shared.messages import (
    PROTOCOL_VERSION,
    Hello,
    Refusal,
    RequestHeader,
    Shapes,
    TrainReply,
    TrainRequest,
    reply_fields,
)
from shared.model.multimodal import MultimodalModel
from shared.model.parameters import trainable_names


@dataclass(frozen=True)
class Failure:
    """A site whose reply cannot be used, and why."""

    outcome: Literal["failed", "late", "invalid"]
    code: str


Reply = TrainReply | Refusal | Failure


@runtime_checkable
class Transport(Protocol):
    """What carries messages to sites, by the names they gave themselves."""

    def hello(self, *, expected: int, min_sites: int, timeout_s: float) -> list[Hello]:
        """Introductions of the sites that are there, once `expected` are or the time is over."""

    def train(
        self, requests: Mapping[str, TrainRequest], *, shapes: Mapping[str, Shapes], timeout_s: float
    ) -> dict[str, Reply]:
        """One answer for every request; whatever went wrong at a site is in its own answer."""


@dataclass(frozen=True)
class Plan:
    """Who is asked when, and what each site sends: fixed before the first round."""

    sites: tuple[Hello, ...]
    rounds: tuple[tuple[str, ...], ...]
    planned: Mapping[str, int]
    names: Mapping[str, tuple[str, ...]]


def make_plan(sites: list[Hello], *, run: RunConfig, model: MultimodalModel) -> Plan:
    """The schedule of a run over the sites that introduced themselves and share a modality with it."""
    able = sorted((site for site in sites if set(site.modalities) & set(run.modalities)), key=lambda site: site.site)
    if len(able) < run.federation.min_sites:
        raise RunError(
            f"{len(able)} of {len(sites)} sites have any of {list(run.modalities)}; "
            f"federation.min_sites asks for {run.federation.min_sites}"
        )
    rounds = plan_rounds([site.site for site in able], settings=run.federation, seed=run.seed)
    names = {site.site: trainable_names(model, [m for m in run.modalities if m in site.modalities]) for site in able}
    return Plan(sites=tuple(able), rounds=tuple(rounds), planned=planned_participations(rounds), names=names)


def start_or_resume(model: MultimodalModel, *, settings: ServerSettings, folder: Path) -> Progress:
    """The last checkpoint, or the untrained model where there is none."""
    found = load_progress(folder=folder, run_digest=settings.run.digest)
    if found is not None:
        return found
    parameters = dict(model.named_parameters())
    weights = {name: parameters[name].detach().clone() for name in trainable_names(model, settings.run.modalities)}
    return Progress(weights=weights, best_weights=dict(weights))


def run_rounds(
    transport: Transport,
    *,
    progress: Progress,
    model: MultimodalModel,
    plan: Plan,
    settings: ServerSettings,
    validation: Samples,
    folder: Path,
    attempt: int,
    tell: Callable[[RoundRecord], None],
) -> tuple[Progress, Literal["completed", "early"]]:
    """Train until the plan is done or nothing has got better for `patience_rounds`.

    Args:
        progress: where the run stands (`start_or_resume`); goes on from there, and comes back.
        attempt: how often this run was started before; keeps a site from taking a repeated round for the first.
        tell: called after every round, once its checkpoint is on disk.
    """
    run = settings.run
    optimizer = ServerOptimizer(
        run.federation.server_optimizer, moments=progress.moments, second_moments=progress.second_moments
    )
    if progress.round_number == 0 and progress.best_score is None:
        progress.best_score = _selection_score(_scores(model, progress.weights, samples=validation, run=run))
    while progress.round_number < run.federation.rounds:
        if _patience_is_over(progress, run=run):
            return progress, "early"
        record = _one_round(
            transport,
            progress,
            optimizer,
            model=model,
            plan=plan,
            settings=settings,
            validation=validation,
            attempt=attempt,
        )
        progress.history.append(record)
        save_progress(progress, folder=folder, run_digest=run.digest)
        tell(record)
    return progress, "completed"


def chosen(progress: Progress, *, run: RunConfig) -> tuple[int, Weights]:
    """Round and weights of the model that is kept."""
    if run.federation.select == "best":
        return progress.best_round, progress.best_weights
    return progress.round_number, progress.weights


def load_weights(model: MultimodalModel, weights: Weights) -> None:
    """Put weights into a model by parameter name."""
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in weights.items():
            parameters[name].copy_(value)


def _one_round(
    transport: Transport,
    progress: Progress,
    optimizer: ServerOptimizer,
    *,
    model: MultimodalModel,
    plan: Plan,
    settings: ServerSettings,
    validation: Samples,
    attempt: int,
) -> RoundRecord:
    run, number, began = settings.run, progress.round_number + 1, time.monotonic()
    asked = plan.rounds[number - 1]
    shapes = {site: {name: tuple(progress.weights[name].shape) for name in plan.names[site]} for site in asked}
    requests = {
        site: TrainRequest(
            header=RequestHeader(
                protocol_version=PROTOCOL_VERSION,
                run=run,
                run_id=settings.run_id,
                round_number=number,
                attempt=attempt,
                planned_rounds=plan.planned[site],
            ),
            weights={name: progress.weights[name] for name in plan.names[site]},
        )
        for site in asked
    }
    replies = transport.train(requests, shapes=shapes, timeout_s=run.federation.round_timeout_s)
    judged = {site: _judge(replies[site], request=requests[site]) for site in asked}
    used = {site: reply for site, reply in judged.items() if isinstance(reply, TrainReply)}
    norm = None
    if len(used) >= max(1, run.federation.min_sites):
        update = aggregate(
            {site: reply.update for site, reply in used.items()},
            weights=_weights(used, run=run),
            settings=run.federation,
        )
        new = optimizer.step(progress.weights, update=update)
        norm = _norm({name: new[name] - progress.weights[name] for name in update})
        progress.weights = new
        progress.moments, progress.second_moments = optimizer.moments, optimizer.second_moments
    progress.round_number = number
    known = {site.site: site.fields for record in progress.history for site in record.sites if site.fields}
    scores = None
    if number % run.evaluation.every_rounds == 0 or number == run.federation.rounds:
        scores = _scores(model, progress.weights, samples=validation, run=run)
        _remember_best(progress, scores)
    return RoundRecord(
        round=number,
        seconds=time.monotonic() - began,
        sites=tuple(_site_round(site.site, judged.get(site.site), known=known.get(site.site)) for site in plan.sites),
        validation=scores,
        update_norm=norm,
    )


def _judge(reply: Reply, *, request: TrainRequest) -> Reply:
    """A reply that belongs to this round and run, protected as the run asks; or why it is not used."""
    if not isinstance(reply, TrainReply):
        return reply
    header, asked = reply.header, request.header
    if (header.run_id, header.round_number) != (asked.run_id, asked.round_number):
        return Failure("invalid", "another-round")
    if (header.privacy is None) != (asked.run.privacy == "none"):
        return Failure("invalid", "privacy-differs")
    return reply


def _weights(used: Mapping[str, TrainReply], *, run: RunConfig) -> dict[str, float]:
    """How much each update counts: alike, or by examples; by nominal size where a site does not tell."""
    if run.federation.weighting == "uniform":
        return dict.fromkeys(used, 1.0)
    counts = {site: reply.header.num_examples for site, reply in used.items()}
    return {
        site: float(max(1, used[site].header.nominal_size if count is None else count))
        for site, count in counts.items()
    }


def _site_round(site: str, reply: Reply | None, *, known: tuple[str, ...] | None) -> SiteRound:
    if reply is None:
        return SiteRound(site=site, outcome="not-asked")
    if isinstance(reply, TrainReply):
        privacy = reply.header.privacy
        return SiteRound(
            site=site,
            outcome="used",
            epsilon=privacy.epsilon if privacy else None,
            update_bytes=sum(value.numel() * value.element_size() for value in reply.update.values()),
            fields=() if reply_fields(reply) == known else reply_fields(reply),
            header=reply.header,
        )
    outcome: Outcome = "refused" if isinstance(reply, Refusal) else reply.outcome
    return SiteRound(site=site, outcome=outcome, code=reply.code)


def _scores(model: MultimodalModel, weights: Weights, *, samples: Samples, run: RunConfig) -> Scores:
    load_weights(model, weights)
    return score(model, samples, run=run)


def _selection_score(scores: Scores) -> float | None:
    """What best-model selection compares, higher is better: macro-F1, or minus the mean absolute error."""
    metrics = scores.metrics
    value = (
        metrics["macro_f1"].value if "macro_f1" in metrics else -metrics["mae"].value if "mae" in metrics else math.nan
    )
    return None if math.isnan(value) else value


def _remember_best(progress: Progress, scores: Scores) -> None:
    now = _selection_score(scores)
    if now is not None and (progress.best_score is None or now > progress.best_score):
        progress.best_round, progress.best_score, progress.best_weights = (
            progress.round_number,
            now,
            dict(progress.weights),
        )


def _patience_is_over(progress: Progress, *, run: RunConfig) -> bool:
    patience = run.federation.patience_rounds
    return patience is not None and progress.round_number - progress.best_round >= patience


def _norm(update: Mapping[str, Tensor]) -> float:
    return math.sqrt(sum(float(value.square().sum()) for value in update.values()))
