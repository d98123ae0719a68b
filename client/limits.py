"""Limits: how much one run may ask of this site, beside what the budget pays for.

in        the owner's `[limits]`, and a request's run with the owner's own parts registered
out       nothing where all of it is within; else a refusal that names each limit, for the owner's log
relies on shared/privacy/ledger.py for what is counted over rounds: `rounds` and `rounds_a_day`
"""

from collections.abc import Iterator

from pydantic import Field

from shared.config import RunConfig, TrainingSettings
from shared.errors import PermissionRefused
from shared.messages import RequestHeader, StatisticsHeader
from shared.model.registry import encoder_registry
from shared.settings import Settings

_Names = tuple[str, ...] | None
_INNER = "image"
"""option of an encoder of clips that names the encoder of its pictures"""


class OwnerLimits(Settings):
    """What one run may ask; what is not set is not limited, but for memory."""

    encoders: _Names = Field(default=None, description="those that runs may name")
    fusions: _Names = Field(default=None, description="those that runs may name")
    heads: _Names = Field(default=None, description="those that runs may name")
    epsilon: float | None = Field(default=None, gt=0, description="largest that a run may ask for")
    rounds: int | None = Field(default=None, ge=1, description="most of one run")
    rounds_a_day: int | None = Field(default=None, ge=1, description="most in 24 hours, all runs together")
    local_steps: int | None = Field(default=None, ge=1, description="most in one round")
    rows_a_round: int | None = Field(
        default=None, ge=1, description="most expected in all steps of a round, each counted as often as it is used"
    )
    memory_gib: float = Field(
        default=4.0, gt=0, description="most that nominal_size prepared rows take; judged by public numbers alone"
    )
    cache_gib: float = Field(
        default=16.0, gt=0, description="most that prepared rows take on the disk; those of earlier runs leave first"
    )
    run_ids: _Names = Field(default=None, description="patterns of permitted ids of runs, such as study-7-*")
    run_names: _Names = Field(default=None, description="patterns of permitted names of runs")


def refuse_beyond_limits(header: RequestHeader | StatisticsHeader, run: RunConfig, *, limits: OwnerLimits) -> None:
    """Turns away a run that asks for what the owner has excluded.

    Raises:
        PermissionRefused: naming each limit that it passes.
    """
    passed = [*_parts(run, limits=limits), *_sizes(header, run, limits=limits), *_names(header, run, limits=limits)]
    if passed:
        raise PermissionRefused("; ".join(passed))


def refuse_too_much_work(training: TrainingSettings, *, units: int, limits: OwnerLimits) -> None:
    """Turns away a round that would keep the machine longer than its owner permits.

    Args:
        units: the site's public number of what is sampled.

    Raises:
        PermissionRefused: naming each limit that it passes.
    """
    steps = training.steps(units)
    copies = training.augment_multiplicity * training.records_per_subject
    rows = steps * training.sampling(units) * units * copies
    asked = {"local_steps": (steps, limits.local_steps), "rows_a_round": (round(rows), limits.rows_a_round)}
    passed = [_beyond(name, came, most) for name, (came, most) in asked.items() if most is not None and came > most]
    if passed:
        raise PermissionRefused("; ".join(passed))


def _parts(run: RunConfig, *, limits: OwnerLimits) -> Iterator[str]:
    named = {
        "encoders": [name for modality in run.model.encoders for name in _encoders(run, modality)],
        "fusions": [run.model.fusion.name],
        "heads": [run.model.head.name],
    }
    for field, names in named.items():
        allowed: _Names = getattr(limits, field)
        if allowed is not None and (others := sorted(set(names) - set(allowed))):
            yield f"limits.{field}: the run names {others}; allowed: {list(allowed)}"


def _encoders(run: RunConfig, modality: str) -> Iterator[str]:
    """The encoder of a modality, and the one inside it."""
    encoder = run.model.encoders[modality]
    yield encoder.name
    inner = encoder_registry.get(encoder.name, takes=run.data.modalities[modality].kind).options.model_fields.get(
        _INNER
    )
    if inner is not None:
        yield str(encoder.options.get(_INNER, inner.default))


def _sizes(header: RequestHeader | StatisticsHeader, run: RunConfig, *, limits: OwnerLimits) -> Iterator[str]:
    rounds = max(run.federation.rounds, header.planned_rounds)
    if limits.rounds is not None and rounds > limits.rounds:
        yield _beyond("rounds", rounds, limits.rounds)
    for privacy in (run.local_privacy, run.central_privacy):
        if limits.epsilon is not None and privacy is not None and privacy.epsilon > limits.epsilon:
            yield _beyond("epsilon", privacy.epsilon, limits.epsilon)


def _names(header: RequestHeader | StatisticsHeader, run: RunConfig, *, limits: OwnerLimits) -> Iterator[str]:
    for field, name, patterns in (
        ("run_ids", header.run_id, limits.run_ids),
        ("run_names", run.name, limits.run_names),
    ):
        if patterns is not None and not any(matches(name, pattern) for pattern in patterns):
            yield f"limits.{field}: it is {name!r}; allowed: {list(patterns)}"


def _beyond(field: str, came: int | float, most: int | float) -> str:
    return f"limits.{field}: the run asks for {came:g}; allowed: {most:g}"


def matches(name: str, pattern: str) -> bool:
    """Whether a name is as a pattern says, in which * stands for anything; in linear time."""
    first, *rest = pattern.split("*")
    if not rest:
        return name == first
    *middle, last = rest
    if not name.startswith(first):
        return False
    place = len(first)
    for piece in middle:
        place = name.find(piece, place)
        if place < 0:
            return False
        place += len(piece)
    return len(name) - place >= len(last) and name.endswith(last)
