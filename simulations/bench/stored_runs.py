"""Stored runs: many runs of scenarios, each a line of a results file as soon as it ends, none of them made twice.

in        jobs in their order, what runs one, the results file
out       outcomes, those from before and those made now
relies on a line being written whole; whoever stops a benchmark goes on with it by the same words
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

from shared.settings import AnySettings, Settings, parse_settings_json


@runtime_checkable
class _HasJob(Protocol):
    @property
    def job(self) -> Settings: ...

    def model_dump_json(self) -> str: ...


_Job = TypeVar("_Job", bound=Settings)
_Outcome = TypeVar("_Outcome", bound=_HasJob)


def stored_runs(path: Path, *, kind: type[AnySettings]) -> list[AnySettings]:
    """The runs that a results file holds; none where there is no file.

    Raises:
        ConfigError: a line is no outcome.
    """
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [parse_settings_json(kind, line, place=f"{path}: line {n}") for n, line in enumerate(lines, start=1)]


def run_missing(
    jobs: Iterable[_Job],
    *,
    done: Sequence[_Outcome],
    run: Callable[[_Job], _Outcome],
    path: Path,
    told: Callable[[_Outcome], str],
) -> list[_Outcome]:
    """Runs those that are not done yet and keeps each as soon as it has ended; all outcomes come back.

    Args:
        told: the line that is printed of an outcome.
    """
    found = list(done)
    known = [each.job for each in found]
    for job in jobs:
        if job in known:
            continue
        outcome = run(job)
        found.append(outcome)
        with path.open("a", encoding="utf-8") as file:
            file.write(outcome.model_dump_json() + "\n")
        print(told(outcome), flush=True)
    return found


def sources_of(words: Sequence[str]) -> dict[str, Path]:
    """DATA=PATH, as --from has it: data set -> where its public source is."""
    return {name: Path(path).expanduser().resolve() for name, _, path in (word.partition("=") for word in words)}


def simulate_words(scenario: str, *, source: Path | None, out: Path, changes: Sequence[str]) -> list[str]:
    """The words of `motet simulate` that a run is started with."""
    words = ["simulate", scenario, "--out", str(out)]
    words += ["--from", str(source)] if source else []
    return words + [word for change in changes for word in ("--set", change)]
