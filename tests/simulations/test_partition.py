"""Partition: every row once, groups whole, the skew that was asked for."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from shared.errors import ConfigError
from simulations.partition import Rows, column_shards, dirichlet_shards, even_shards


def _generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def _holds_each_row_once(shards: tuple[Rows, ...], num_rows: int) -> bool:
    return bool(np.array_equal(np.sort(np.concatenate(shards)), np.arange(num_rows)))


@settings(max_examples=30, deadline=None)
@given(num_rows=st.integers(1, 300), shards=st.integers(1, 20), seed=st.integers(0, 99))
def test_even_shards_hold_every_row_once_in_equal_numbers(num_rows: int, shards: int, seed: int) -> None:
    if shards > num_rows:
        with pytest.raises(ConfigError, match=f"allowed: 1 to {num_rows}"):
            even_shards(num_rows, shards=shards, generator=_generator(seed))
        return
    parts = even_shards(num_rows, shards=shards, generator=_generator(seed))
    assert _holds_each_row_once(parts, num_rows)
    assert {len(part) for part in parts} <= {num_rows // shards, -(-num_rows // shards)}


@settings(max_examples=30, deadline=None)
@given(classes=st.integers(1, 8), alpha=st.sampled_from([0.1, 0.5, 5.0, 1e4]), seed=st.integers(0, 99))
def test_dirichlet_shards_hold_every_row_once_and_never_too_few(classes: int, alpha: float, seed: int) -> None:
    labels = _generator(seed).integers(0, classes, size=400)
    parts = dirichlet_shards(labels, shards=5, alpha=alpha, generator=_generator(seed))
    assert _holds_each_row_once(parts, 400)
    assert min(len(part) for part in parts) >= 5


def test_dirichlet_shards_are_skewed_by_label_and_even_ones_are_not() -> None:
    """Chi-square test of independence of shard and label, at 1e-6: `even` fails by chance once in a million seeds.

    Alpha 0.3 must be far beyond it, or the test could not tell the two apart.
    """
    labels = _generator(1).integers(0, 6, size=6_000)

    def p_value(parts: tuple[Rows, ...]) -> float:
        table = np.stack([np.bincount(labels[part], minlength=6) for part in parts])
        return float(stats.chi2_contingency(table).pvalue)

    assert p_value(dirichlet_shards(labels, shards=5, alpha=0.3, generator=_generator())) < 1e-100
    assert p_value(even_shards(6_000, shards=5, generator=_generator())) > 1e-6


def test_the_first_class_is_dealt_in_shares_of_the_promised_spread() -> None:
    """Shares of the first class over 400 draws against Beta(alpha, 4 alpha), Kolmogorov-Smirnov at 1e-6.

    Only the first class has plain Dirichlet shares: later ones skip the shards that are full. Catches an alpha twice
    or half as large.
    """
    labels, alpha = np.zeros(10_000, dtype=np.int64), 0.7
    generator = _generator(2)
    shares = [
        len(dirichlet_shards(labels, shards=5, alpha=alpha, generator=generator, min_rows=0)[0]) / 10_000
        for _ in range(400)
    ]
    p_values = {a: float(stats.kstest(shares, stats.beta(a, 4 * a).cdf).pvalue) for a in (alpha, 2 * alpha, alpha / 2)}
    assert p_values[alpha] > 1e-6
    assert p_values[2 * alpha] < 1e-6
    assert p_values[alpha / 2] < 1e-6


def test_a_full_shard_is_dealt_nothing_more() -> None:
    labels = np.repeat(np.arange(4), 50)
    for seed in range(20):
        for part in dirichlet_shards(labels, shards=4, alpha=0.5, generator=_generator(seed)):
            counts = np.bincount(labels[part], minlength=4)
            before = np.cumsum(counts) - counts
            assert all(counts[before >= 50] == 0)


@pytest.mark.parametrize(
    ("alpha", "shards", "message"),
    [(0.0, 2, "above 0"), (float("nan"), 2, "above 0"), (1.0, 30, "at most 20 sites"), (1e-4, 20, "a larger alpha")],
)
def test_impossible_deals_are_refused_with_what_is_allowed(alpha: float, shards: int, message: str) -> None:
    labels = np.arange(100) % 3
    with pytest.raises(ConfigError, match=message):
        dirichlet_shards(labels, shards=shards, alpha=alpha, generator=_generator())


@settings(max_examples=30, deadline=None)
@given(values=st.lists(st.sampled_from("abcdefgh"), min_size=8, max_size=100), shards=st.integers(1, 4))
def test_column_shards_keep_groups_together(values: list[str], shards: int) -> None:
    if shards > len(set(values)):
        with pytest.raises(ConfigError, match="different values"):
            column_shards(values, shards=shards)
        return
    parts = column_shards(values, shards=shards)
    assert _holds_each_row_once(parts, len(values))
    groups = [{values[row] for row in part} for part in parts]
    assert all(groups)
    assert sum(len(group) for group in groups) == len(set(values))


def test_the_same_seed_gives_the_same_shards() -> None:
    labels = np.arange(200) % 6
    first, second = (dirichlet_shards(labels, shards=5, alpha=0.5, generator=_generator(7)) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
