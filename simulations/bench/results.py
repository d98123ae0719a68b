"""Results: what a benchmark measured, as a file that says on what, with what and how it spread.

in        samples that harness.py gathered
out       BenchResult in results/NAME.json, read by table.py and page.py
relies on nothing; a contender has times or a reason why it has none, never both
"""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from pydantic import Field, model_validator

from shared.settings import Settings, parse_settings_json

RESULTS = Path(__file__).parent / "results"


class Spread(Settings):
    """Seconds: the middle of the samples, the smallest, and the quartiles."""

    median: float = Field(ge=0)
    smallest: float = Field(ge=0)
    lower_quartile: float = Field(ge=0)
    upper_quartile: float = Field(ge=0)
    samples: int = Field(ge=1)


class Measured(Settings):
    """One contender in one case."""

    contender: str
    wall_s: Spread | None = None
    cpu_s: Spread | None = None
    """of the process and all that it started"""
    peak_memory_bytes: int | None = None
    """of the same processes together; None where several contenders share one"""
    numbers: dict[str, float] = Field(default={})
    why_not: str = ""

    @model_validator(mode="after")
    def _times_or_a_reason(self) -> "Measured":
        if (self.wall_s is None) == (not self.why_not):
            raise ValueError("wall_s and why_not: exactly one of them must be set")
        return self


class Goal(Settings):
    """What one contender is to reach: so many times the time of the best of others, or so many seconds."""

    contender: str
    against: tuple[str, ...] = Field(default=(), description="contenders; the fastest of those that ran counts")
    times: float | None = Field(default=None, gt=0, description="at most so many times the time of the best")
    seconds: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _one_kind(self) -> "Goal":
        if (self.times is None) == (self.seconds is None) or (self.times is None) == bool(self.against):
            raise ValueError("times with against, or seconds; exactly one of them must be set")
        return self


class CaseResult(Settings):
    """The same job by several contenders."""

    case: str
    measured: tuple[Measured, ...]
    goals: tuple[Goal, ...] = ()

    def of(self, contender: str) -> Measured:
        """What a contender did here."""
        return next(each for each in self.measured if each.contender == contender)


class Machine(Settings):
    """What the numbers were taken on."""

    processor: str
    cores: int
    memory_bytes: int
    system: str
    load: float
    """of the last minute, before the first sample"""


class BenchResult(Settings):
    """One benchmark, once run."""

    benchmark: str
    about: str
    time_of: str
    """what one time is the time of: a round, a step"""
    started: str
    """UTC, ISO 8601"""
    repeats: int
    quick: bool
    machine: Machine
    versions: dict[str, str]
    commit: str
    tree_is_clean: bool
    cases: tuple[CaseResult, ...]


def spread(samples: Iterable[float]) -> Spread:
    """What is told of some samples; quartiles by linear interpolation."""
    values = sorted(samples)
    lower, _, upper = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return Spread(
        median=statistics.median(values),
        smallest=values[0],
        lower_quartile=lower,
        upper_quartile=upper,
        samples=len(values),
    )


def write_result(result: BenchResult, *, folder: Path = RESULTS) -> Path:
    """FOLDER/NAME.json."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{result.benchmark}.json"
    path.write_text(result.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return path


def read_results(names: Sequence[str], *, folder: Path = RESULTS) -> Mapping[str, BenchResult]:
    """Those of the named benchmarks that are stored, in the order of their names' list."""
    found = {}
    for name in names:
        path = folder / f"{name}.json"
        if path.is_file():
            found[name] = parse_settings_json(BenchResult, path.read_text(encoding="utf-8"), place=str(path))
    return found
