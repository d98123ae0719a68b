"""Missing modalities: F1 where sites lack a tenth to half of their modalities, private and not, as a table.

in        scenarios with their data sets; --from DATA=PATH for those that need a public source
out       a line for each run in results/missing.jsonl, kept as soon as the run ends, and a table of them
relies on `motet simulate` for the runs; a run whose line is stored is not run again

    python -m simulations.bench.missing --from har=PATH --from mosi=PATH --from tuxpaint=PATH
    python -m simulations.bench.missing --table
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field

from server.compare import result_lines
from server.settings import read_settings
from shared.errors import ConfigError
from shared.manifest import read_manifest
from shared.settings import Settings
from simulations.bench.machine import commit
from simulations.bench.results import RESULTS
from simulations.bench.stored_runs import run_missing, simulate_words, sources_of, stored_runs
from simulations.scenario import read_card

RATES = (0.0, 0.1, 0.3, 0.5)
SEEDS = (0, 1, 2)
ROOT = Path(__file__).parents[2]
Privacy = Literal["none", "epsilon 8"]


@dataclass(frozen=True)
class Case:
    """A data set, the modalities that the model takes, and settings of the runs over it."""

    scenario: str
    modalities: tuple[str, ...]
    changes: tuple[str, ...] = ()
    """to every run"""
    private: tuple[str, ...] = ()
    """to the private ones"""
    without_privacy: tuple[str, ...] = ()
    """to the others, beside run.privacy=none"""
    data_follows_seed: bool = True
    """each seed draws its own split, as in docs/results.md"""


CASES: Mapping[str, Case] = {
    "moods": Case(
        "moods",
        ("image", "text", "audio"),
        without_privacy=(
            "run.training.optimizer=adam",
            "run.training.learning_rate=0.01",
            "run.training.sample_rate=0.1",
            "run.training.local_steps=10",
            "run.federation.rounds=20",
            "run.federation.server_optimizer.name=fedavg",
        ),
        data_follows_seed=False,
    ),
    "har": Case("har", ("acceleration", "gyroscope"), without_privacy=("run.federation.rounds=60",)),
    "mosi": Case(
        "mosi",
        ("text", "audio"),
        # the published audio vectors were made without labels; text_features and video were not: docs/decisions/0004
        changes=(
            'run.model.encoders.audio={ name = "linear", options = { normalise_input = true, from_zero = true } }',
        ),
        without_privacy=("run.training.learning_rate=0.08",),
    ),
    "tuxpaint": Case(
        "tuxpaint",
        ("image", "english"),
        # those of the scenario tuxpaint-open
        without_privacy=("run.training.learning_rate=0.008", "run.federation.rounds=60"),
    ),
}


class Job(Settings):
    """One run of the grid."""

    data: str
    by: Literal["site", "row"]
    missing: float
    privacy: Privacy
    seed: int


class Outcome(Settings):
    """What one run gave."""

    job: Job
    macro_f1: tuple[float, float, float] = Field(description="on the test part: value and 95 % interval")
    validation_macro_f1: float
    accuracy: float
    by_modalities: dict[str, float] = Field(description="main number of the test part with only these shown")
    present: dict[str, float] = Field(description="modality -> share of the rows at sites that have it")
    epsilon: float | None
    settings: str
    """digest of the run's settings"""
    commit: str


def grid(
    *, data: Sequence[str], by: Sequence[str], seeds: Sequence[int], rates: Sequence[float] = RATES
) -> Iterator[Job]:
    """All runs: first whole tables of the first seed. With no rate, `by` makes no difference and is "site"."""
    for seed in seeds:
        for way in by:
            for name in data:
                for rate in rates:
                    for privacy in ("none", "epsilon 8"):
                        if rate or way == "site":
                            yield Job.model_validate(
                                {"data": name, "by": way, "missing": rate, "privacy": privacy, "seed": seed}
                            )


def words_of(job: Job, *, source: Path | None, out: Path) -> list[str]:
    """The words of `motet simulate` that a run is started with."""
    case = CASES[job.data]
    changes = [*case.changes, f"run.seed={job.seed}"]
    if case.data_follows_seed:
        changes.append(f"source.seed={job.seed}")
    if job.missing:
        changes += [
            f"source.missing={job.missing}",
            f"source.missing_by={job.by}",
            f"source.missing_seed={job.seed}",
        ]
    changes += ["run.privacy=none", *case.without_privacy] if job.privacy == "none" else case.private
    return simulate_words(case.scenario, source=source, out=out, changes=changes)


def run(job: Job, *, source: Path | None) -> Outcome:
    """Run it in a process of its own and read its record.

    Raises:
        CalledProcessError: the run failed; what it said is on the terminal.
    """
    with tempfile.TemporaryDirectory(prefix="motet-missing-") as work:
        folder = Path(work) / "run"
        command = [sys.executable, "-m", "motet", *words_of(job, source=source, out=folder)]
        subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)  # noqa: S603
        (line,) = result_lines([folder])
        found = json.loads(line)
        present = _present(read_settings(folder).held_out.parent, names=CASES[job.data].modalities)
    return Outcome(
        job=job,
        macro_f1=tuple(found["test"]["macro_f1"]),
        validation_macro_f1=found["validation"]["macro_f1"][0],
        accuracy=found["test"]["accuracy"][0],
        by_modalities=found["by_modalities"],
        present=present,
        epsilon=found["epsilon"],
        settings=found["settings"],
        commit=commit(ROOT),
    )


def _present(data_set: Path, *, names: Sequence[str]) -> dict[str, float]:
    card = read_card(data_set)
    if card is None:
        raise ConfigError(f"{data_set}: has no dataset.toml")
    rows = [
        row for site in sorted((data_set / "sites").iterdir()) for row in read_manifest(site, schema=card.content).rows
    ]
    return {name: round(sum(name in row.values for row in rows) / len(rows), 4) for name in names}


def stored(path: Path) -> list[Outcome]:
    """The runs that a results file holds."""
    return stored_runs(path, kind=Outcome)


def table(outcomes: Sequence[Outcome], *, by: str) -> list[str]:
    """Mean and standard deviation over the seeds there are, and how many these are where not all three."""
    lines = ["| macro-F1 | | " + " | ".join(f"{rate:.0%}" for rate in RATES) + " |", "| --- | --- |" + " ---: |" * 4]
    for data in CASES:
        for privacy in ("none", "epsilon 8"):
            cells = []
            for rate in RATES:
                ways = ("site",) if rate == 0 else (by,)
                found = [
                    each.macro_f1[0]
                    for each in outcomes
                    if (each.job.data, each.job.privacy, each.job.missing) == (data, privacy, rate)
                    and each.job.by in ways
                ]
                cells.append(_cell(found))
            if any(cells):
                lines.append(f"| `{data}` | {privacy} | " + " | ".join(cells) + " |")
    return lines


def _cell(values: Sequence[float]) -> str:
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.3f}".replace(" 0.", " .") if len(values) > 1 else ""
    seeds = "" if len(values) == len(SEEDS) else f" ({len(values)})"
    return f"{statistics.mean(values):.3f}".removeprefix("0") + spread + seeds


def main(words: Sequence[str] | None = None) -> None:
    """Run what is not stored yet, and print the tables."""
    parser = argparse.ArgumentParser(prog="python -m simulations.bench.missing", description=__doc__)
    parser.add_argument("--from", dest="sources", action="append", default=[], metavar="DATA=PATH")
    parser.add_argument("--data", nargs="*", choices=tuple(CASES), default=list(CASES))
    parser.add_argument("--by", nargs="*", choices=("site", "row"), default=["site", "row"])
    parser.add_argument("--rates", nargs="*", type=float, choices=RATES, default=list(RATES))
    parser.add_argument("--seeds", nargs="*", type=int, default=list(SEEDS))
    parser.add_argument("--out", type=Path, default=RESULTS / "missing.jsonl")
    parser.add_argument("--table", action="store_true", help="run nothing")
    options = parser.parse_args(words)
    sources = sources_of(options.sources)
    jobs = grid(data=options.data, by=options.by, seeds=options.seeds, rates=options.rates)
    found = run_missing(
        () if options.table else jobs,
        done=stored(options.out),
        run=lambda job: run(job, source=sources.get(job.data)),
        path=options.out,
        told=_told,
    )
    for by in ("site", "row"):
        print("\n".join(["", f"Missing by {by}:", "", *table(found, by=by)]))


def _told(outcome: Outcome) -> str:
    job = outcome.job
    return f"{job.data} {job.by} {job.missing:.0%} {job.privacy} seed {job.seed}: {outcome.macro_f1[0]:.3f}"


if __name__ == "__main__":
    main()
