"""Run benchmarks: python -m simulations.bench [NAMES] [--repeats N] [--out DIR] [--quick]; `make bench` runs all.

in        names of benchmarks, all if none is given
out       a table for each on the terminal, and results/NAME.json, which docs/performance.md is written from
relies on a machine with little else to do; what else it did is in the file as its load
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from simulations.bench.benchmarks import BENCHMARKS
from simulations.bench.harness import Plan, run_benchmark
from simulations.bench.peers.setup import DEFAULT
from simulations.bench.results import RESULTS, write_result
from simulations.bench.table import render


def main(words: Sequence[str] | None = None) -> None:
    """Run, print and write."""
    parser = argparse.ArgumentParser(prog="python -m simulations.bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAMES", help=", ".join(BENCHMARKS))
    parser.add_argument("--repeats", type=int, help="turns of every program; each benchmark has a number of its own")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result files")
    parser.add_argument("--quick", action="store_true", help="one turn and less work: shows that all runs, no more")
    parser.add_argument("--only", default="", help="part of the names of the cases that are run")
    parser.add_argument("--peers", type=Path, default=DEFAULT, help="folder with the peers' environments")
    parser.add_argument("--engine", default="cohort", help="Motet's, as in `motet simulate --engine`")
    options = parser.parse_args(words)
    unknown = sorted(set(options.names) - set(BENCHMARKS))
    if unknown:
        parser.error(f"{', '.join(unknown)}: no such benchmark; allowed: {', '.join(BENCHMARKS)}")
    with tempfile.TemporaryDirectory(prefix="motet-bench-") as work:
        plan = Plan(
            work=Path(work),
            peers=options.peers.resolve(),
            engine=options.engine,
            repeats=options.repeats,
            quick=options.quick,
            only=options.only,
        )
        for name in options.names or BENCHMARKS:
            result = run_benchmark(BENCHMARKS[name], plan=plan)
            print("\n".join(["", *render(result), "", f"written: {write_result(result, folder=options.out)}"]))


if __name__ == "__main__":
    main()
