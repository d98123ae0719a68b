"""Bounds: from how well an attack told members from non-members to a lower bound on epsilon.

in        scores of units, each of which was in the training data or not by a fair coin of its own
out       LowerBound: "epsilon is at least this", which is wrong with a stated chance at most
relies on the coins being secret from the attack, and on guess counts and splits chosen without looking at them
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.special import bdtrc, betaincinv, ndtr, ndtri

from shared.errors import PrivacyError
from shared.privacy.accountant import MechanismUse, spent_epsilon

GUESS_SHARES = (0.02, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0)
"""shares of all units about which an attack guesses; each is tried, and the confidence is split among them"""
NUM_THRESHOLDS = 101
LARGEST_EPSILON = 60.0
LARGEST_SHIFT = 60.0
"""of the Gaussian family: no attack can show more"""
NOISE_PLACES = (64, -16)
"""of `sampled_epsilon`: eighths of an octave, from multiplier 256 down to 1/4"""


@dataclass(frozen=True)
class Guesses:
    """How an attack did: of `num_units` units it guessed about the surest ones, and was right about some."""

    num_units: int
    num_guesses: int
    num_correct: int

    def __post_init__(self) -> None:
        if not 0 <= self.num_correct <= self.num_guesses <= self.num_units:
            raise PrivacyError(
                f"{self.num_correct} of {self.num_guesses} guesses about {self.num_units} units; allowed: each at most "
                "the next"
            )


@dataclass(frozen=True)
class LowerBound:
    """Epsilon is at least this, with the confidence that was asked for; and the guesses that show it."""

    epsilon: float
    guesses: Guesses


Counts = Int[np.ndarray, "T"]
Ends = Float[np.ndarray, "T"]
Judge = Callable[[Guesses, float], float]
"""guesses and the chance of error that is allowed -> lower bound on epsilon"""


def one_run_p_value(guesses: Guesses, *, epsilon: float, delta: float) -> float:
    """Largest chance of so many right guesses against any (epsilon, delta)-DP training; above 1 never.

    Neighbouring data sets differ by one unit added or removed; each unit is in by a fair coin of its own.

    Source: Steinke, Nasr, Jagielski 2023, arXiv:2305.08846, theorem 5.2 in the form of appendix D.
    """
    right = guesses.num_correct
    accuracy = 1 / (1 + math.exp(-epsilon))
    tail = float(bdtrc(float(right - 1), guesses.num_guesses, accuracy))
    if not delta or not right:
        return tail
    steps = np.arange(1, right + 1)
    just_below = bdtrc((right - steps - 1).astype(np.float64), guesses.num_guesses, accuracy) - tail
    return min(1.0, tail + 2 * guesses.num_units * delta * float(np.max(just_below / steps)))


def one_run_epsilon(guesses: Guesses, *, delta: float, chance: float) -> float:
    """Epsilon below which so many right guesses had at most `chance`; 0 where they prove nothing.

    The p-value rises with epsilon wherever it is below 1/2, so the answer is the end of an interval.
    """
    return _last_rejected(
        lambda epsilon: one_run_p_value(guesses, epsilon=epsilon, delta=delta) <= chance, largest=LARGEST_EPSILON
    )


def trade_off_refutes(guesses: Guesses, *, least_false: Callable[[float], float], chance: float) -> bool:
    """Whether so many right guesses have at most `chance` against any training with this trade-off function.

    Args:
        least_false: chance r of an event with the unit in the data -> the least chance that the same event can have
            with the unit left out: the inverse of the blow-up function, 1 - f^-1(r) in the usual terms.

    Source: Mahloujifar, Melis, Chaudhuri 2024, arXiv:2410.22235, algorithm 3 (two-way guesses, with abstention).
    """
    right, made, units = guesses.num_correct, guesses.num_guesses, guesses.num_units
    if not right:
        return False
    r, h = chance * right / units, chance * (made - right) / units
    for index in range(right - 1, -1, -1):
        larger = max(h, least_false(r))
        if larger == h:
            break  # neither can change any more
        r, h = min(1.0, r + index / (made - index) * (larger - h)), larger
    return r + h > made / units


def gaussian_least_false(shift: float) -> Callable[[float], float]:
    """Of two normal distributions of deviation 1 whose means lie `shift` apart.

    Source: Dong, Roth, Su 2022, arXiv:1905.02383, equation 6.
    """
    return lambda chance: float(ndtr(ndtri(chance) - shift))


def gaussian_epsilon(guesses: Guesses, *, delta: float, chance: float) -> float:
    """Lower bound for a mechanism that is Gaussian noise, of whatever scale, on a sum: every step over all units.

    Tighter than `one_run_epsilon`, and void for a mechanism of another family: sampled batches are one.
    """
    shift = _last_rejected(
        lambda shift: trade_off_refutes(guesses, least_false=gaussian_least_false(shift), chance=chance),
        largest=LARGEST_SHIFT,
    )
    return spent_epsilon([MechanismUse(1 / shift, 1.0, 1)], delta=delta, accountant="pld") if shift else 0.0


def sampled_epsilon(guesses: Guesses, *, sample_rate: float, steps: int, delta: float, chance: float) -> float:
    """Lower bound for so many noisy sums over Poisson samples, of whatever noise.

    As `gaussian_epsilon`, for steps that draw each unit with `sample_rate`. The trade-off function is taken from the
    accountant's bounds at several deltas, each of which it has to keep; so it is a little too private and the answer
    a little too low. Noise multipliers are tried in steps of 9 %, which lowers it a little more.
    """

    def refuted(place: int) -> bool:
        least_false = _sampled_least_false(_noise_at(place), sample_rate, steps)
        return trade_off_refutes(guesses, least_false=least_false, chance=chance)

    private, leaky = NOISE_PLACES
    if not refuted(private):
        return 0.0
    while private - leaky > 1:
        middle = (private + leaky) // 2
        private, leaky = (middle, leaky) if refuted(middle) else (private, middle)
    return spent_epsilon([MechanismUse(_noise_at(private), sample_rate, steps)], delta=delta, accountant="pld")


def _noise_at(place: int) -> float:
    return float(2.0 ** (place / 8))


@lru_cache(maxsize=256)
def _sampled_least_false(noise_multiplier: float, sample_rate: float, steps: int) -> Callable[[float], float]:
    use = MechanismUse(noise_multiplier, sample_rate, steps)
    deltas = np.logspace(-9, -0.05, 25)
    growth = np.exp([spent_epsilon([use], delta=float(delta), accountant="pld") for delta in deltas])

    def least_false(chance: float) -> float:
        # an event and its complement, with the unit and without it: both ways of (epsilon, delta)
        return max(0.0, float(np.max((chance - deltas) / growth)), float(np.max(1 - deltas - growth * (1 - chance))))

    return least_false


def best_guesses(
    scores: Float[np.ndarray, "U"], included: Bool[np.ndarray, "U"], *, judge: Judge, confidence: float
) -> LowerBound:
    """The best bound over several counts of guesses, at the confidence asked for: the chance of error is split.

    Half of the guesses say "in" of the highest scores, half say "out" of the lowest.

    Raises:
        PrivacyError: a score that is not finite, or fewer than two units.
    """
    if len(scores) < 2 or not np.isfinite(scores).all():
        raise PrivacyError(f"{len(scores)} scores, {int(np.isfinite(scores).sum())} of them finite; allowed: 2 or more")
    order = np.argsort(scores, kind="stable")
    halves = sorted({max(1, int(share * len(scores) / 2)) for share in GUESS_SHARES})
    found = []
    for half in halves:
        right = int(included[order[-half:]].sum() + (~included[order[:half]]).sum())
        guesses = Guesses(num_units=len(scores), num_guesses=2 * half, num_correct=right)
        # PRIVACY: the best of several tries, each with its share of the chance of error.
        # test_false_alarms_are_as_rare_as_stated
        found.append(LowerBound(judge(guesses, (1 - confidence) / len(halves)), guesses))
    return max(found, key=lambda bound: bound.epsilon)


def rates_epsilon(
    *, true_positives: int, num_in: int, false_positives: int, num_out: int, delta: float, chance: float
) -> float:
    """Lower bound from the two rates of a fixed threshold: each at its Clopper-Pearson end, half the chance of error.

    Void if guesses about different units depend on each other: the intervals are for independent trials.

    Source: Jagielski, Ullman, Oprea 2020, arXiv:2006.07709, section 4; Nasr et al. 2021, arXiv:2101.04535.
    """
    hits, false = np.array([true_positives]), np.array([false_positives])
    return float(_epsilons_of_rates(hits, num_in, false, num_out, delta=delta, chance=chance)[0])


def rate_interval(count: int, total: int, *, chance: float) -> tuple[float, float]:
    """Clopper-Pearson interval of a rate; wrong on either side with at most half of `chance`."""
    low, high = _interval_ends(np.array([count]), total, chance=chance)
    return float(low[0]), float(high[0])


def threshold_bound(
    scores: Float[np.ndarray, "U"],
    included: Bool[np.ndarray, "U"],
    *,
    delta: float,
    confidence: float,
    generator: np.random.Generator,
) -> LowerBound:
    """Bound from one threshold, chosen on a random half of the units and judged on the other half.

    Guesses are "in" at the threshold and above, or "out" below it, whichever did better on the first half.

    Void if guesses about different units depend on each other (see `rates_epsilon`).
    """
    first = generator.permutation(len(scores)) < len(scores) // 2
    thresholds = np.unique(np.quantile(scores[first], np.linspace(0.0, 1.0, NUM_THRESHOLDS)))

    def judged(half: Bool[np.ndarray, "U"], *, sign: int) -> tuple[Counts, Counts, Ends]:
        # "out" below a threshold is "in" above it with scores and coins turned round
        members = included[half] if sign > 0 else ~included[half]
        guessed = (scores[half] >= thresholds[:, None]) == (sign > 0)
        hits, false = (guessed & members).sum(axis=1), (guessed & ~members).sum(axis=1)
        num_in = int(members.sum())
        return (
            hits,
            false,
            _epsilons_of_rates(hits, num_in, false, len(members) - num_in, delta=delta, chance=1 - confidence),
        )

    # PRIVACY: the half that chose the threshold proves nothing.
    # test_a_threshold_is_judged_on_units_that_did_not_choose_it
    tries = {sign: judged(first, sign=sign)[2] for sign in (1, -1)}
    sign = max(tries, key=lambda each: float(tries[each].max()))
    chosen = int(tries[sign].argmax())
    hits, false, epsilons = judged(~first, sign=sign)
    guesses = Guesses(int((~first).sum()), int(hits[chosen] + false[chosen]), int(hits[chosen]))
    return LowerBound(float(epsilons[chosen]), guesses)


def _epsilons_of_rates(hits: Counts, num_in: int, false: Counts, num_out: int, *, delta: float, chance: float) -> Ends:
    hit_rates = _interval_ends(hits, num_in, chance=chance)[0]
    false_rates = _interval_ends(false, num_out, chance=chance)[1]
    epsilons: Ends = np.log(np.maximum(hit_rates - delta, 1e-300) / false_rates).clip(min=0.0)
    return epsilons


def _interval_ends(counts: Counts, total: int, *, chance: float) -> tuple[Ends, Ends]:
    low = betaincinv(np.maximum(counts, 1), total - counts + 1, chance / 2)
    high = betaincinv(counts + 1, np.maximum(total - counts, 1), 1 - chance / 2)
    return np.where(counts == 0, 0.0, low), np.where(counts == total, 1.0, high)


def area_under_curve(scores: Float[np.ndarray, "U"], included: Bool[np.ndarray, "U"]) -> float:
    """Chance that a unit that was in scores higher than one that was not; ties count half."""
    from scipy.stats import rankdata

    num_in = int(included.sum())
    num_out = len(scores) - num_in
    if not num_in or not num_out:
        return 0.5
    return float((rankdata(scores)[included].sum() - num_in * (num_in + 1) / 2) / (num_in * num_out))


def _last_rejected(rejects: Callable[[float], bool], *, largest: float) -> float:
    """Largest argument, to 1e-4 and rounded down, up to which all are rejected; 0 where none is."""
    if not rejects(0.0):
        return 0.0
    low, high = 0.0, 1.0
    while rejects(high):
        low, high = high, 2 * high
        if low >= largest:
            return low
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (middle, high) if rejects(middle) else (low, middle)
    return low
