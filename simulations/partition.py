"""Partition: which row goes to which site, evenly, skewed by label, or by a column.

in        how many rows, or a label or column value for each of them
out       one array of row numbers a shard; together they hold every row exactly once
relies on nothing of Motet but errors.py; the draws come from the caller's generator
"""

import heapq
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from shared.errors import ConfigError

Rows = Int[np.ndarray, "_"]
_MOST_DRAWS = 5_000


def even_shards(num_rows: int, *, shards: int, generator: np.random.Generator) -> tuple[Rows, ...]:
    """Shuffled rows in shards whose sizes differ by one at most.

    Raises:
        ConfigError: there are fewer rows than shards.
    """
    if not 1 <= shards <= num_rows:
        raise ConfigError(f"sites is {shards} for {num_rows} rows; allowed: 1 to {num_rows}")
    return tuple(np.sort(rows) for rows in np.array_split(generator.permutation(num_rows), shards))


def dirichlet_shards(
    labels: Int[np.ndarray, "N"], *, shards: int, alpha: float, generator: np.random.Generator, min_rows: int = 5
) -> tuple[Rows, ...]:
    """Shards whose label mixes differ: each class is dealt out in shares drawn from Dirichlet(alpha).

    Classes are dealt in the order of their numbers. A shard that holds N / shards rows or more is dealt nothing of
    the classes still to come, so the last class it got may carry it past that size. A deal that leaves any shard with
    fewer than `min_rows` is thrown away as a whole and drawn anew.

    Args:
        alpha: above 0; small makes sites of few classes, large makes them alike.
        min_rows: at least this many rows in each shard.

    Raises:
        ConfigError: there are too few rows, or no such deal came up in 5,000 draws.

    Source: FedMultimodal, Feng et al. 2023, arXiv:2306.09486, section 3.1, and its code's `direchlet_partition`. Ours
    differs: the generator is the caller's, and a draw that gives every open shard a share of zero is drawn again.
    """
    if not (alpha > 0 and np.isfinite(alpha)):
        raise ConfigError(f"alpha is {alpha}; allowed: above 0")
    if not 1 <= shards * max(min_rows, 1) <= len(labels):
        raise ConfigError(
            f"{len(labels)} rows cannot give {shards} sites {max(min_rows, 1)} rows each; allowed: at most "
            f"{len(labels) // max(min_rows, 1)} sites"
        )
    for _ in range(_MOST_DRAWS):
        dealt = _deal(labels, shards=shards, alpha=alpha, generator=generator)
        if dealt is not None and min(len(rows) for rows in dealt) >= min_rows:
            return dealt
    raise ConfigError(
        f"alpha is {alpha}: {_MOST_DRAWS} draws gave none with {min_rows} rows at each of {shards} sites; allowed: a "
        "larger alpha, or fewer sites"
    )


def _deal(
    labels: Int[np.ndarray, "N"], *, shards: int, alpha: float, generator: np.random.Generator
) -> tuple[Rows, ...] | None:
    dealt: list[list[Rows]] = [[] for _ in range(shards)]
    sizes = np.zeros(shards, dtype=np.int64)
    for label in np.unique(labels):
        rows = generator.permutation(np.flatnonzero(labels == label))
        shares = generator.dirichlet(np.full(shards, alpha)) * (sizes < len(labels) / shards)
        if shares.sum() <= 0:
            return None
        # without the 1e-9 a sum of shares just below 1 hands a row to a closed shard
        cuts = (np.cumsum(shares / shares.sum()) * len(rows) + 1e-9).astype(np.int64)[:-1]
        for shard, part in enumerate(np.split(rows, cuts)):
            dealt[shard].append(part)
            sizes[shard] += len(part)
    return tuple(np.sort(np.concatenate(parts)) for parts in dealt)


def column_shards(values: Sequence[str], *, shards: int) -> tuple[Rows, ...]:
    """Shards that never part two rows with the same value.

    The largest group still to be dealt goes to the smallest shard.

    Raises:
        ConfigError: there are fewer different values than shards.
    """
    groups: dict[str, list[int]] = {}
    for row, value in enumerate(values):
        groups.setdefault(value, []).append(row)
    if not 1 <= shards <= len(groups):
        raise ConfigError(
            f"sites is {shards} for {len(groups)} different values of the column; allowed: 1 to {len(groups)}"
        )
    heap = [(0, shard) for shard in range(shards)]
    dealt: list[list[int]] = [[] for _ in range(shards)]
    for _, rows in sorted(groups.items(), key=lambda group: (-len(group[1]), group[0])):
        size, shard = heapq.heappop(heap)
        dealt[shard].extend(rows)
        heapq.heappush(heap, (size + len(rows), shard))
    return tuple(np.array(sorted(rows), dtype=np.int64) for rows in dealt)
