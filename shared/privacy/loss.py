"""Loss: the privacy losses of many steps on one grid, added up in one Fourier transform.

in        what a step of each mechanism may reveal, as dp-accounting finds it, and how many steps there were
out       an upper bound on epsilon, asked for by accountant.py
relies on fields that dp-accounting keeps to itself, in `_found`: holds for the versions in DP_ACCOUNTING_VERSIONS

dp-accounting puts two distributions together at a time, so that twenty mechanisms, one of which took four more steps,
cost nineteen convolutions. Here each mechanism's transform is raised to its number of steps and they are multiplied:
what did not change is kept, and the answer depends on nothing but the steps of each mechanism.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from dp_accounting.pld.pld_pmf import PLDPmf

Numbers = npt.NDArray[np.float64]
Spectrum = npt.NDArray[np.complex128]

DP_ACCOUNTING_VERSIONS = ("0.6",)
"""versions under which the private names in `_found` are known to mean what is read from them"""
TAIL = 1e-15
"""chance of a loss outside the window that is looked at; counted as a loss without bound, as dp-accounting does"""
ROUNDING = 2.0**-54
"""of delta, for each step: ten times the most by which double precision was seen to leave out of it"""
_SIZES = 2.0 ** np.arange(-4, 13)
ORDERS: Numbers = np.concatenate([-_SIZES, _SIZES])
"""at which the window is bounded; the best order for losses of spread s is about 8 / s"""
KNOWN_STEPS, KNOWN_POWERS = 512, 64
"""how many steps and powers are kept: up to about 200 KB and 1 MB each"""


@dataclass(frozen=True, eq=False)
class _OneWay:
    """The loss of a step when a unit is removed, or when one is added."""

    lowest: int
    """loss of the first probability, in grid intervals"""
    probabilities: Numbers
    """one a grid point; with `infinite` they sum to 1"""
    infinite: float
    """chance of a loss without bound"""
    log_moments: Numbers
    """log of the mean of exp(order * loss), over finite losses, at each of ORDERS"""


@dataclass(frozen=True, eq=False)
class StepLoss:
    """What one step of a mechanism may reveal, on a grid; never less than it does."""

    interval: float
    removed: _OneWay
    added: _OneWay


@functools.lru_cache(maxsize=KNOWN_STEPS)
def step_loss(noise_multiplier: float, sample_rate: float, interval: float) -> StepLoss:
    """The loss of one noisy sum over a Poisson sample, by dp-accounting's pessimistic estimate.

    Source: Doroshenko et al. 2022, arXiv:2207.04380, algorithm 1.
    """
    from dp_accounting.pld import privacy_loss_distribution

    loss = privacy_loss_distribution.from_gaussian_mechanism(
        noise_multiplier, value_discretization_interval=interval, sampling_prob=sample_rate, pessimistic_estimate=True
    )
    removed, added = loss._pmf_remove, loss._pmf_add
    one_way = _found(removed, interval=interval)
    return StepLoss(interval, one_way, one_way if added is removed else _found(added, interval=interval))


def epsilon_of(parts: Sequence[tuple[StepLoss, int]], *, delta: float) -> float:
    """Upper bound on epsilon at `delta` after so many steps of each part, the worse of adding and removing a unit.

    The answer is the same in whatever order the parts are given, but for the last bits; infinity where no epsilon does.
    What rounding of double precision may leave out is counted as delta, ROUNDING a step: measured, and no theorem.
    Where that is all of delta, the answer is infinity.

    Args:
        parts: one or more, all on the same grid, each with 1 step or more.
        delta: in (0, 1).

    Source: Koskela, Jälkö, Honkela 2020, arXiv:1906.03049, for losses added up by a Fourier transform; the window as
    in dp-accounting's `self_convolve`. Ours differs: one transform for all mechanisms instead of two at a time.
    """
    interval = parts[0][0].interval
    removed = _epsilon([(loss.removed, steps) for loss, steps in parts], interval=interval, delta=delta)
    return max(removed, _epsilon([(loss.added, steps) for loss, steps in parts], interval=interval, delta=delta))


def _found(distribution: "PLDPmf", *, interval: float) -> _OneWay:
    """What dp-accounting found, out of the fields in which it keeps it."""
    dense = distribution.to_dense_pmf()
    # a rounding error below zero counts as zero, which is the larger of the two
    probabilities = np.maximum(dense._probs, 0.0)
    losses = (dense._lower_loss + np.arange(dense.size)) * interval
    with np.errstate(divide="ignore"):
        logs = np.log(probabilities) + ORDERS[:, None] * losses
    largest = logs.max(axis=1, keepdims=True)
    log_moments = largest[:, 0] + np.log(np.exp(logs - largest).sum(axis=1))
    return _OneWay(int(dense._lower_loss), probabilities, float(dense._infinity_mass), log_moments)


def _epsilon(parts: Sequence[tuple[_OneWay, int]], *, interval: float, delta: float) -> float:
    """Least epsilon at which the hockey-stick divergence of all parts together is at most delta."""
    # PRIVACY: what lies outside the window is a loss without bound. test_all_mass_is_accounted_for
    rounded = ROUNDING * sum(steps for _, steps in parts)
    infinite = TAIL + rounded - math.expm1(sum(steps * math.log1p(-loss.infinite) for loss, steps in parts))
    if infinite >= delta:
        return math.inf
    first, probabilities = _added_up(parts, interval=interval)
    # from the largest loss down to the last that is above 0, where epsilon may lie
    losses = np.arange(first + len(probabilities) - 1, max(first - 1, 0), -1) * interval
    if not len(losses):
        return 0.0
    from_above = probabilities[::-1][: len(losses)]
    more = infinite + np.cumsum(from_above)
    less = np.cumsum(from_above * np.exp(-losses))
    # the divergence at each loss, from those above it; it grows as the losses fall
    with np.errstate(divide="ignore"):
        at_loss = np.concatenate([[infinite], more[:-1] - np.exp(np.log(less[:-1]) + losses[1:])])
    index = int(np.searchsorted(np.maximum.accumulate(at_loss), delta, side="right"))
    most, least = float(more[index - 1]), float(less[index - 1])
    if most <= least + delta:
        return 0.0
    return math.log((most - delta) / least) if least > 0 else float(losses[index - 1])


def _added_up(parts: Sequence[tuple[_OneWay, int]], *, interval: float) -> tuple[int, Numbers]:
    """The distribution of the sum of all losses: its first grid point, and probabilities from there on.

    Of what lies outside, TAIL at most, the transform puts some inside at random: that only adds.
    """
    first, last = _window(parts, interval=interval)
    size = _length(max(last - first + 1, *(len(loss.probabilities) for loss, _ in parts)))
    spectra = [_power(*part, size) if len(parts) > 1 else _raised(*part, size) for part in parts]
    whole = functools.reduce(np.multiply, spectra)
    around = np.maximum(np.fft.irfft(whole, size), 0.0)
    begin = (first - sum(loss.lowest * steps for loss, steps in parts)) % size
    return first, np.concatenate([around[begin:], around[:begin]])[: last - first + 1]


def _window(parts: Sequence[tuple[_OneWay, int]], *, interval: float) -> tuple[int, int]:
    """The first and last grid point of all losses but for TAIL of them, half on either side, by Chernoff's bound."""
    moments = functools.reduce(np.add, [loss.log_moments * steps for loss, steps in parts])
    with np.errstate(invalid="ignore"):
        bounds = (moments + math.log(2 / TAIL)) / ORDERS / interval
    bounds, half = np.where(np.isfinite(bounds), bounds, np.inf * ORDERS), len(ORDERS) // 2
    first = sum(loss.lowest * steps for loss, steps in parts)
    last = sum((loss.lowest + len(loss.probabilities) - 1) * steps for loss, steps in parts)
    below, above = float(bounds[:half].max()), float(bounds[half:].min())
    return (
        max(first, math.floor(below)) if math.isfinite(below) else first,
        min(last, math.ceil(above)) if math.isfinite(above) else last,
    )


def _length(at_least: int) -> int:
    """A power of two, or three quarters of one: few, so that powers are used again when the window has grown."""
    power = 1 << (at_least - 1).bit_length()
    return power * 3 // 4 if power * 3 // 4 >= at_least else power


def _raised(loss: _OneWay, steps: int, size: int) -> Spectrum:
    """The transform of so many steps, by repeated squaring."""
    square = np.fft.rfft(loss.probabilities, size)
    result: Spectrum | None = None
    while steps:
        if steps & 1:
            result = square if result is None else result * square
        if steps := steps >> 1:
            square = square * square
    if result is None:
        raise AssertionError("a part without a step")
    return result


_power = functools.lru_cache(maxsize=KNOWN_POWERS)(_raised)
