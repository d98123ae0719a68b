"""Tests of shared/privacy/accountant.py: the number is an upper bound that others agree with, and noise buys it."""

import itertools
import math
from fractions import Fraction
from typing import get_args

import dp_accounting
import numpy as np
import pytest
from dp_accounting import pld, rdp
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import BudgetError, PrivacyError
from shared.privacy.accountant import (
    ORDERS,
    Accountant,
    MechanismUse,
    _renyi_curve,
    calibrate_noise,
    merged,
    spent_epsilon,
)

ACCOUNTANTS: tuple[Accountant, ...] = get_args(Accountant)
CASES = [
    [MechanismUse(1.1, 0.01, 1000)],
    [MechanismUse(1.0, 0.05, 20)],
    [MechanismUse(20.0, 0.05, 2000)],
    [MechanismUse(4.0, 0.3, 60)],
    [MechanismUse(5.0, 1.0, 50)],
    [MechanismUse(3.0, 0.2, 100), MechanismUse(1.5, 0.05, 40), MechanismUse(8.0, 1.0, 10)],
]


def spent(uses: list[MechanismUse], accountant: Accountant = "pld", delta: float = 1e-5) -> float:
    return spent_epsilon(uses, delta=delta, accountant=accountant)


def events(uses: list[MechanismUse]) -> list[tuple[dp_accounting.DpEvent, int]]:
    """The same mechanisms in the words of dp-accounting."""
    return [
        (
            dp_accounting.PoissonSampledDpEvent(use.sample_rate, dp_accounting.GaussianDpEvent(use.noise_multiplier)),
            use.steps,
        )
        for use in uses
    ]


@pytest.mark.parametrize("uses", CASES)
def test_spent_epsilon_matches_an_independent_calculation(uses: list[MechanismUse]) -> None:
    """Opacus' Renyi bound against dp-accounting's own, at equal orders; ours by PLD against theirs on a finer grid."""
    renyi, numerical = rdp.RdpAccountant(list(ORDERS)), pld.PLDAccountant(value_discretization_interval=1e-4)
    for event, count in events(uses):
        renyi.compose(event, count)
        numerical.compose(event, count)

    # dp-accounting leaves out orders at which its series has not converged after a thousand terms.
    assert spent(uses, "rdp") == pytest.approx(renyi.get_epsilon(1e-5), rel=2e-3)
    assert spent(uses, "pld") == pytest.approx(numerical.get_epsilon(1e-5), rel=2e-3)


@pytest.mark.parametrize("uses", CASES)
def test_accountants_bound_the_same_loss(uses: list[MechanismUse]) -> None:
    """PRV's upper bound lies at most its own error of .02 above PLD's; Renyi's within 30 %, and above both."""
    tight = spent(uses, "pld")

    assert tight - 1e-3 <= spent(uses, "prv") <= tight + 0.022
    assert tight <= spent(uses, "rdp") <= 1.3 * tight


def test_golden_numbers() -> None:
    """By Opacus 1.6 with its own orders, and by dp-accounting 0.6."""
    assert spent([MechanismUse(1.1, 0.01, 1000)], "rdp") == pytest.approx(1.7118, abs=1e-3)
    assert spent([MechanismUse(1.1, 0.01, 1000)], "pld") == pytest.approx(1.5162, abs=1e-3)


@pytest.mark.parametrize(
    ("use", "delta", "by_rdp", "by_pld"),
    [
        (MechanismUse(0.7, 0.01, 120), 1e-5, 3.2392676, 2.4612381),
        (MechanismUse(0.7, 1.0, 2), 1e-5, 10.8602036, 10.1224946),
        (MechanismUse(0.35, 1.0, 2), 1e-5, 26.2880374, 24.7160779),
        (MechanismUse(1.0, 0.0064, 782), 1e-6, 1.616, 1.199),
        (MechanismUse(1.3, 150 / 60_000, 6000), 1e-5, 0.7242234, None),
        (MechanismUse(1.0, 0.001, 30_000), 1e-7, 1.4154988, None),
    ],
)
def test_tensorflow_privacys_own_expectations_are_met(
    use: MechanismUse, delta: float, by_rdp: float, by_pld: float | None
) -> None:
    """The numbers in compute_dp_sgd_privacy_test.py of TensorFlow Privacy; where it doubles the sensitivity for
    microbatches, our noise multiplier is half of its own. Its orders are nearly ours, its PLD grid is fixed."""
    assert spent([use], "rdp", delta) == pytest.approx(by_rdp, rel=3e-4)
    if by_pld is not None:
        assert spent([use], "pld", delta) == pytest.approx(by_pld, rel=3e-4)


@pytest.mark.parametrize(
    ("use", "published", "within"),
    [
        (MechanismUse(4.0, 0.01, 10_000), 1.26, 0.005),
        (MechanismUse(1.12, 256 / 60_000, 60 * 60_000 // 256), 2.92, 0.01),
        (MechanismUse(0.6, 256 / 60_000, 30 * 60_000 // 256), 9.74, 0.03),
        (MechanismUse(1.2, 256 / 60_000, 10 * 60_000 // 256), 1.20, 0.01),
    ],
)
def test_published_numbers_follow_by_the_conversion_of_their_time(
    use: MechanismUse, published: float, within: float
) -> None:
    """Abadi et al. 2016, section 3.2 and figure 2; the table of TensorFlow Privacy's tutorials. Both convert Renyi
    divergence by Mironov 2017, proposition 3; the conversion used since 2020 gives less, and PLD less still."""
    orders = np.array(ORDERS)
    total = use.steps * _renyi_curve(use.noise_multiplier, use.sample_rate, ORDERS)

    assert np.nanmin(total + math.log(1e5) / (orders - 1)) == pytest.approx(published, abs=within)
    assert spent([use], "pld") < spent([use], "rdp") < published


@pytest.mark.parametrize(("noise_multiplier", "sample_rate"), [(0.7, 0.01), (2.0, 0.3), (8.0, 0.9)])
def test_the_divergence_is_that_of_the_sampled_gaussian(noise_multiplier: float, sample_rate: float) -> None:
    """Mironov et al. 2019, section 3.3: at whole orders the divergence is a finite sum, done here in fractions."""
    curve = dict(zip(ORDERS, _renyi_curve(noise_multiplier, sample_rate, ORDERS), strict=True))
    rate = Fraction(sample_rate)
    for order in (2, 3, 8, 20):
        moment = sum(
            math.comb(order, k)
            * (1 - rate) ** (order - k)
            * rate**k
            * Fraction(math.exp((k * k - k) / (2 * noise_multiplier**2)))
            for k in range(order + 1)
        )
        exact = (math.log(moment.numerator) - math.log(moment.denominator)) / (order - 1)
        assert curve[float(order)] == pytest.approx(exact, rel=1e-6)


def test_full_batches_cost_what_one_gaussian_does() -> None:
    """Exact: Balle and Wang 2018, arXiv:1805.06530, theorem 8, solved for delta here."""
    epsilon, mean = spent([MechanismUse(3.0, 1.0, 18)]), math.sqrt(18) / 3.0

    def below(value: float) -> float:
        return math.erfc(-value / math.sqrt(2)) / 2

    delta = below(mean / 2 - epsilon / mean) - math.exp(epsilon) * below(-mean / 2 - epsilon / mean)
    assert delta == pytest.approx(1e-5, rel=1e-6)
    assert spent([MechanismUse(3.0, 1.0, 9), MechanismUse(3.0 * (1 + 1e-12), 1.0, 9)]) == pytest.approx(epsilon)


@pytest.mark.parametrize(("sample_rate", "noise_multiplier"), [(0.01, 1.1), (0.3, 4.0)])
def test_the_divergence_never_falls_with_its_order(sample_rate: float, noise_multiplier: float) -> None:
    """As any Renyi divergence; a series cut off too early would dip at the orders between whole numbers."""
    curve = _renyi_curve(noise_multiplier, sample_rate, ORDERS)
    known = curve[np.isfinite(curve)]

    assert len(known) > 100
    assert (np.diff(known) > -1e-9).all()


@pytest.mark.parametrize("accountant", ACCOUNTANTS)
def test_nothing_costs_nothing(accountant: Accountant) -> None:
    assert spent([], accountant) == 0.0
    assert spent([MechanismUse(1.0, 0.5, 0)], accountant) == 0.0


@pytest.mark.parametrize("accountant", ACCOUNTANTS)
def test_a_use_without_noise_costs_infinity(accountant: Accountant) -> None:
    assert spent([MechanismUse(5.0, 0.1, 1), MechanismUse(0.0, 0.1, 1)], accountant) == math.inf


@pytest.mark.parametrize("accountant", ACCOUNTANTS)
def test_next_to_no_noise_costs_very_much_and_fails_nowhere(accountant: Accountant) -> None:
    assert spent([MechanismUse(0.05, 0.1, 100)], accountant) > 1000
    assert spent([MechanismUse(1e-3, 1.0, 10_000)], accountant) > 1e6


use = st.builds(
    MechanismUse,
    noise_multiplier=st.floats(0.8, 30.0),
    sample_rate=st.one_of(st.floats(0.005, 0.9), st.just(1.0)),
    steps=st.integers(1, 300),
)


@settings(max_examples=8, deadline=None)
@given(one=use)
def test_more_steps_less_noise_or_more_sampling_never_cost_less(one: MechanismUse) -> None:
    cost = spent([one])
    slack = 1 + 2e-3  # each number is a bound within a few parts in ten thousand of its limit

    assert spent([MechanismUse(one.noise_multiplier, one.sample_rate, one.steps + 1)]) * slack >= cost
    assert spent([MechanismUse(one.noise_multiplier / 1.1, one.sample_rate, one.steps)]) * slack >= cost
    assert spent([MechanismUse(one.noise_multiplier, min(1.0, one.sample_rate * 1.1), one.steps)]) * slack >= cost


@settings(max_examples=4, deadline=None)
@given(uses=st.lists(use, min_size=2, max_size=3))
def test_neither_order_nor_merging_changes_the_sum(uses: list[MechanismUse]) -> None:
    parts = [MechanismUse(one.noise_multiplier, one.sample_rate, 1) for one in uses for _ in range(3)]
    totals = [MechanismUse(one.noise_multiplier, one.sample_rate, 3) for one in uses]
    costs = {spent(list(order)) for order in itertools.islice(itertools.permutations(parts), 3)}

    assert costs == {spent(totals)}
    assert merged(parts) == merged(totals)


@settings(max_examples=6, deadline=None)
@given(one=use, first=st.integers(1, 100))
def test_splitting_a_run_into_rounds_changes_nothing(one: MechanismUse, first: int) -> None:
    parts = [MechanismUse(one.noise_multiplier, one.sample_rate, steps) for steps in (first, one.steps)]
    whole = MechanismUse(one.noise_multiplier, one.sample_rate, first + one.steps)

    assert all(spent(parts, accountant) == spent([whole], accountant) for accountant in ("pld", "rdp"))


@settings(max_examples=6, deadline=None)
@given(one=use, other=use)
def test_one_more_use_never_costs_less(one: MechanismUse, other: MechanismUse) -> None:
    for accountant in ("pld", "rdp"):
        assert spent([one, other], accountant) * (1 + 2e-3) >= max(spent([one], accountant), spent([other], accountant))


@settings(max_examples=6, deadline=None)
@given(one=use, exponent=st.floats(2.0, 9.0))
def test_a_smaller_delta_never_costs_less(one: MechanismUse, exponent: float) -> None:
    """By both analyses; PLD's grid depends on delta a little, hence the slack."""
    for accountant in ("pld", "rdp"):
        larger, smaller = (spent([one], accountant, 10**-power) for power in (exponent, exponent + 0.5))
        assert smaller * (1 + 2e-3) >= larger


@pytest.mark.parametrize("more", [MechanismUse(6.0, 0.1, 30), MechanismUse(9.0, 1.0, 2)])
def test_more_before_never_asks_for_less_noise(more: MechanismUse) -> None:
    def needed(*before: MechanismUse) -> float:
        return calibrate_noise(epsilon=6.0, delta=1e-5, sample_rate=0.1, steps=40, accountant="pld", before=before)

    assert needed() <= needed(more) * (1 + 1e-3)
    assert needed(more) <= needed(more, more) * (1 + 1e-3)


@pytest.mark.parametrize(
    ("use", "least", "most"),
    [
        (MechanismUse(1.0, 1e-6, 10), 0.0, 1e-3),
        (MechanismUse(1e5, 0.5, 100), 0.0, 1e-3),
        (MechanismUse(0.3, 0.5, 1), 12.0, 25.0),
        (MechanismUse(25.0, 0.01, 250_000), 0.725, 0.729),
    ],
)
def test_extreme_mechanisms_have_sensible_costs(use: MechanismUse, least: float, most: float) -> None:
    """Tiny rate, huge noise, tiny noise; and many steps, which by the central limit are one Gaussian of mean .2."""
    assert least <= spent([use]) <= most


@pytest.mark.parametrize("epsilon", [0.5, 8.0])
@pytest.mark.parametrize(
    ("accountant", "sample_rate", "steps"),
    [("pld", 0.05, 400), ("pld", 0.5, 30), *((accountant, 1.0, 20) for accountant in ACCOUNTANTS)],
)
def test_calibration_never_overspends(accountant: Accountant, sample_rate: float, steps: int, epsilon: float) -> None:
    noise = calibrate_noise(epsilon=epsilon, delta=1e-5, sample_rate=sample_rate, steps=steps, accountant=accountant)

    assert spent([MechanismUse(noise, sample_rate, steps)], accountant) <= epsilon
    assert spent([MechanismUse(noise * 0.998, sample_rate, steps)], accountant) > epsilon


@pytest.mark.parametrize("epsilon", [0.01, 90.0, 300.0])
def test_extreme_budgets_are_calibrated_too(epsilon: float) -> None:
    noise = calibrate_noise(epsilon=epsilon, delta=1e-5, sample_rate=0.1, steps=50, accountant="pld")

    assert 0.95 * epsilon < spent([MechanismUse(noise, 0.1, 50)]) <= epsilon


def test_calibration_to_what_is_left() -> None:
    before = (MechanismUse(2.0, 0.1, 100), MechanismUse(4.0, 1.0, 3))
    already = spent(list(before))
    noise = calibrate_noise(
        epsilon=already + 1.0, delta=1e-5, sample_rate=0.2, steps=60, accountant="pld", before=before
    )
    alone = calibrate_noise(epsilon=1.0, delta=1e-5, sample_rate=0.2, steps=60, accountant="pld")

    assert already + 0.99 < spent([*before, MechanismUse(noise, 0.2, 60)]) <= already + 1.0
    assert noise < alone  # composition of two runs costs less than the sum of their epsilons


def test_calibration_merges_with_an_equal_mechanism_before() -> None:
    noise = calibrate_noise(epsilon=4.0, delta=1e-5, sample_rate=0.2, steps=60, accountant="pld")
    before = (MechanismUse(noise, 0.2, 20),)
    again = calibrate_noise(epsilon=4.0, delta=1e-5, sample_rate=0.2, steps=40, accountant="pld", before=before)

    assert again == pytest.approx(noise, rel=2e-3)


@pytest.mark.parametrize("accountant", ACCOUNTANTS)
def test_a_spent_budget_cannot_be_calibrated_to(accountant: Accountant) -> None:
    for before in (MechanismUse(1.0, 0.5, 200), MechanismUse(0.0, 1.0, 1)):
        with pytest.raises(BudgetError, match="nothing is left"):
            calibrate_noise(epsilon=1.0, delta=1e-5, sample_rate=0.1, steps=10, accountant=accountant, before=(before,))


def test_too_little_left_for_any_step_is_refused() -> None:
    before = (MechanismUse(2.0, 1.0, 4),)
    epsilon = spent(list(before)) * (1 + 1e-15)
    with pytest.raises(BudgetError):
        calibrate_noise(epsilon=epsilon, delta=1e-5, sample_rate=1.0, steps=10**9, accountant="pld", before=before)


@pytest.mark.parametrize(
    ("noise", "rate", "steps"),
    [
        (-1.0, 0.1, 1),
        (math.nan, 0.1, 1),
        (math.inf, 0.1, 1),
        (1.0, 0.0, 1),
        (1.0, 1.1, 1),
        (1.0, math.nan, 1),
        (1.0, 0.1, -1),
    ],
)
def test_impossible_mechanisms_are_refused(noise: float, rate: float, steps: int) -> None:
    with pytest.raises(PrivacyError, match="allowed"):
        MechanismUse(noise, rate, steps)


@pytest.mark.parametrize(
    ("epsilon", "delta", "steps"), [(0.0, 1e-5, 1), (math.inf, 1e-5, 1), (1.0, 0.0, 1), (1.0, 1e-5, 0)]
)
def test_impossible_budgets_are_refused(epsilon: float, delta: float, steps: int) -> None:
    with pytest.raises(PrivacyError, match="allowed"):
        calibrate_noise(epsilon=epsilon, delta=delta, sample_rate=0.1, steps=steps, accountant="pld")


@pytest.mark.parametrize("delta", [0.0, 1.0, math.nan])
def test_impossible_deltas_are_refused(delta: float) -> None:
    with pytest.raises(PrivacyError, match="delta"):
        spent([MechanismUse(1.0, 0.1, 1)], delta=delta)


def test_ten_thousand_rows_are_one_mechanism_a_kind() -> None:
    rows = [MechanismUse(2.0 + kind, 0.1, 1) for kind in range(3)] * 3334

    assert merged(rows) == tuple(MechanismUse(2.0 + kind, 0.1, 3334) for kind in range(3))


def test_an_epsilon_that_prv_cannot_show_is_refused_with_the_way_out() -> None:
    with pytest.raises(PrivacyError, match=r'epsilon is 0\.001 with accountant "prv".* use "pld"'):
        calibrate_noise(epsilon=0.001, delta=1e-5, sample_rate=0.5, steps=2, accountant="prv")


def test_a_delta_that_rounding_may_swallow_is_answered_by_the_renyi_bound() -> None:
    """A hundred thousand steps may each lose 2^-54 of delta to double precision: more than 1e-12 has room for."""
    history = [MechanismUse(2.0, 1e-4, 100_000)]

    assert spent(history, "pld", 1e-12) == spent(history, "rdp", 1e-12)
    assert spent(history, "pld", 1e-9) < spent(history, "rdp", 1e-9)
