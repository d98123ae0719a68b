"""Harness: programs that do the same job take turns, and what each says of itself is gathered.

in        a Benchmark: cases, each with programs; each program measures one contender or several
out       BenchResult: medians, smallest and quartiles over all repeats, peak memory, and a reason where a number is not
relies on clock.py's lines in what a program prints, and on the machine having little else to do
"""

import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from simulations.bench.clock import MARK, tree, tree_resident_bytes
from simulations.bench.machine import commit, machine, tree_is_clean, versions
from simulations.bench.results import BenchResult, CaseResult, Goal, Measured, spread

ROOT = Path(__file__).resolve().parents[2]
_LOOK_EVERY_S = 0.2


@dataclass(frozen=True)
class Program:
    """A command that measures contenders and prints a line for each."""

    contenders: tuple[str, ...]
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=lambda: {"OMP_NUM_THREADS": "1"})
    cores: int | None = None
    """runs on the first so many alone; all, if not set"""
    timeout_s: float = 900.0
    missing: str = ""
    """why it cannot be run here; its contenders are shown with that reason"""
    most_repeats: int | None = None


@dataclass(frozen=True)
class Case:
    """Programs that do the same job, and what is to be reached."""

    name: str
    programs: tuple[Program, ...]
    goals: tuple[Goal, ...] = ()


@dataclass(frozen=True)
class Benchmark:
    """Cases of one kind. `cases` is called when the benchmark runs: it may make data and look for what is installed."""

    name: str
    about: str
    time_of: str
    cases: Callable[["Plan"], Sequence[Case]]
    repeats: int = 5


@dataclass(frozen=True)
class Plan:
    """How benchmarks are run this time."""

    work: Path
    """folder for data that cases share"""
    peers: Path
    """folder with the peers' environments"""
    engine: str = "cohort"
    """Motet's own, where it carries the messages"""
    repeats: int | None = None
    quick: bool = False
    only: str = ""
    """part of the names of the cases that are run"""


@dataclass
class _Gathered:
    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    peaks: list[int] = field(default_factory=list)
    numbers: dict[str, float] = field(default_factory=dict)
    why_not: str = ""


def run_benchmark(benchmark: Benchmark, *, plan: Plan, say: Callable[[str], None] = print) -> BenchResult:
    """Every case of a benchmark; within a case the programs take turns, A B C A B C: all see the same machine."""
    facts, begun = machine(), datetime.now(UTC)
    repeats = plan.repeats or (1 if plan.quick else benchmark.repeats)
    cases = []
    for case in benchmark.cases(plan):
        if plan.only in case.name:
            say(f"{benchmark.name}: {case.name}")
            measured = run_case(case, repeats=repeats, say=say)
            # what is to be reached is to be reached with the whole work
            cases.append(measured.model_copy(update={"goals": ()}) if plan.quick else measured)
    return BenchResult(
        benchmark=benchmark.name,
        about=benchmark.about,
        time_of=benchmark.time_of,
        started=begun.isoformat(timespec="seconds"),
        repeats=repeats,
        quick=plan.quick,
        machine=facts,
        versions=versions(),
        commit=commit(ROOT),
        tree_is_clean=tree_is_clean(ROOT),
        cases=tuple(cases),
    )


def run_case(case: Case, *, repeats: int, say: Callable[[str], None] = print) -> CaseResult:
    """One case; a contender that fails once has no number, whatever its other turns gave."""
    gathered = {name: _Gathered(why_not=each.missing) for each in case.programs for name in each.contenders}
    for turn in range(repeats):
        for program in case.programs:
            failed = all(gathered[name].why_not for name in program.contenders)
            if failed or turn >= (program.most_repeats or repeats):
                continue
            _take_turn(program, gathered=gathered)
            said = (f"{name} {_told(gathered[name])}" for name in program.contenders)
            say(f"  {turn + 1}/{repeats} {', '.join(said)}")
    return CaseResult(
        case=case.name, measured=tuple(_measured(name, each) for name, each in gathered.items()), goals=case.goals
    )


def _take_turn(program: Program, *, gathered: dict[str, _Gathered]) -> None:
    lines, peak, why_not = run_program(program)
    for name in program.contenders:
        into = gathered[name]
        line = next((each for each in lines if each.get("contender") in (name, "")), None)
        if line is None:
            into.why_not = into.why_not or why_not or "it ended without a result"
            continue
        into.why_not = into.why_not or str(line.get("why_not") or "")
        into.wall_s.extend(line["wall_s"])  # type: ignore[arg-type]  # as clock.tell wrote it
        into.cpu_s.extend(line["cpu_s"])  # type: ignore[arg-type]
        into.numbers.update(line["numbers"])  # type: ignore[call-overload]
        if len(program.contenders) == 1:
            into.peaks.append(peak)


def run_program(program: Program) -> tuple[list[dict[str, object]], int, str]:
    """What a program said, the most memory that it and its descendants held, and why it failed, if it did."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore", "FLWR_TELEMETRY_ENABLED": "0"}
    environment.pop("OMP_NUM_THREADS", None)
    environment.update(program.environment)
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(  # noqa: S603  # the registry's own commands
            program.command, env=environment, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, text=True
        )
        if program.cores is not None and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(process.pid, range(program.cores))
        peak, ended = _watch(process, timeout_s=program.timeout_s)
        said = _text(output)
    lines = [json.loads(line.split(MARK, 1)[1]) for line in said.splitlines() if MARK + "{" in line]
    if not ended:
        return lines, peak, f"stopped after {program.timeout_s:g} s"
    if process.returncode:
        last = next((line.strip() for line in reversed(said.splitlines()) if line.strip()), "no output")
        return lines, peak, f"exit code {process.returncode}: {last[-200:]}"
    return lines, peak, ""


def _watch(process: subprocess.Popen[str], *, timeout_s: float) -> tuple[int, bool]:
    """Most memory of the process and its descendants, looked at a few times a second; whether it ended by itself."""
    peak, until = 0, time.monotonic() + timeout_s
    while process.poll() is None:
        peak = max(peak, tree_resident_bytes(process.pid))
        if time.monotonic() > until:
            for each in tree(process.pid):
                with suppress(ProcessLookupError):
                    os.kill(each, signal.SIGKILL)
            process.wait()
            return peak, False
        with suppress(subprocess.TimeoutExpired):
            process.wait(_LOOK_EVERY_S)
    return peak, True


def _text(output: TextIO) -> str:
    output.seek(0)
    return output.read()


def _told(gathered: _Gathered) -> str:
    return gathered.why_not or f"{1e3 * gathered.wall_s[-1]:.4g} ms"


def _measured(name: str, gathered: _Gathered) -> Measured:
    why_not = gathered.why_not or ("" if gathered.wall_s else "it was given no turn")
    if why_not:
        return Measured(contender=name, why_not=why_not)
    return Measured(
        contender=name,
        wall_s=spread(gathered.wall_s),
        cpu_s=spread(gathered.cpu_s) if gathered.cpu_s else None,
        peak_memory_bytes=max(gathered.peaks) if gathered.peaks else None,
        numbers=gathered.numbers,
    )
