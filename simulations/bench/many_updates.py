"""Many updates: one round's aggregation over many sites; its seconds and the memory that it grows by, rule by rule.

in        how many sites, and how many parameters an update has
out       a table; nothing is stored
relies on each rule being measured in a process of its own, whose peak is what that rule took

    python -m simulations.bench.many_updates --sites 1000 --parameters 1000000 --rules mean norm-bound
    python -m simulations.bench.many_updates --sites 1000 --parameters 100000 --rules median trimmed-mean krum
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import get_args

from shared.aggregation_settings import Rule

MIB = 2**20
HOSTILE = 0.3
"""share of the sites that Krum is to bear"""


def measure(rule: Rule, *, sites: int, parameters: int) -> tuple[float, int]:
    """Seconds of a round's aggregation, and bytes that the process grew by; in this process.

    The time in which the updates are drawn is not in it.
    """
    import torch

    from server.aggregation import start_average
    from shared.config import FederationSettings
    from shared.row import view_of_all

    bears = int(HOSTILE * sites)
    asked: dict[str, object] = {"norm_bound": 1.0} if rule == "norm-bound" else {}
    if rule in ("krum", "multi-krum"):
        asked = {"byzantine_sites": bears, "min_sites": 2 * bears + 3}
    settings = FederationSettings.model_validate({"rounds": 1, "aggregation": rule, **asked})
    generator, average = torch.Generator().manual_seed(0), start_average(settings)
    before, seconds = _peak_bytes(), 0.0
    for number in range(sites):
        values = torch.randn(parameters, generator=generator)
        update = {"a": values[: parameters // 2], "b": values[parameters // 2 :]}
        began = time.perf_counter()
        average.add(update, weight=1.0, row=view_of_all(list(update.values())), site=f"site-{number:04d}")
        seconds += time.perf_counter() - began
        del values, update
    began = time.perf_counter()
    average.result()
    return seconds + time.perf_counter() - began, _peak_bytes() - before


def in_own_process(rule: Rule, *, sites: int, parameters: int) -> tuple[float, int]:
    """As `measure`, in a process that has done nothing else."""
    done = subprocess.run(  # noqa: S603  our own words, no shell
        [sys.executable, "-m", "simulations.bench.many_updates", "--one", rule, "--sites", str(sites),
         "--parameters", str(parameters)],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    seconds, grown = json.loads(done.stdout.splitlines()[-1])
    return float(seconds), int(grown)


def line(rule: Rule, *, sites: int, parameters: int, seconds: float, grown: int) -> str:
    """A line of the table; what the updates together would hold stands beside what was held."""
    together = sites * parameters * 4
    return f"| {rule} | {sites:,} | {parameters:,} | {seconds:.1f} | {grown / MIB:,.0f} | {together / MIB:,.0f} |"


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main(words: Sequence[str] | None = None) -> None:
    """From the command line."""
    parser = argparse.ArgumentParser(prog="python -m simulations.bench.many_updates", description=__doc__)
    parser.add_argument("--sites", type=int, default=1000)
    parser.add_argument("--parameters", type=int, default=100_000)
    parser.add_argument("--rules", nargs="*", choices=get_args(Rule), default=list(get_args(Rule)))
    parser.add_argument("--one", choices=get_args(Rule), help="measure this one here, and print numbers")
    told = parser.parse_args(words)
    if told.one:
        print(json.dumps(measure(told.one, sites=told.sites, parameters=told.parameters)))
        return
    print("| aggregation | sites | parameters | s | grew by, MiB | all updates, MiB |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for rule in told.rules:
        seconds, grown = in_own_process(rule, sites=told.sites, parameters=told.parameters)
        print(line(rule, sites=told.sites, parameters=told.parameters, seconds=seconds, grown=grown), flush=True)


if __name__ == "__main__":
    main()
