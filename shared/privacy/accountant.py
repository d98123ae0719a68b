"""Accountant: what noisy sums over Poisson samples reveal in total, and how much noise a budget asks for.

in        the mechanisms used so far, from ledger.py, or those a run plans
out       an upper bound on epsilon; the smallest noise multiplier that keeps a budget
relies on batches that are Poisson samples (client/sampling.py), and noise of the stated scale (private_training.py)
"""

import contextlib
import functools
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from shared.errors import BudgetError, PrivacyError
from shared.privacy.loss import epsilon_of, step_loss

Accountant = Literal["rdp", "prv", "pld"]
Curve = npt.NDArray[np.float64]

# Opacus' own orders, and some on either side: near 1 for budgets in the tens, high ones for budgets far below 1.
ORDERS = (
    *(1.01, 1.03, 1.06),
    *(1 + tenth / 10 for tenth in range(1, 100)),
    *(float(order) for order in range(12, 64)),
    *(80.0, 96.0, 128.0, 192.0, 256.0, 384.0, 512.0),
)
# A handful that cost 3 ms instead of 300: a first guess of where the answer lies, never the answer.
QUICK_ORDERS = (1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 20.0, 32.0, 64.0)
# Above this the numerical accountants need grids of gigabytes, and nobody asks for the third digit.
LARGEST_NUMERICAL_EPSILON = 100.0
LARGEST_NOISE_MULTIPLIER = 1e6
# Where almost nobody is ever drawn any noise would do, and a search for the least would not end.
SMALLEST_NOISE_MULTIPLIER = 1e-3
CALIBRATION_TOLERANCE = 1e-3
ERROR_OF_PRV = 0.01
"""what Opacus' PRV adds to every epsilon for the error of its grid: little beside 8, ten times an epsilon of 0.001"""


@dataclass(frozen=True, order=True)
class MechanismUse:
    """`steps` noisy sums, each over a fresh Poisson sample of the units."""

    noise_multiplier: float
    """noise standard deviation divided by the clip norm; 0 protects nobody"""
    sample_rate: float
    """chance that a given unit enters a given step, in (0, 1]"""
    steps: int

    def __post_init__(self) -> None:
        if not 0 <= self.noise_multiplier < math.inf:
            raise PrivacyError(f"noise_multiplier is {self.noise_multiplier}; allowed: 0 or above, finite")
        if not 0 < self.sample_rate <= 1:
            raise PrivacyError(f"sample_rate is {self.sample_rate}; allowed: above 0, at most 1")
        if self.steps < 0:
            raise PrivacyError(f"steps is {self.steps}; allowed: 0 or more")


def merged(uses: Sequence[MechanismUse]) -> tuple[MechanismUse, ...]:
    """The same uses with equal mechanisms added up, in an order of their own; composition depends on neither."""
    steps: dict[tuple[float, float], int] = {}
    for use in uses:
        key = (use.noise_multiplier, use.sample_rate)
        steps[key] = steps.get(key, 0) + use.steps
    return tuple(sorted(MechanismUse(*key, steps=count) for key, count in steps.items() if count))


def spent_epsilon(uses: Sequence[MechanismUse], *, delta: float, accountant: Accountant) -> float:
    """Upper bound on epsilon after all `uses` of one data set, in whatever order they happened.

    Promise: (epsilon, delta)-DP when one unit is added or removed. No uses cost 0; one without noise costs infinity.
    Void if: batches were not Poisson samples, or the noise had another scale. Nothing here would notice.

    Args:
        delta: in (0, 1).
        accountant: "rdp" and "prv" are Opacus' analysis; "pld" is Google's dp-accounting, the tightest of the three.

    Raises:
        PrivacyError: delta outside its range, or a numerical accountant that gave up.

    Source: rdp: Mironov et al. 2019, arXiv:1908.10530, section 3.3, converted by Balle et al. 2020, arXiv:1905.09982,
    theorem 21. prv: Gopi et al. 2021, arXiv:2106.02848, the upper bound. pld: Doroshenko et al. 2022,
    arXiv:2207.04380, the pessimistic estimate, put together in loss.py, the worse of adding and removing. Ours
    differs: above epsilon 100 every accountant answers with the Renyi bound, which is valid and cheap there.
    """
    if not 0 < delta < 1:
        raise PrivacyError(f"delta is {delta}; allowed: above 0, below 1")
    return _spent(merged(uses), delta, accountant)


def calibrate_noise(
    *,
    epsilon: float,
    delta: float,
    sample_rate: float,
    steps: int,
    accountant: Accountant,
    before: Sequence[MechanismUse] = (),
) -> float:
    """Smallest noise multiplier with which `steps` more steps after `before` stay within epsilon.

    Promise: `spent_epsilon` of `before` and these steps is at most epsilon, never above; the answer is at most 0.1 %
    larger than it need be, and never below a thousandth.

    Raises:
        PrivacyError: an argument lies outside its range.
        BudgetError: `before` has left nothing, or so little that no noise below a million clip norms would do.
    """
    if not 0 < epsilon < math.inf:
        raise PrivacyError(f"epsilon is {epsilon}; allowed: above 0, finite")
    if accountant == "prv" and epsilon <= ERROR_OF_PRV:
        raise PrivacyError(
            f'epsilon is {epsilon} with accountant "prv", which adds {ERROR_OF_PRV} for its own error; use "pld"'
        )
    if not 0 < delta < 1:
        raise PrivacyError(f"delta is {delta}; allowed: above 0, below 1")
    if steps < 1:
        raise PrivacyError(f"steps is {steps}; allowed: 1 or more")
    MechanismUse(0.0, sample_rate, steps)
    return _calibrated(epsilon, delta, sample_rate, steps, accountant, merged(before))


@functools.lru_cache(maxsize=8192)
def _spent(uses: tuple[MechanismUse, ...], delta: float, accountant: Accountant, *, coarser: int = 1) -> float:
    # PRIVACY: a sum without noise has no bound. test_a_use_without_noise_costs_infinity
    if any(use.noise_multiplier == 0 for use in uses):
        return math.inf
    if not uses:
        return 0.0
    if accountant == "rdp":
        return _renyi_epsilon(uses, delta)
    roughly = _renyi_epsilon(uses, delta, QUICK_ORDERS)
    if roughly > LARGEST_NUMERICAL_EPSILON:
        return _renyi_epsilon(uses, delta)
    epsilon = (
        _prv_epsilon(uses, delta)
        if accountant == "prv"
        else _pld_epsilon(uses, delta, coarser * _interval(uses, roughly))
    )
    if math.isinf(epsilon):
        # a delta that rounding swallows: the Renyi bound has no sum in it that could lose it
        return _renyi_epsilon(uses, delta)
    if not epsilon >= 0:
        raise PrivacyError(f'accountant "{accountant}" found epsilon {epsilon}; allowed: 0 or above; use "rdp"')
    return epsilon


@functools.lru_cache(maxsize=1024)
def _calibrated(
    epsilon: float,
    delta: float,
    sample_rate: float,
    steps: int,
    accountant: Accountant,
    before: tuple[MechanismUse, ...],
) -> float:
    already = _spent(before, delta, accountant)
    if already >= epsilon:
        raise BudgetError(f"epsilon {already:.4g} of {epsilon:.4g} is spent already; nothing is left for this run")

    def smallest(spent: Callable[[tuple[MechanismUse, ...]], float], *, guess: float, stride: float) -> float:
        def excess(log_noise: float) -> float:
            total = spent(merged([*before, MechanismUse(math.exp(log_noise), sample_rate, steps)]))
            return math.log(total / epsilon) if total > 0 else -math.inf

        return _smallest_safe(excess, guess=guess, stride=stride)

    guess, stride = 0.0, math.log(1.08)
    with contextlib.suppress(BudgetError):
        guess = smallest(lambda uses: _renyi_epsilon(uses, delta, QUICK_ORDERS), guess=guess, stride=stride)
        if accountant == "pld":
            # a coarser grid is as sound, a little above, and several times as fast; the last word is the fine one's
            guess = smallest(lambda uses: _spent(uses, delta, "pld", coarser=8), guess=guess, stride=stride)
            stride = 2 * CALIBRATION_TOLERANCE
    # PRIVACY: the accountant that is asked, at its full precision, decides. test_calibration_never_overspends
    return math.exp(smallest(lambda uses: _spent(uses, delta, accountant), guess=guess, stride=stride))


def _smallest_safe(excess: Callable[[float], float], *, guess: float, stride: float) -> float:
    """Least argument at which a falling function is at most 0, rounded up: the function was seen to be safe there."""
    low = high = guess
    above, below = math.inf, excess(high)
    while below > 0:
        low, above = high, below
        high, stride = high + stride, 2 * stride
        if high > math.log(LARGEST_NOISE_MULTIPLIER):
            raise BudgetError("what is left of the budget is too little for a single further step")
        below = excess(high)
    while low == high or above <= 0:
        if low <= (least := math.log(SMALLEST_NOISE_MULTIPLIER)):
            return high
        low, stride = max(low - stride, least), 2 * stride
        above = excess(low)
        if above <= 0:
            high, below = low, above
    toward = 1
    while high - low > CALIBRATION_TOLERANCE:
        share = above / (above - below) if math.isfinite(above) and math.isfinite(below) else 0.5
        # A chord through both ends, then a hair to either side of it in turn, so that both ends close in on the answer.
        middle = low + min(max(share, 0.02), 0.98) * (high - low) + toward * CALIBRATION_TOLERANCE / 3
        middle = min(max(middle, low + 0.01 * (high - low)), high - 0.01 * (high - low))
        value = excess(middle)
        # PRIVACY: only a value that was seen to be safe becomes the upper end. test_calibration_never_overspends
        if value <= 0:
            high, below, toward = middle, value, -1
        else:
            low, above, toward = middle, value, 1
    return high


@functools.lru_cache(maxsize=8192)
def _renyi_curve(noise_multiplier: float, sample_rate: float, orders: tuple[float, ...]) -> Curve:
    """Renyi divergence of one step at each of the orders, from Opacus; infinite where its series fails."""
    from opacus.accountants.analysis import rdp

    curve = np.full(len(orders), np.inf)
    for index, order in enumerate(orders):
        try:
            value = rdp.compute_rdp(q=sample_rate, noise_multiplier=noise_multiplier, steps=1, orders=order)
        except (ValueError, OverflowError):
            continue  # an order without a value is never the best one, so the bound stays a bound
        if value >= 0:
            curve[index] = value
    curve.flags.writeable = False
    return curve


def _renyi_epsilon(uses: tuple[MechanismUse, ...], delta: float, orders: tuple[float, ...] = ORDERS) -> float:
    from opacus.accountants.analysis import rdp

    total = np.zeros(len(orders))
    for use in uses:
        total = total + use.steps * _renyi_curve(use.noise_multiplier, use.sample_rate, orders)
    if not np.isfinite(total).any():
        return math.inf
    with warnings.catch_warnings():
        # The bound holds at every order; that the best one is the first or the last only means it could be tighter.
        warnings.filterwarnings("ignore", message="Optimal order is the")
        epsilon, _ = rdp.get_privacy_spent(orders=list(orders), rdp=total, delta=delta)
    return max(0.0, float(epsilon))


def _prv_epsilon(uses: tuple[MechanismUse, ...], delta: float) -> float:
    from opacus.accountants import PRVAccountant

    accountant = PRVAccountant()
    accountant.history = [(use.noise_multiplier, use.sample_rate, use.steps) for use in uses]
    try:
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return float(accountant.get_epsilon(delta))
    except (RuntimeError, ValueError, MemoryError) as error:
        raise PrivacyError(f'accountant "prv" gave up on {uses}: {error}; use "pld" or "rdp"') from None


def _pld_epsilon(uses: tuple[MechanismUse, ...], delta: float, interval: float) -> float:
    from dp_accounting.gaussian_mechanism import get_epsilon_gaussian

    parts = [use for use in uses if use.sample_rate < 1]
    # Full batches are plain Gaussian mechanisms: together exactly one, with the precisions added.
    precision = sum(use.steps / use.noise_multiplier**2 for use in uses if use.sample_rate == 1)
    if not parts:
        with np.errstate(divide="ignore"):  # a difference of two equal logarithms is minus infinity, as it should be
            return float(get_epsilon_gaussian(precision**-0.5, delta))
    losses = [(step_loss(use.noise_multiplier, use.sample_rate, interval), use.steps) for use in parts]
    if precision:
        losses.append((step_loss(precision**-0.5, 1.0, interval), 1))
    return epsilon_of(losses, delta=delta)


def _interval(uses: Sequence[MechanismUse], roughly: float) -> float:
    """Grid width, a power of two: the wider of two that are both fine enough, on at most 100,000 points or so.

    Any width gives a valid bound. A tenth of the spread of the finest step's loss is within 0.1 % of the limit, and so
    is one at which steps * width^2, which is about what the grid adds to epsilon, is 0.02 % of it (both measured for
    sample rates .00001 to .9 and noise multipliers .27 to 25; a fixed 0.001 is off by 1.4 % at rate .05 and noise 20).
    """
    sampled = [use for use in uses if use.sample_rate < 1]
    if not sampled:
        return 1e-3
    # the root of the chi-square divergence of one step; past exp(20) only losses far rarer than any delta add to it
    spreads = [use.sample_rate * math.sqrt(math.expm1(min(use.noise_multiplier**-2, 20.0))) for use in sampled]
    total = math.sqrt(sum(use.steps * spread**2 for use, spread in zip(sampled, spreads, strict=True)))
    by_steps = math.sqrt(2e-4 * min(roughly, 2 * total) / sum(use.steps for use in sampled))
    width = max(min(1e-3, max(min(spreads) / 10, by_steps)), roughly / 1e5, 1e-6)
    return float(2.0 ** math.floor(math.log2(width)))
