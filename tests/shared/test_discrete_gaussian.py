"""Tests of shared/privacy/discrete_gaussian.py: the chances are the exact ones, whatever decides a draw.

Statistical tests run on fixed keys, so they never fail by chance; each states how many keys in a million would fail it.
"""

import decimal
import math
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

from shared.errors import PrivacyError
from shared.privacy import discrete_gaussian as module
from shared.privacy.accountant import _renyi_curve
from shared.privacy.discrete_gaussian import Words, discrete_gaussian
from shared.privacy.noise import reproducible_source

FALSE_ALARM = 1e-6
Integers = npt.NDArray[np.int64]


def draw(num: int, *, std: float) -> Integers:
    values: Integers = reproducible_source(0, purpose="whole numbers").discrete_normal((num,), std=std).numpy()
    return values


def words_of(*values: int) -> Words:
    """Gives the words one after another."""
    left = list(values)
    return lambda num: np.array([left.pop(0) for _ in range(num)], dtype=np.uint64)


def has_the_chances(numbers: Integers, std: float) -> bool:
    """Chi-square over all whole numbers that are expected ten times or more; the rest together."""
    reach = math.ceil(12 * std)
    support = np.arange(-reach, reach + 1)
    chances = np.exp(-(support.astype(np.float64) ** 2) / (2 * std**2))
    expected = len(numbers) * chances / chances.sum()
    found = np.bincount(np.clip(numbers, -reach, reach) + reach, minlength=len(support))
    often = expected >= 10
    pooled_found = [*found[often], found[~often].sum()]
    pooled_expected = [*expected[often], max(expected[~often].sum(), 1e-9)]
    if pooled_expected[-1] < 1:
        pooled_found[-2:], pooled_expected[-2:] = [sum(pooled_found[-2:])], [sum(pooled_expected[-2:])]
    return bool(stats.chisquare(pooled_found, pooled_expected, sum_check=False).pvalue > FALSE_ALARM)


@pytest.mark.parametrize("std", [0.4, 0.7, 3.2, 8.0, 50.0])
def test_whole_numbers_have_the_exact_chances(std: float) -> None:
    """Blocks of one, two and eight numbers. One key in a million fails; a scale 5 % off is rejected."""
    numbers = draw(200_000, std=std)

    assert has_the_chances(numbers, std)
    assert not has_the_chances(numbers, std * 1.05)
    assert not has_the_chances(numbers, std / 1.05)


def test_numbers_within_a_block_have_the_exact_chances() -> None:
    """Blocks as wide as they get, a quarter of the scale. One key in a million fails; rejection 10 % too eager does."""
    numbers = draw(3_000_000, std=32.0)
    thinned = numbers[(np.abs(numbers) % 8 < 6) | (np.arange(len(numbers)) % 50 > 0)]

    assert has_the_chances(numbers, 32.0)
    assert not has_the_chances(thinned, 32.0)


@pytest.mark.parametrize("std", [8.0, 1.3 * 2**20, 2.0**45])
def test_floats_decide_as_exact_arithmetic_does(std: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same words, once decided by floats and once without them, give the same numbers."""
    drawn = reproducible_source(0, purpose="words")._words(3 * 2000).copy()

    def words(num: int) -> npt.NDArray[np.uint64]:
        return drawn if num == len(drawn) else np.full(num, 2**63, dtype=np.uint64)

    by_floats = module._attempt(2000, std=std, words=words)
    monkeypatch.setattr(module, "TOLERANCE", 2.0)
    exact = module._attempt(2000, std=std, words=words)

    assert len(exact) > 1500
    assert np.array_equal(by_floats, exact)


@pytest.mark.parametrize("std", [3.2, 20.0])
def test_exact_arithmetic_gives_the_same_chances(std: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """With tolerances so wide that it decides many draws. One key in a million fails; a scale 20 % off is rejected."""
    calls = {"block": 0, "coin": 0}
    block, coin = module._exact_block, module._exact_coin

    def count_block(choice: int, *, std: float, shift: int, words: Words) -> int:
        calls["block"] += 1
        return block(choice, std=std, shift=shift, words=words)

    def count_coin(known: int, *, exponent: Fraction, words: Words) -> bool:
        calls["coin"] += 1
        return coin(known, exponent=exponent, words=words)

    monkeypatch.setattr(module, "_exact_block", count_block)
    monkeypatch.setattr(module, "_exact_coin", count_coin)
    monkeypatch.setattr(module, "TOLERANCE", 0.2)
    low, high = (2**63 - 1) // 20, (2**63 - 1) // 20 * 19
    table = module._table(std)
    narrow = module._Table(table.shift, table.bounds, np.maximum(table.lowest, low), np.minimum(table.highest, high))
    monkeypatch.setattr(module, "_table", lambda std: narrow)
    numbers = draw(3000, std=std)

    assert has_the_chances(numbers, std)
    assert not has_the_chances(numbers, std * 1.2)
    assert calls["block"] > 150
    assert calls["coin"] > 150 or std < 4


def test_a_coin_is_thrown_with_as_many_bits_as_it_takes() -> None:
    """64, 128 and 192 bits of exp(-1): a random number that shares them is decided by those that follow."""
    with decimal.localcontext(decimal.Context(prec=100)):
        chance = int(decimal.Decimal(-1).exp() * 2**192)
    parts = [chance >> 128, chance >> 64 & (2**64 - 1), chance & (2**64 - 1)]

    def coin(known: int, *further: int) -> bool:
        return module._exact_coin(known, exponent=Fraction(1), words=words_of(*further))

    assert coin(parts[0] - 3)
    assert not coin(parts[0] + 3)
    assert coin(parts[0], parts[1] - 3)
    assert not coin(parts[0], parts[1] + 3)
    assert coin(*parts[:2], parts[2] - 3)
    assert not coin(*parts[:2], parts[2] + 3)
    assert coin(parts[0] + 1, 0) is False
    assert coin(parts[0] - 1, 2**64 - 1) is True


def test_a_block_is_chosen_with_as_many_bits_as_it_takes() -> None:
    """A number on the border of two blocks belongs to either by its further bits; beyond the last one is no end."""
    bound = module._bounds(1.0, 0, bits=127)[0]
    high, low = bound >> 64, bound & (2**64 - 1)

    def block(choice: int, *further: int) -> int:
        return module._exact_block(choice, std=1.0, shift=0, words=words_of(*further))

    assert block(high, low - 5) == 0
    assert block(high, low + 5) == 1
    assert block(high - 1, 2**64 - 1) == 0
    assert block(2**63 - 1, 2**64 - 2**20) > block(2**63 - 1, 0) > 8


@pytest.mark.parametrize("std", [1.3 * 2**20, 2.0**40])
def test_low_bits_are_as_random_as_they_should_be(std: float) -> None:
    """The remainders by 16, all equally likely at such a scale; one key in a million fails."""
    numbers = draw(160_000, std=std)

    assert stats.chisquare(np.bincount(numbers % 16, minlength=16)).pvalue > FALSE_ALARM
    assert stats.chisquare(np.bincount(numbers // 2 * 2 % 16, minlength=16)).pvalue < FALSE_ALARM
    assert stats.kstest(numbers / std, "norm").pvalue > FALSE_ALARM


def test_numbers_beyond_what_floats_hold_are_refused() -> None:
    with pytest.raises(PrivacyError, match="allowed"):
        draw(1, std=2.0**47)


def test_a_tiny_scale_gives_zeros() -> None:
    assert not discrete_gaussian(
        100, std=1e-3, words=lambda num: np.arange(num, dtype=np.uint64) << np.uint64(55)
    ).any()


def test_sampled_whole_number_noise_has_the_renyi_divergence_that_is_accounted() -> None:
    """Whole orders: equal for any whole shift, because moving the whole numbers by whole numbers changes no sum."""
    std, shift, rate = 1.5, 2, 0.2
    numbers = np.arange(-60, 61).astype(np.float64)
    base = np.exp(-(numbers**2) / (2 * std**2))
    base /= base.sum()
    ratio = 1 - rate + rate * np.exp((2 * numbers * shift - shift**2) / (2 * std**2))
    for order in (2, 3, 8):
        divergence = math.log(float((base * ratio**order).sum())) / (order - 1)
        accounted = _renyi_curve(std / shift, rate, (float(order),))[0]
        assert divergence == pytest.approx(accounted, rel=1e-9)


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 2.0])
def test_sampled_whole_number_noise_has_the_delta_that_is_accounted(epsilon: float) -> None:
    """One step, shift and scale of 2^16 grid widths, a sixteenth of the real ones: equal to a part in 10^8."""
    shift = std = 2**16
    rate = 0.3
    numbers = np.arange(-13 * std, 14 * std + 1).astype(np.float64)
    base = np.exp(-(numbers**2) / (2 * std**2))
    base /= base.sum()
    ratio = 1 - rate + rate * np.exp((2 * numbers * shift - shift**2) / (2 * std**2))
    delta = float((base * np.maximum(0, ratio - math.exp(epsilon))).sum())

    border = std**2 / shift * math.log((math.exp(epsilon) - 1 + rate) / rate) + shift / 2
    beyond, beyond_shifted = stats.norm.sf(border / std), stats.norm.sf((border - shift) / std)
    assert delta == pytest.approx((1 - rate - math.exp(epsilon)) * beyond + rate * beyond_shifted, rel=1e-8)
