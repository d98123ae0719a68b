"""Benchmark of start-up: what `motet simulate` does before its first round, and after its last.

in        `python -m simulations.bench.startup [--scenario NAME] [--repeats N]`; the scenario's data set, built before
out       a line of JSON: CPU and wall seconds of each phase, the least of all repeats
relies on a new process for each repeat, in which the steps of a simulation are called by name and timed
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import wraps
from importlib import import_module
from pathlib import Path
from typing import ParamSpec, TypeVar

from simulations.engine.held_memory import without_search

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
PHASES = ("imports", "prepare", "preflight", "before_round_1", "round_1", "after", "whole")
"""`before_round_1` is everything from the start of the process to the first request; the three before are within it"""


def measure(*, scenario: str = "moods", repeats: int = 3) -> dict[str, float]:
    """Phase and clock -> seconds: the least of so many runs of one round each; the first run builds the data set."""
    found: list[dict[str, float]] = []
    for _ in range(repeats + 1):
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run(  # noqa: S603  this program itself
                [sys.executable, "-m", "simulations.bench.startup", "--child", folder, "--scenario", scenario],
                capture_output=True,
                text=True,
                check=True,
                env={**os.environ, "FLWR_TELEMETRY_ENABLED": "0"},
            )
            found.append(json.loads(done.stdout.splitlines()[-1]))
    return {name: round(min(each[name] for each in found[1:]), 2) for name in found[0]}


class _Clock:
    """CPU and wall seconds of what was timed, since the process began or for a call."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._wall = time.time() - _age_s()

    def mark(self, name: str) -> None:
        """Seconds since the process began."""
        self.seconds |= {f"{name}_cpu_s": time.process_time(), f"{name}_wall_s": time.time() - self._wall}

    def timed(
        self, call: Callable[Arguments, Result], *, name: str, begins: str | None = None
    ) -> Callable[Arguments, Result]:
        """The call, whose own seconds are kept; `begins` marks its beginning."""

        @wraps(call)
        def inner(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
            if begins is not None and f"{begins}_cpu_s" not in self.seconds:
                self.mark(begins)
            cpu, wall = time.process_time(), time.time()
            try:
                return call(*args, **kwargs)
            finally:
                self.seconds |= {f"{name}_cpu_s": time.process_time() - cpu, f"{name}_wall_s": time.time() - wall}

        return inner


def _age_s() -> float:
    """How long this process has been there, by the kernel's clock; 0 where that is not told."""
    path = Path("/proc/self/stat")
    if not path.is_file():
        return 0.0
    since_boot = float(path.read_text().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - since_boot


def _child(folder: Path, *, scenario: str) -> None:
    """`motet simulate` with one round, timed from within."""
    clock = _Clock()
    # what the command imports on its way to the first round, at once, so that it is timed as such
    with without_search():
        for name in ("client.app", "client.preflight", "simulations.preflight"):
            import_module(name)
        motet, simulate, server = map(import_module, ("motet", "simulations.simulate", "server.app"))
    clock.mark("imports")
    steps = {"prepare_run": "prepare", "_check_first": "preflight"}
    for name, phase in steps.items():
        setattr(simulate, name, clock.timed(getattr(simulate, name), name=phase))
    timed_rounds = clock.timed(server.run_rounds, name="round_1", begins="before_round_1")
    setattr(server, "run_rounds", timed_rounds)  # noqa: B010  mypy knows what a module exports
    sys.argv = ["motet", "simulate", scenario, "--set", "run.federation.rounds=1", "--out", str(folder / "run")]
    try:
        motet.main()
    except SystemExit as ended:
        if ended.code:
            raise
    clock.mark("whole")
    seconds = clock.seconds
    for kind in ("cpu_s", "wall_s"):
        rest = seconds[f"whole_{kind}"] - seconds[f"before_round_1_{kind}"] - seconds[f"round_1_{kind}"]
        seconds[f"after_{kind}"] = rest
    found = {f"{phase}_{kind}": seconds[f"{phase}_{kind}"] for phase in PHASES for kind in ("cpu_s", "wall_s")}
    sys.stdout.write("\n" + json.dumps(found) + "\n")


def main() -> None:
    """Prints a line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenario", default="moods")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child is not None:
        _child(asked.child, scenario=asked.scenario)
    else:
        sys.stdout.write(json.dumps(measure(scenario=asked.scenario, repeats=asked.repeats)) + "\n")


if __name__ == "__main__":
    main()
