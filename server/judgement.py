"""Judgement: whether a reply is what was asked for; one that is not is left out, and the round goes on.

in        replies that wire.py found to have the agreed form, and the request of each
out       the reply, or a Failure with a code
relies on a site's own word for how it protected its update: nobody else was there
"""

from dataclasses import dataclass
from typing import Literal

from shared.config import PrivacySettings, RunConfig
from shared.messages import PrivacyStatement, Refusal, StatisticsReply, TrainReply, TrainRequest


@dataclass(frozen=True)
class Failure:
    """A site whose reply cannot be used, and why."""

    outcome: Literal["failed", "late", "invalid"]
    code: str


LARGEST_NOMINAL_SIZE, LARGEST_STEPS = 10**12, 100_000
"""of a site, and of one round there; more is a mistake or an attack, and would take days to account for"""
LEAST_NOISE, LARGEST_NOISE = 1e-6, 1e6
"""noise multipliers that any accountant can be asked about; the largest is the largest that is ever calibrated"""
LEAST_DELTA = 1e-100

Reply = TrainReply | Refusal | Failure
StatisticsAnswer = StatisticsReply | Refusal | Failure


def judge(reply: Reply, *, request: TrainRequest) -> Reply:
    """A reply that belongs to this round and run and is protected as the run asks; or why it is not used."""
    if not isinstance(reply, TrainReply):
        return reply
    header, asked = reply.header, request.header
    if (header.run_id, header.round_number) != (asked.run_id, asked.round_number):
        return Failure("invalid", "another-round")
    if not is_plausible_size(header.nominal_size, run=asked.run):
        return Failure("invalid", "fields-differ")
    local, central = asked.run.local_privacy, asked.run.central_privacy
    clip_norm = asked.clip_norm if asked.clip_norm is not None else local.clip_norm if local else None
    keeps = _keeps(header.privacy, asked=local, clip_norm=clip_norm)
    if not keeps or not _follows(header.privacy, run=asked.run, nominal_size=header.nominal_size):
        return Failure("invalid", "privacy-differs")
    for value, privacy in ((header.unclipped_share, local), (header.is_within_clip, central)):
        if (value is not None) != (privacy is not None and privacy.clipping == "adaptive"):
            return Failure("invalid", "fields-differ")
    return reply


def is_plausible_size(nominal_size: int, *, run: RunConfig) -> bool:
    """Whether a site of the size that it declares can train in this run, and be accounted for."""
    return nominal_size <= LARGEST_NOMINAL_SIZE and run.training.steps(nominal_size) <= LARGEST_STEPS


def judge_statistics(reply: StatisticsAnswer, *, run: RunConfig, run_id: str) -> StatisticsAnswer:
    """Noisy counts that belong to this run, with at least the noise that it asks; or why they are not used."""
    if not isinstance(reply, StatisticsReply):
        return reply
    if reply.run_id != run_id:
        return Failure("invalid", "another-round")
    said, local, asked = reply.privacy, run.local_privacy, run.statistics
    is_same = local is not None and asked is not None and said.noise_multiplier >= asked.noise_multiplier
    if not (is_same and _protects(said, asked=local) and _is_measured(said)):
        return Failure("invalid", "privacy-differs")
    return reply


def _keeps(said: PrivacyStatement | None, *, asked: PrivacySettings | None, clip_norm: float | None) -> bool:
    """Whether a site protected its update as the run asks, or more strictly."""
    if said is None or asked is None:
        return said is None and asked is None
    return _protects(said, asked=asked) and said.clip_norm == clip_norm and said.clipping == asked.clipping


def _protects(said: PrivacyStatement, *, asked: PrivacySettings | None) -> bool:
    """Whether a statement is about the run's unit or a stricter one, at its delta, by its accountant."""
    if asked is None:
        return False
    is_weaker = asked.unit == "subject" and said.unit == "record"
    return not is_weaker and said.delta <= asked.delta and said.accountant == asked.accountant


def _follows(said: PrivacyStatement | None, *, run: RunConfig, nominal_size: int) -> bool:
    """Whether rate and steps are those of the run at a site of this size, and the rest can be composed.

    Made-up ones would stop the report, or take days to compose.
    """
    if said is None:
        return True
    planned = (run.training.sampling(nominal_size), run.training.steps(nominal_size))
    return (said.sample_rate, said.steps_per_round) == planned and _is_measured(said)


def _is_measured(said: PrivacyStatement) -> bool:
    """Whether noise and delta are of a size for which epsilon can be computed."""
    return LEAST_NOISE <= said.noise_multiplier <= LARGEST_NOISE and said.delta >= LEAST_DELTA
