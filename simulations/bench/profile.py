"""Profile: where the time of Motet's own contenders goes, by stage of a round or by operator of a step.

in        `python -m simulations.bench.profile round mlp`, `... cohort text --batch 8`, `... step cnn --batch 64`
out       a table on standard output
relies on one core, and on Python's profiler for stages, which makes Python dearer than it is: shares, not times
"""

import argparse
import cProfile
import pstats
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from unittest import mock

import torch

from shared.errors import RunError
from simulations.bench import motet_job
from simulations.bench.alternate import Job
from simulations.bench.clock import Clock
from simulations.bench.models import RECIPES
from simulations.bench.peers import job

SITES, ROUNDS, FIRST = 100, 12, 3
"""of the common job; rounds before FIRST are warm-up"""
OPERATORS, REPEATS = 10, 5

WHOLE = ("server/rounds.py", "_one_round")
STAGES: Mapping[str, tuple[str, str]] = {
    "training": ("client/cohort_training.py", "train_cohort"),
    "settings read, rounds permitted": ("client/cohort_entry.py", "opened_sites"),
    "rounds charged in the ledger": ("client/cohort_entry.py", "reserved_sites"),
    "samples found": ("client/cohort_loading.py", "loaded_sites"),
    "updates bounded": ("client/bounded.py", "bounded"),
    "rounds closed in the ledger": ("client/cohort.py", "_release"),
    "requests and replies carried, checked": ("server/strategy.py", "_answer"),
    "updates judged and added": ("server/intake.py", "take"),
    "checkpoint": ("server/checkpoint.py", "save_progress"),
}
"""stage -> the file and function that it is; none is part of another"""


def stages(model: str, *, sites: int = SITES, rounds: int = ROUNDS) -> dict[str, float]:
    """Share of each stage in a round of the common job, without privacy; the last entry is what none of them is.

    Raises:
        RunError: a stage's function was never called, so that its name here is old.
    """
    profiler, marks = cProfile.Profile(), 0

    class Profiled(Clock):
        def mark(self) -> None:
            nonlocal marks
            profiler.disable()
            super().mark()
            marks += 1
            if marks > FIRST:
                profiler.enable()

    with tempfile.TemporaryDirectory() as folder, mock.patch.object(motet_job, "Clock", Profiled):
        data = motet_job.write_data_set(Path(folder) / "data", sites=sites)
        motet_job.main([str(data), "--model", model, "--rounds", str(rounds)])
    profiler.disable()
    spent = {(Path(file).as_posix(), name): row[3] for (file, _, name), row in pstats.Stats(profiler).stats.items()}  # type: ignore[attr-defined]
    whole = _of(spent, WHOLE)
    shares = {stage: _of(spent, where) / whole for stage, where in STAGES.items()}
    return {**shares, "the rest": 1 - sum(shares.values())}


def operators(run: Job) -> dict[str, float]:
    """Share of torch's operators in a job, the largest ones; the last entry is Python and all others."""
    run()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        for _ in range(REPEATS):
            with torch.profiler.record_function("whole"):
                run()
    found = {each.key: each for each in profiler.key_averages()}
    whole = found.pop("whole").cpu_time_total
    largest = sorted(found.values(), key=lambda each: -each.self_cpu_time_total)[:OPERATORS]
    shares = {each.key: each.self_cpu_time_total / whole for each in largest}
    return {**shares, "the rest": 1 - sum(shares.values())}


def _of(spent: Mapping[tuple[str, str], float], where: tuple[str, str]) -> float:
    file, name = where
    found = [seconds for (path, function), seconds in spent.items() if path.endswith(file) and function == name]
    if len(found) != 1:
        raise RunError(f"the profile has {len(found)} functions {name} of {file}; allowed: one")
    return found[0]


def _job(options: argparse.Namespace, folder: Path) -> Job:
    from simulations.bench import cohort, step

    if options.what == "step":
        return step.preparing(options.model, batch=options.batch)[step.MOTET[0]]()
    return cohort.preparing(options.model, batch=options.batch, folder=folder)[cohort.ONE_THREAD]()


def main(words: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("round", "cohort", "step"))
    parser.add_argument("model", choices=sorted({*RECIPES, *job.MODELS}))
    parser.add_argument("--batch", type=int, default=8, help="of cohort and step")
    options = parser.parse_args(words)
    allowed = job.MODELS if options.what == "round" else RECIPES
    if options.model not in allowed:
        parser.error(f"{options.model}: no model of {options.what}; allowed: {', '.join(sorted(allowed))}")
    torch.set_num_threads(1)
    if options.what == "round":
        shares = stages(options.model)
    else:
        with tempfile.TemporaryDirectory() as folder:
            shares = operators(_job(options, Path(folder)))
    print(f"| {options.what}, {options.model} | share |\n| --- | ---: |")
    for name, share in shares.items():
        print(f"| {name} | {share:.0%} |")


if __name__ == "__main__":
    main()
