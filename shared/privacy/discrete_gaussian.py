"""Discrete Gaussian: whole numbers n with a chance proportional to exp(-n^2 / (2 std^2)), exactly.

in        uniformly random words of 64 bits, from noise.py
out       int64 numbers, by way of RandomSource.discrete_normal
relies on the words being uniform, and on numpy's exp being right to ten digits; nothing else is approximate

A number is |n| = block * 2^shift + offset with a sign. The block is drawn from a table, the offset uniformly, and the
whole is kept with chance exp(-offset (2 * first + offset) / (2 std^2)), where first is the block's first number. Both
decisions compare a random real number, of which 64 bits are known at first, with a real threshold. Floating point
decides only where the two are further apart than its error could be; what is nearer is decided in exact arithmetic,
with as many further bits as that takes. So the result is that of real numbers.

Source: Karney 2016, arXiv:1303.6257, section 5 (a block, then rejection within it); the distribution and its privacy:
Canonne, Kamath, Steinke 2020, arXiv:2004.00010. Ours differs from their sampler, which draws one number at a time.
"""

import bisect
import decimal
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from shared.errors import PrivacyError

Words = Callable[[int], npt.NDArray[np.uint64]]
LARGEST_STD = 2.0**46
TRIES = 1 << 14
# How near a float64 decision may come to its threshold before exact arithmetic takes over. The floats are off by less
# than 1e-13; about one number in 30 thousand million comes this near.
TOLERANCE = 2.0**-36
# The same for a table entry, in steps of 2^-63; an entry is off by less than one step.
TABLE_TOLERANCE = 2


@dataclass(frozen=True)
class _Table:
    """Chances of the blocks at one std, as bounds on a random whole number of 63 bits."""

    shift: int
    bounds: npt.NDArray[np.int64]
    """[K] first number that stands for block 1, 2, ... K"""
    lowest: npt.NDArray[np.int64]
    highest: npt.NDArray[np.int64]
    """[K + 1] which numbers surely stand for block 0, 1, ... K"""


def discrete_gaussian(num: int, *, std: float, words: Words) -> npt.NDArray[np.int64]:
    """So many independent numbers; std 0 gives zeros.

    How long it takes depends on how many draws are rejected, and so, faintly, on the numbers.

    Raises:
        PrivacyError: std is above 2^46, where float64 no longer holds the numbers.
    """
    if std > LARGEST_STD:
        raise PrivacyError(f"std is {std}; allowed for whole numbers: up to 2^46")
    numbers = np.zeros(num, dtype=np.int64)
    done = num if std == 0 else 0
    while done < num:
        found = _attempt(min(TRIES, (num - done) * 5 // 4 + 8), std=std, words=words)[: num - done]
        numbers[done : done + len(found)] = found
        done += len(found)
    return numbers


def _attempt(tries: int, *, std: float, words: Words) -> npt.NDArray[np.int64]:
    """What is left of so many draws after rejection."""
    table = _table(std)
    first, second, third = words(3 * tries).reshape(3, tries)
    choice = (first >> np.uint64(1)).view(np.int64)
    block = table.bounds.searchsorted(choice, side="right")
    for draw in np.flatnonzero((choice < table.lowest[block]) | (choice > table.highest[block])):
        block[draw] = _exact_block(int(choice[draw]), std=std, shift=table.shift, words=words)
    offset = (second & np.uint64((1 << table.shift) - 1)).view(np.int64)
    start = block << table.shift
    # every factor is a whole number below 2^53, so that gamma is right to three parts in 10^16
    gamma = offset.astype(np.float64) * (2 * start + offset) / (2 * std * std)
    above = third * 2.0**-64 - np.exp(-gamma)
    kept = above < 0
    for draw in np.flatnonzero((np.abs(above) <= TOLERANCE) & (offset > 0)):
        exponent = Fraction(int(offset[draw]) * int(2 * start[draw] + offset[draw])) / (2 * Fraction(std) ** 2)
        kept[draw] = _exact_coin(int(third[draw]), exponent=exponent, words=words)
    kept |= offset == 0
    negative = (first & np.uint64(1)).astype(bool)
    # PRIVACY: zero has one sign only, or it would come twice as often. test_whole_numbers_have_the_exact_chances
    kept &= ~(negative & (start + offset == 0))
    size = start + offset
    signed: npt.NDArray[np.int64] = np.where(negative, -size, size)[kept]
    return signed


@functools.lru_cache(maxsize=16)
def _table(std: float) -> _Table:
    """Blocks between an eighth and a quarter of std wide, or of one number: nine draws in ten are kept."""
    shift = max(0, math.frexp(std)[1] - 3)
    bounds = [min(bound, 2**63 - 1) for bound in _bounds(std, shift, bits=63)]
    return _Table(
        shift=shift,
        bounds=np.array(bounds, dtype=np.int64),
        lowest=np.array([0, *(min(bound + TABLE_TOLERANCE, 2**63 - 1) for bound in bounds)], dtype=np.int64),
        highest=np.array([bound - 1 - TABLE_TOLERANCE for bound in [*bounds, 2**63 - 1]], dtype=np.int64),
    )


@functools.lru_cache(maxsize=32)
def _bounds(std: float, shift: int, *, bits: int) -> tuple[int, ...]:
    """2^bits times the chance of a block below 1, 2, ...; each off by less than one, up to where that is all."""
    with decimal.localcontext(decimal.Context(prec=bits * 302 // 1000 + 40)) as context:
        variance = decimal.Decimal(std) ** 2
        weights = [decimal.Decimal(1)]
        while weights[-1] > decimal.Decimal(10) ** -context.prec:
            weights.append((-(decimal.Decimal(len(weights) << shift) ** 2) / (2 * variance)).exp())
        total, below, bounds = sum(weights), decimal.Decimal(0), []
        for weight in weights[:-1]:
            below += weight
            bounds.append(int(below * 2**bits / total))
    return tuple(bounds)


def _exact_block(choice: int, *, std: float, shift: int, words: Words) -> int:
    """The block that a random number in [choice, choice + 1) / 2^63 stands for."""
    bits = 63
    while True:
        choice, bits = choice << 64 | int(words(1)[0]), bits + 64
        bounds = _bounds(std, shift, bits=bits)
        block = bisect.bisect_right(bounds, choice)
        around = [*bounds[max(0, block - 1) : block + 1], 2**bits]
        if all(abs(choice - bound) > TABLE_TOLERANCE for bound in around):
            return block


def _exact_coin(known: int, *, exponent: Fraction, words: Words) -> bool:
    """Whether a random number in [known, known + 1) / 2^64 is below exp(-exponent)."""
    bits = 64
    while True:
        with decimal.localcontext(decimal.Context(prec=bits * 302 // 1000 + 40)):
            chance = (-decimal.Decimal(exponent.numerator) / exponent.denominator).exp()
            threshold = int(chance * 2**bits)
        if abs(known - threshold) > 2:
            return known < threshold
        known, bits = known << 64 | int(words(1)[0]), bits + 64
