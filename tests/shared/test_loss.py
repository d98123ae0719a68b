"""Tests of shared/privacy/loss.py: losses add up as in exact arithmetic, and as dp-accounting adds them up."""

import functools
import math
from fractions import Fraction
from importlib.metadata import version

import numpy as np
import pytest
from dp_accounting.pld import pld_pmf, privacy_loss_distribution
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.privacy import loss
from shared.privacy.loss import DP_ACCOUNTING_VERSIONS, ROUNDING, TAIL, StepLoss, _found, epsilon_of, step_loss

INTERVAL = 2.0**-10
Mechanism = tuple[float, float, int]


def randomised_response(points: int, *, infinite: float = 0.0) -> tuple[StepLoss, Fraction]:
    """A step whose loss is so many grid intervals or as many below zero, and the chance of the former."""
    chance = Fraction(1 / (1 + math.exp(-points * INTERVAL))) * (1 - Fraction(infinite))
    table = {points: float(chance), -points: float(1 - Fraction(infinite) - chance)}
    found = _found(pld_pmf.create_pmf(table, INTERVAL, infinite, True), interval=INTERVAL)
    return StepLoss(INTERVAL, found, found), chance


def exact_delta(epsilon: float, *, chance: Fraction, infinite: float, points: int, steps: int) -> float:
    """The hockey-stick divergence of so many responses, term by term."""
    up, down = float(chance), float(1 - Fraction(infinite) - chance)
    terms = []
    for number in range(steps + 1):
        total = (2 * number - steps) * points * INTERVAL
        if total > epsilon:
            log = math.lgamma(steps + 1) - math.lgamma(number + 1) - math.lgamma(steps - number + 1)
            log += number * math.log(up) + (steps - number) * math.log(down)
            terms.append(math.exp(log) * -math.expm1(epsilon - total))
    return math.fsum(terms) - math.expm1(steps * math.log1p(-infinite))


@given(
    points=st.integers(1, 400),
    steps=st.integers(1, 600),
    infinite=st.sampled_from([0.0, 1e-12, 1e-9]),
    delta=st.sampled_from([1e-3, 1e-5, 1e-8]),
)
@settings(max_examples=40, deadline=None)
def test_many_steps_cost_what_exact_arithmetic_says(points: int, steps: int, infinite: float, delta: float) -> None:
    part, chance = randomised_response(points, infinite=infinite)
    epsilon = epsilon_of([(part, steps)], delta=delta)

    exact = functools.partial(exact_delta, chance=chance, infinite=infinite, points=points, steps=steps)
    if math.isinf(epsilon):
        assert exact(1e9) >= delta * (1 - 1e-6)
        return
    assert exact(epsilon) <= delta * (1 + 1e-6)
    assert epsilon == 0 or exact(epsilon * (1 - 1e-6)) >= delta * (1 - 1e-5)


def test_all_mass_is_accounted_for() -> None:
    """Losses without bound, of all steps, and those outside the window: no epsilon holds at a delta below them."""
    part, _ = randomised_response(100, infinite=1e-9)
    assert math.isinf(epsilon_of([(part, 1000)], delta=0.99e-6))
    assert math.isfinite(epsilon_of([(part, 1000)], delta=1.01e-6))
    other, _ = randomised_response(100)
    assert math.isinf(epsilon_of([(other, 1000)], delta=TAIL))
    # what rounding of each step may leave out is no more known
    rounded = TAIL + 1000 * ROUNDING
    assert math.isinf(epsilon_of([(other, 1000)], delta=0.99 * rounded))
    assert math.isfinite(epsilon_of([(other, 1000)], delta=1.01 * rounded))


@pytest.mark.parametrize(("points", "steps"), [(1, 5000), (50, 300), (400, 2000)])
def test_the_window_leaves_out_no_more_than_it_may(points: int, steps: int) -> None:
    """And is no wider than it need be: within 14 standard deviations, where 8 on either side would do."""
    part, chance = randomised_response(points)
    first, last = loss._window([(part.removed, steps)], interval=INTERVAL)
    inside = [number for number in range(steps + 1) if first <= (2 * number - steps) * points <= last]
    logs = [math.lgamma(steps + 1) - math.lgamma(n + 1) - math.lgamma(steps - n + 1) for n in range(steps + 1)]
    up, down = math.log(float(chance)), math.log(float(1 - chance))
    outside = [
        math.exp(log + n * up + (steps - n) * down) for n, log in enumerate(logs) if not inside[0] <= n <= inside[-1]
    ]
    assert math.fsum(outside) <= TAIL
    assert last - first <= 2 * 14 * points * math.sqrt(steps) + 2


MECHANISMS = st.tuples(
    st.sampled_from([0.7, 1.3, 4.0, 11.0]), st.sampled_from([0.01, 0.1, 0.6, 1.0]), st.sampled_from([1, 7, 300])
)


@given(used=st.lists(MECHANISMS, min_size=1, max_size=3), delta=st.sampled_from([1e-3, 1e-5, 1e-8]))
@settings(max_examples=10, deadline=None)
def test_histories_cost_what_dp_accounting_composes(used: list[Mechanism], delta: float) -> None:
    """Its own convolutions, two distributions at a time, of the same steps on the same grid."""
    theirs = None
    for noise, rate, steps in used:
        single = privacy_loss_distribution.from_gaussian_mechanism(
            noise, value_discretization_interval=INTERVAL, sampling_prob=rate
        )
        several = single.self_compose(steps)
        theirs = several if theirs is None else theirs.compose(several)
    assert theirs is not None
    ours = epsilon_of([(step_loss(noise, rate, INTERVAL), steps) for noise, rate, steps in used], delta=delta)
    assert ours == pytest.approx(theirs.get_epsilon_for_delta(delta), rel=1e-5, abs=1e-9)


def test_what_is_kept_from_earlier_questions_changes_no_answer() -> None:
    """Bit for bit, while a history grows row by row."""
    losses = [step_loss(noise, 0.1, INTERVAL) for noise in (3.0, 4.0, 5.0)]
    grown = []
    for row in range(1, 13):
        steps = [1 + 4 * ((row + 2 - index) // 3) for index in range(3)]
        grown.append(epsilon_of(list(zip(losses, steps, strict=True)), delta=1e-5))
        loss._power.cache_clear()
        assert epsilon_of(list(zip(losses, steps, strict=True)), delta=1e-5) == grown[-1]
    assert np.all(np.diff(grown) > 0)


def test_versions_of_dp_accounting_are_those_whose_private_names_are_used() -> None:
    assert version("dp-accounting").rsplit(".", 1)[0] in DP_ACCOUNTING_VERSIONS
