"""Round totals: what report.json keeps of a round; what each site did in it stays in metrics.jsonl alone.

in        a RoundRecord
out       RoundTotals: the round's own numbers, how many sites came to what, and a digest over the whole of it
relies on metrics_line giving the same round the same line, on every machine

An entry for each site and round is forty megabytes for a thousand sites in five hundred rounds; the digest binds them.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence

from pydantic import Field

from server.history import metrics_line
from server.records import Outcome, RoundRecord, Scores
from shared.settings import Settings


class RoundTotals(Settings):
    """One round in report.json; names shared with RoundRecord mean the same."""

    round: int = Field(ge=1)
    seconds: float
    outcomes: dict[Outcome, int]
    """how many sites came to what"""
    highest_epsilon: float | None = None
    """of all sites' statements in this round"""
    line_digest: str
    """SHA-256 of the round's line in metrics.jsonl, as this version writes it"""
    validation: Scores | None = None
    update_norm: float | None = None
    clip_norm: float | None = None
    site_clip_norm: float | None = None
    site_epsilon: float | None = None


def round_totals(rounds: Sequence[RoundRecord]) -> tuple[RoundTotals, ...]:
    """What report.json keeps of each round."""
    return tuple(map(_totals, rounds))


def _totals(record: RoundRecord) -> RoundTotals:
    epsilons = [entry.epsilon for entry in record.sites if entry.epsilon is not None]
    return RoundTotals(
        round=record.round,
        seconds=record.seconds,
        outcomes=dict(Counter(entry.outcome for entry in record.sites)),
        highest_epsilon=max(epsilons, default=None),
        validation=record.validation,
        update_norm=record.update_norm,
        clip_norm=record.clip_norm,
        site_clip_norm=record.site_clip_norm,
        site_epsilon=record.site_epsilon,
        line_digest=hashlib.sha256(metrics_line(record).encode()).hexdigest(),
    )
