"""What a Ray cluster costs where it can gain nothing: `python -m tests.system.measure_ray_cluster`.

in        nothing: a small federation is made, and its nodes are all on this machine
out       a line for each way of running the same rounds: seconds of the whole command, and of a round
relies on tests/system/ray_nodes.py for the nodes
"""

import os
import statistics
import tempfile
import time
from pathlib import Path

from tests.system.ray_nodes import ray_cluster
from tests.system.small_federation import build_small_data_set, write_scenario
from tests.system.test_ray_cluster import ended, records, start

ROUNDS, REPEATS = 10, 2


def main() -> None:
    """Two cores each time, but for the engines in one process."""
    with tempfile.TemporaryDirectory(prefix="motet-ray-") as made:
        home = Path(made)
        data_set = build_small_data_set(home / "small")
        scenario = write_scenario(home / "s.toml", data_set=data_set, private=True, rounds=ROUNDS)
        print("| engine | command, s | round, s |\n| --- | ---: | ---: |")
        for engine in ("cohort", "local"):
            _measure(scenario, "--engine", engine, name=engine, environment=dict(os.environ))
        for cores, name in (((2,), "flower, one node of two cores"), ((1, 1), "flower, two nodes of one core")):
            with ray_cluster(cores=cores) as cluster:
                options = ("--engine", "flower", "--ray-address", cluster.address)
                _measure(scenario, *options, name=name, environment=cluster.environment())


def _measure(scenario: Path, *options: str, name: str, environment: dict[str, str]) -> None:
    whole, rounds = list[float](), list[float]()
    for repeat in range(REPEATS):
        folder = scenario.parent / f"{name.replace(' ', '-')}-{repeat}"
        before = time.monotonic()
        code, stderr = ended(start(scenario, *options, folder=folder, environment=environment))
        whole.append(time.monotonic() - before)
        assert code == 0, stderr
        # the first round of a worker is the one in which it loads torch
        rounds += [record.seconds for record in records(folder)[1:]]
    print(f"| {name} | {min(whole):.1f} to {max(whole):.1f} | {statistics.median(rounds):.3f} |", flush=True)


if __name__ == "__main__":
    main()
