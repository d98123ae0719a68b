"""Rounds: ask sites, judge their replies, step the model, measure it, write it down; until the plan is done.

in        a Transport to the sites, the run's settings, the server's held-out samples
out       the Progress of a run, and in the run folder a checkpoint after every round
relies on Flower for nothing: strategy.py is the Transport that speaks it; central.py where whole sites are protected
"""

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from server.aggregation import ServerOptimizer, Weights
from server.attendance import Presence, wait_for_enough
from server.checkpoint import Progress, load_progress, save_progress
from server.evaluation import score
from server.headline import selection_score
from server.intake import Intake, ModalityShares
from server.judgement import Reply, StatisticsAnswer, judge_statistics
from server.plan import Central, Plan, participants
from server.records import RoundRecord, Scores
from server.roster import Roster
from server.settings import ServerSettings
from server.start import read_start
from shared.batch import Samples
from shared.config import RunConfig
from shared.errors import BudgetError, ModelError
from shared.messages import (
    PROTOCOL_VERSION,
    Hello,
    RequestHeader,
    StatisticsHeader,
    StatisticsReply,
    TrainRequest,
)
from shared.model.exchange import Exchange, exchange_of
from shared.model.multimodal import MultimodalModel
from shared.model.parameters import given_names, tensor_of
from shared.targets import count_names

log = logging.getLogger("motet.server")
Renew = Callable[[MultimodalModel], Mapping[str, Tensor]]
"""given tensors by name, all or some, from a model with the weights of the coming round in it, in evaluation mode"""


@runtime_checkable
class Transport(Presence, Protocol):
    """What carries messages to sites, by the names they gave themselves."""

    def hello(self, *, expected: int, min_sites: int, timeout_s: float) -> list[Hello]:
        """Introductions of the sites that are there, once `expected` are or the time is over."""

    def newcomers(self) -> list[Hello]:
        """Introductions of the sites that were accepted since, be they late or there again; waits for none."""

    def statistics(
        self, requests: Mapping[str, StatisticsHeader], *, num_counts: int, timeout_s: float
    ) -> dict[str, StatisticsAnswer]:
        """One answer for every request for noisy counts."""

    def train(self, requests: Mapping[str, TrainRequest], *, timeout_s: float) -> Iterator[tuple[str, Reply]]:
        """One answer for every request, as they come; whatever went wrong at a site is in its own answer.

        Sites that are asked the same have the same object as their request. The order is the same in every run with
        the same replies, so that sums are, too. An update need not be held once its answer was taken.
        """


def start_or_resume(model: MultimodalModel, *, settings: ServerSettings, folder: Path) -> Progress:
    """The last checkpoint; where there is none the untrained model, with what the run takes of an earlier one.

    Raises:
        RunError, ModelError: as `read_start`; or the checkpoint is damaged.
    """
    run = settings.run
    found = load_progress(folder=folder, run_digest=run.digest)
    if found is not None:
        return found
    everything = exchange_of(model, run.modalities)
    weights = {name: tensor_of(model, name).detach().clone() for name in everything.sent}
    start = read_start(model, run=run)
    if start is not None:
        weights |= start[0]
    local, central = run.local_privacy, run.central_privacy
    return Progress(
        start=start[1] if start is not None else None,
        weights=weights,
        best_weights=dict(weights),
        clip_norm=local.clip_norm if local and local.clipping == "adaptive" else None,
        site_clip_norm=central.clip_norm if central else None,
    )


def run_rounds(
    transport: Transport,
    *,
    progress: Progress,
    model: MultimodalModel,
    roster: Roster,
    settings: ServerSettings,
    validation: Samples,
    folder: Path,
    attempt: int,
    tell: Callable[[RoundRecord], None],
    say: Callable[[str], None] = log.warning,
    central: Central | None = None,
    renew: Renew | None = None,
) -> tuple[Progress, Literal["completed", "early"]]:
    """Train until the plan is done or nothing has got better for `patience_rounds`.

    Args:
        progress: where the run stands (`start_or_resume`); goes on from there, and comes back.
        roster: who takes part; a site that comes late is in it from its first round on.
        attempt: how often this run was started before; keeps a site from taking a repeated round for the first.
        tell: called after every round, once its checkpoint is on disk.
        say: told when the run pauses because too few sites are on line, and when it goes on.
        central: where whole sites are protected (`start_central`).
        renew: what the model is given is made anew before each round, from its weights and what is public (`renewed`).
    """
    run = settings.run
    optimizer = ServerOptimizer(
        run.federation.server_optimizer, moments=progress.moments, second_moments=progress.second_moments
    )
    if run.statistics is not None and progress.statistics is None:
        _have_statistics(transport, progress, plan=roster.plan, settings=settings, folder=folder, attempt=attempt)
    _have_first_score(progress, model=model, validation=validation, run=run)
    while progress.round_number < run.federation.rounds:
        if _patience_is_over(progress, run=run):
            return progress, "early"
        _wait_for_sites(transport, roster=roster, run=run, number=progress.round_number + 1, say=say)
        try:
            record = _one_round(
                transport,
                progress,
                optimizer,
                model=model,
                plan=roster.plan,
                settings=settings,
                validation=validation,
                folder=folder,
                attempt=attempt,
                central=central,
                renew=renew,
            )
        except BudgetError as error:
            if progress.round_number == 0:
                raise
            log.warning("the run ends after round %d: %s", progress.round_number, error)
            return progress, "early"
        progress.history.append(record)
        save_progress(progress, folder=folder, run_digest=run.digest)
        tell(record)
    return progress, "completed"


def _wait_for_sites(
    transport: Transport, *, roster: Roster, run: RunConfig, number: int, say: Callable[[str], None]
) -> None:
    """Whoever came late is let in; a round that nearly nobody could answer is not begun.

    Raises:
        RunError: as `wait_for_enough`, or as `Roster.take_in`.
    """

    def sites() -> tuple[str, ...]:
        roster.take_in(transport.newcomers(), next_round=number, say=say)
        return roster.plan.possible(number)

    wait_for_enough(
        transport,
        sites=sites,
        needed=run.federation.min_sites,
        round_number=number,
        timeout_s=run.federation.pause_s,
        say=say,
    )


def chosen(progress: Progress, *, run: RunConfig) -> tuple[int, Weights]:
    """Round and weights of the model that is kept."""
    if run.federation.select == "best":
        return progress.best_round, progress.best_weights
    return progress.round_number, progress.weights


def load_weights(model: MultimodalModel, weights: Weights) -> None:
    """Put weights, and what a model is given, into it by name."""
    with torch.no_grad():
        for name, value in weights.items():
            tensor_of(model, name).copy_(value)


def renewed(model: MultimodalModel, weights: Weights, *, renew: Renew) -> Weights:
    """The weights with what the model is given made anew; nothing that trains can be changed by it.

    Raises:
        ModelError: what came is not given, or of another shape or type.
    """
    load_weights(model, weights)
    model.eval()
    allowed = given_names(model, model.modalities)
    with torch.no_grad():
        made = {name: value.detach().clone() for name, value in renew(model).items()}
    for name, value in made.items():
        fits = name in allowed and (value.shape, value.dtype) == (weights[name].shape, weights[name].dtype)
        if not fits:
            raise ModelError(
                f"{name}: came as {value.dtype} {list(value.shape)} from what renews the given tensors; allowed: "
                f"{', '.join(allowed) or 'none, the model is given nothing'}, in their own shapes and float32"
            )
    return weights | made


def _one_round(
    transport: Transport,
    progress: Progress,
    optimizer: ServerOptimizer,
    *,
    model: MultimodalModel,
    plan: Plan,
    settings: ServerSettings,
    validation: Samples,
    folder: Path,
    attempt: int,
    central: Central | None,
    renew: Renew | None,
) -> RoundRecord:
    run, number, began = settings.run, progress.round_number + 1, time.monotonic()
    if renew is not None:
        progress.weights = renewed(model, progress.weights, renew=renew)
    asked, site_epsilon = participants(plan, central, number=number, attempt=attempt, folder=folder)
    requests = _requests(asked, progress, plan=plan, settings=settings, attempt=attempt)
    shares = ModalityShares(plan, model=model) if run.federation.weighting == "modality" else None
    intake = Intake(progress, run=run, central=central, shares=shares)
    for site, reply in transport.train(requests, timeout_s=run.federation.round_timeout_s):
        intake.take(site, reply, request=requests[site])
        del reply  # or its update would be held while the next one is made
    clip_norm, site_clip_norm = progress.clip_norm, progress.site_clip_norm
    progress.round_number += 1
    update_norm = _step(progress, optimizer, update=intake.settle())
    scores = None
    if number % run.evaluation.every_rounds == 0 or number == run.federation.rounds:
        scores = _scores(model, progress.weights, samples=validation, run=run)
        _remember_best(progress, scores, run=run)
    return RoundRecord(
        round=number,
        # PRIVACY: how long a round took tells how many sites were in it. test_records_do_not_tell_who_was_drawn
        seconds=0.0 if plan.rounds is None else time.monotonic() - began,
        sites=intake.lines(plan),
        validation=scores,
        update_norm=update_norm,
        clip_norm=clip_norm,
        site_clip_norm=site_clip_norm,
        site_epsilon=site_epsilon,
        aggregated=intake.note,
    )


def _have_first_score(progress: Progress, *, model: MultimodalModel, validation: Samples, run: RunConfig) -> None:
    """What a round has to be better than: the model before any."""
    if progress.round_number == 0 and progress.best_score is None:
        untrained = _scores(model, progress.weights, samples=validation, run=run)
        progress.best_score = selection_score(untrained, data=run.data)


def _have_statistics(
    transport: Transport, progress: Progress, *, plan: Plan, settings: ServerSettings, folder: Path, attempt: int
) -> None:
    progress.statistics = _ask_statistics(transport, plan=plan, settings=settings, attempt=attempt)
    # on the disk before round 1: whoever was asked has paid, and is not asked twice
    save_progress(progress, folder=folder, run_digest=settings.run.digest)


def _ask_statistics(
    transport: Transport, *, plan: Plan, settings: ServerSettings, attempt: int
) -> dict[str, StatisticsReply]:
    """Noisy counts of the sites that gave any."""
    run = settings.run
    requests = {
        site: StatisticsHeader(
            protocol_version=PROTOCOL_VERSION,
            run=run,
            run_id=settings.run_id,
            attempt=attempt,
            planned_rounds=planned,
        )
        for site, planned in plan.planned.items()
    }
    answers = transport.statistics(
        requests, num_counts=len(count_names(run.data)), timeout_s=run.federation.round_timeout_s
    )
    judged = {site: judge_statistics(answers[site], run=run, run_id=settings.run_id) for site in sorted(requests)}
    for site, answer in judged.items():
        if not isinstance(answer, StatisticsReply):
            log.warning("%s gave no counts: %s", site, answer.code)
    return {site: answer for site, answer in judged.items() if isinstance(answer, StatisticsReply)}


def _requests(
    asked: Sequence[str], progress: Progress, *, plan: Plan, settings: ServerSettings, attempt: int
) -> dict[str, TrainRequest]:
    """What each site is asked; one object for all that are asked the same."""
    made: dict[tuple[int, Exchange], TrainRequest] = {}
    requests: dict[str, TrainRequest] = {}
    for site in asked:
        planned, exchange = key = (plan.planned[site], plan.exchanges[site])
        if key not in made:
            header = RequestHeader(
                protocol_version=PROTOCOL_VERSION,
                run=settings.run,
                run_id=settings.run_id,
                round_number=progress.round_number + 1,
                attempt=attempt,
                planned_rounds=planned,
                clip_norm=progress.clip_norm,
                site_clip_norm=progress.site_clip_norm,
            )
            weights = {name: progress.weights[name] for name in exchange.sent}
            made[key] = TrainRequest(header, weights=weights, kept=(*exchange.personal, *exchange.given))
        requests[site] = made[key]
    return requests


def _step(progress: Progress, optimizer: ServerOptimizer, *, update: Weights | None) -> float | None:
    """Step the model by an average update; the L2 norm of the step, None where there was none."""
    if update is None:
        return None
    new = optimizer.step(progress.weights, update=update)
    norm = _norm({name: new[name] - progress.weights[name] for name in update})
    progress.weights = new
    progress.moments, progress.second_moments = optimizer.moments, optimizer.second_moments
    return norm


def _scores(model: MultimodalModel, weights: Weights, *, samples: Samples, run: RunConfig) -> Scores:
    load_weights(model, weights)
    return score(model, samples, run=run)


def _remember_best(progress: Progress, scores: Scores, *, run: RunConfig) -> None:
    now = selection_score(scores, data=run.data)
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
