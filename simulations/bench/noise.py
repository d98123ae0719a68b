"""Benchmark of random numbers: nanoseconds a number, ours and torch's own of the same type, taken in turns.

in        nothing; `python -m simulations.bench.noise`
out       a table on the screen, or from `measure` its numbers: the least of the repeats, and its ratio to torch's
relies on one thread. The least of many repeats is what the work takes when no other program is in its way
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from shared.config import NoiseKind
from shared.privacy.noise import normal_rows, secret_source

SIZES = (10, 1_000, 100_000, 100_000_000)
PIECE = 1_000_000
"""numbers that are held at a time, so that a hundred million need no memory"""
SITES, PARAMETERS = 100, 1_290
"""of a stack of noise: a small layer's at each of so many sites"""
COINS = 20
STD = 1.3 * 2.0**20
"""of whole numbers: a noise multiplier of 1.3 on the grid that clipped contributions are rounded to"""
REPEATS, LONGEST_S = 400, 1.0
KINDS: dict[NoiseKind, torch.dtype] = {"float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True)
class Compared:
    """Two ways to make `numbers` numbers: ours, and torch's generator, which can be guessed."""

    numbers: int
    ours: Callable[[], object]
    torchs: Callable[[], object]


def measure(*, largest: int = max(SIZES), repeats: int = REPEATS) -> dict[str, dict[str, float]]:
    """By kind and size, up to the largest asked for: `ns_a_number`, `torch_ns_a_number`, and `times_torch` of them.

    Repeats are fewer where they would take more than a second, and at least three.
    """
    torch.set_num_threads(1)
    found = {}
    for name, compared in _compared(largest).items():
        ours, torchs = (1e9 * least_s / compared.numbers for least_s in _least_s(compared, repeats=repeats))
        found[name] = {"ns_a_number": ours, "torch_ns_a_number": torchs, "times_torch": ours / torchs}
    return found


def table(found: dict[str, dict[str, float]]) -> str:
    """The same in Markdown."""
    rows = [
        f"| {name} | {row['ns_a_number']:.2f} | {row['torch_ns_a_number']:.2f} | {row['times_torch']:.2f} |"
        for name, row in found.items()
    ]
    return "\n".join(["| numbers | ns each | torch's, ns each | ratio |", "| --- | --- | --- | --- |", *rows])


def _compared(largest: int) -> dict[str, Compared]:
    compared = {f"{kind}, {size:,}": _normal(kind, size) for kind in KINDS for size in SIZES if size <= largest}
    compared |= {f"{kind}, {SITES} rows of {PARAMETERS:,}": _rows(kind) for kind in KINDS}
    source, whole = secret_source(), 100_000
    compared[f"uniform, {COINS}"] = Compared(
        COINS, lambda: source.uniform(COINS), lambda: torch.rand(COINS, dtype=torch.float64)
    )
    compared[f"discrete, {whole:,}"] = Compared(
        whole,
        lambda: source.discrete_normal((whole,), std=STD),
        lambda: torch.randn(whole, dtype=torch.float64),
    )
    return compared


def _normal(kind: NoiseKind, size: int) -> Compared:
    """So many numbers, in one tensor that is filled again for each piece of them."""
    source, out = secret_source(), torch.empty(min(size, PIECE), dtype=KINDS[kind])
    pieces = range(-(-size // PIECE))

    def ours() -> None:
        for _ in pieces:
            source.normal_into(out, std=1.0, kind=kind)

    def torchs() -> None:
        for _ in pieces:
            torch.randn(out.shape, out=out)

    return Compared(size, ours, torchs)


def _rows(kind: NoiseKind) -> Compared:
    """A stack with a row for each site from a source of its own; torch's numbers all come from one generator."""
    sources, stds = [secret_source() for _ in range(SITES)], [1.0] * SITES
    out = torch.empty(SITES, PARAMETERS, dtype=KINDS[kind])
    return Compared(
        out.numel(),
        lambda: normal_rows(sources, out, stds=stds, kind=kind),
        lambda: torch.randn(out.shape, out=out),
    )


def _least_s(compared: Compared, *, repeats: int) -> tuple[float, float]:
    times: tuple[list[float], list[float]] = [], []
    until = time.perf_counter() + LONGEST_S
    while len(times[0]) < 3 or (len(times[0]) < repeats and time.perf_counter() < until):
        for make, taken in zip((compared.ours, compared.torchs), times, strict=True):
            begin = time.perf_counter()
            make()
            taken.append(time.perf_counter() - begin)
    return min(times[0]), min(times[1])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--largest", type=int, default=max(SIZES), help="the most numbers at once")
    print(f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, one thread")
    print(table(measure(largest=parser.parse_args().largest)))
