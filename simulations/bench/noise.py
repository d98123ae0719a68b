"""Benchmark of noise: nanoseconds a number, each kind beside torch's own generator, taken in turns.

in        nothing; `python -m simulations.bench.noise`
out       JSON on the screen: the median of the repeats, and how it compares with torch.normal
relies on one thread and a machine that does the same all along; ratios say more than times
"""

import json
import statistics
import time
from collections.abc import Callable

import torch

from shared.privacy.noise import RandomSource, secret_source

NUMBERS = 1_000_000
REPEATS = 9
STD = 1.3 * 2.0**20
"""of whole numbers: a noise multiplier of 1.3 on the grid that clipped contributions are rounded to"""


def kinds(source: RandomSource) -> dict[str, Callable[[], object]]:
    """What is compared, by name; torch's Mersenne Twister, which is no cipher, comes first."""
    shape = (NUMBERS,)
    return {
        "torch.normal float32": lambda: torch.normal(0.0, 1.0, shape),
        "torch.normal float64": lambda: torch.normal(0.0, 1.0, shape, dtype=torch.float64),
        "float32": lambda: source.normal(shape, std=1.0, kind="float32"),
        "float64": lambda: source.normal(shape, std=1.0),
        "discrete": lambda: source.discrete_normal(shape, std=STD),
        "uniform": lambda: source.uniform(NUMBERS),
    }


def measure() -> dict[str, dict[str, float]]:
    """Median nanoseconds a number of every kind, and their ratio to torch.normal in the same precision."""
    torch.set_num_threads(1)
    compared = kinds(secret_source())
    times: dict[str, list[float]] = {name: [] for name in compared}
    for repeat in range(REPEATS + 1):
        for name, make in compared.items():
            begin = time.perf_counter()
            make()
            if repeat:  # the first fills caches
                times[name].append(1e9 * (time.perf_counter() - begin) / NUMBERS)
    median = {name: statistics.median(values) for name, values in times.items()}
    peer = {name: "torch.normal float32" if "32" in name else "torch.normal float64" for name in compared}
    return {
        name: {"ns_a_number": round(median[name], 2), "times_torch": round(median[name] / median[peer[name]], 2)}
        for name in compared
    }


if __name__ == "__main__":
    print(json.dumps({"torch": torch.__version__, "numbers": NUMBERS, "threads": 1, "kinds": measure()}, indent=2))
