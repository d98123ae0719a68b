"""Tests of client/plan.py: one calibration for all rounds and the counts, the stricter budget, nothing overspent."""

from collections.abc import Callable

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from client.plan import PrivacyPlan, counts_use, make_plan
from client.site import ShortBudget
from shared.config import PrivacySettings, StatisticsSettings
from shared.errors import BudgetError
from shared.privacy.accountant import MechanismUse, spent_epsilon
from tests.client.toy import training_settings

PRIVACY = PrivacySettings(unit="record", trust="nobody", epsilon=8, delta=1e-5, clip_norm=0.7, accountant="pld")
STATISTICS = StatisticsSettings(noise_multiplier=2.0)
EPSILONS = st.floats(0.5, 12.0)
COUNTS = st.none() | st.floats(0.7, 20.0).map(lambda noise: StatisticsSettings(noise_multiplier=noise))


def planned(**changes: object) -> PrivacyPlan:
    table: dict[str, object] = {
        # full batches, whose exact cost takes no time to compute
        "training": training_settings(local_steps=4, sample_rate=1.0),
        "privacy": PRIVACY,
        "unit": "record",
        "nominal_units": 100,
        "planned_rounds": 10,
        "site_epsilon": 20.0,
        "site_delta": 1e-3,
        **changes,
    }
    make: Callable[..., PrivacyPlan] = make_plan
    return make(**table)


def asking(epsilon: float) -> PrivacySettings:
    return PRIVACY.model_copy(update={"epsilon": epsilon})


def test_the_stricter_budget_wins() -> None:
    run, site, delta = planned(), planned(site_epsilon=2.0), planned(site_delta=1e-7)

    assert 7.9 < run.epsilon <= 8
    assert 1.9 < site.epsilon <= 2
    assert run.delta == 1e-5
    assert delta.delta == 1e-7
    assert delta.noise_multiplier > run.noise_multiplier


def test_the_plan_covers_all_rounds_and_spends_no_more() -> None:
    plan = planned(training=training_settings(local_steps=4, sample_rate=0.1))
    spent = spent_epsilon([plan.uses(1)] * 10, delta=1e-5, accountant="pld")

    assert plan.uses(10) == MechanismUse(plan.noise_multiplier, 0.1, 40)
    assert 7.9 < spent <= 8
    assert spent_epsilon([plan.uses(11)], delta=1e-5, accountant="pld") > 8


def test_what_was_spent_before_leaves_less() -> None:
    before = planned(planned_rounds=10).uses(10)
    plan = planned(before=(before,), site_epsilon=10.0, site_delta=1e-5, on_short_budget="more-noise")

    assert 9.9 < spent_epsilon([before, plan.uses(10)], delta=1e-5, accountant="pld") <= 10
    assert plan.epsilon < 8


def test_a_run_that_does_not_fit_into_what_is_left_is_refused_unless_the_owner_chose_otherwise() -> None:
    before, alone = planned().uses(10), planned()

    with pytest.raises(BudgetError, match="on_short_budget"):
        planned(before=(before,), site_epsilon=10.0, site_delta=1e-5)
    fewer = planned(before=(before,), site_epsilon=10.0, site_delta=1e-5, on_short_budget="fewer-rounds")
    assert fewer.noise_multiplier == alone.noise_multiplier
    with pytest.raises(BudgetError):
        planned(before=(before,), site_epsilon=alone.epsilon, site_delta=1e-5, on_short_budget="fewer-rounds")
    fits = planned(before=(before,), site_epsilon=20.0, site_delta=1e-5)
    assert fits.noise_multiplier == alone.noise_multiplier


def test_more_noise_than_the_expected_batch_is_refused() -> None:
    before = (planned().uses(10),)
    left = spent_epsilon(before, delta=1e-5, accountant="pld") + 0.05

    with pytest.raises(BudgetError, match="too little"):
        planned(before=before, nominal_units=20, site_epsilon=left, site_delta=1e-5, on_short_budget="more-noise")
    assert planned(before=before, site_epsilon=left, site_delta=1e-5, on_short_budget="more-noise")
    # the run's own demand is no shortage: it may be all noise, if that is what it asks for
    assert planned(privacy=asking(0.3), nominal_units=20).noise_multiplier > 20


def test_a_run_is_held_to_its_own_epsilon_however_much_the_site_has_left() -> None:
    plan = planned(before=(MechanismUse(50.0, 1.0, 1),), site_epsilon=500.0)

    assert 7.9 < plan.epsilon <= 8


@pytest.mark.parametrize("short", ["refuse", "fewer-rounds", "more-noise"])
def test_nothing_left_is_refused(short: ShortBudget) -> None:
    with pytest.raises(BudgetError):
        planned(before=(MechanismUse(1.0, 1.0, 100),), site_epsilon=8.0, on_short_budget=short)
    with pytest.raises(BudgetError):
        planned(before=(MechanismUse(0.0, 1.0, 1),), site_epsilon=8.0, on_short_budget=short)


def test_the_plan_does_not_depend_on_the_rows() -> None:
    plan = planned(training=training_settings(batch_size=16, sample_rate=None), nominal_units=160, planned_rounds=5)

    assert plan.sample_rate == pytest.approx(0.1)
    assert plan.expected_batch_size == pytest.approx(16)


def test_subjects_are_sampled_as_units_with_their_own_number() -> None:
    settings = training_settings(
        batch_size=16, sample_rate=None, local_steps=None, local_epochs=2, records_per_subject=3
    )
    records = planned(training=settings, nominal_units=400)
    subjects = planned(training=settings, unit="subject", nominal_units=40)

    assert (records.unit, records.sample_rate, records.steps_per_round, records.records_per_unit) == (
        "record",
        0.04,
        50,
        1,
    )
    assert (subjects.unit, subjects.sample_rate, subjects.steps_per_round, subjects.records_per_unit) == (
        "subject", 0.4, 5, 3,
    )  # fmt: skip
    assert subjects.expected_batch_size == records.expected_batch_size == 16
    assert subjects.noise_multiplier > records.noise_multiplier


def test_counts_are_paid_out_of_the_runs_epsilon() -> None:
    plan, without = planned(statistics=STATISTICS), planned()
    counts = counts_use(STATISTICS, least_noise=0.3)

    assert plan.noise_multiplier > without.noise_multiplier
    assert plan.epsilon == spent_epsilon([counts, plan.uses(10)], delta=1e-5, accountant="pld")
    assert 7.9 < plan.epsilon <= 8
    twice = planned(statistics=STATISTICS, counted=(counts, counts))
    assert 7.9 < spent_epsilon([counts, counts, twice.uses(10)], delta=1e-5, accountant="pld") <= 8
    with pytest.raises(BudgetError):
        planned(statistics=STATISTICS, counted=[counts] * 100)


def test_the_owners_floor_holds_for_counts_too() -> None:
    assert counts_use(STATISTICS, least_noise=0.3) == MechanismUse(2.0, 1.0, 1)
    assert counts_use(STATISTICS, least_noise=5.0) == MechanismUse(5.0, 1.0, 1)
    assert planned(least_noise=5.0, privacy=asking(1e3), site_epsilon=1e3).noise_multiplier == 5.0


def test_agreed_noise_is_kept() -> None:
    first = planned(statistics=STATISTICS)
    later = planned(statistics=STATISTICS, agreed_noise=first.noise_multiplier, before=(first.uses(10),))

    assert later == first


def test_agreed_noise_buys_no_further_rounds() -> None:
    noise = planned().noise_multiplier
    for change in (
        {"planned_rounds": 11},
        {"statistics": STATISTICS},
        {"site_epsilon": 7.0},
        {"least_noise": noise * 1.01},
    ):
        with pytest.raises(BudgetError, match="start another run"):
            planned(agreed_noise=noise, **change)


@settings(max_examples=100, deadline=None)
@given(run=EPSILONS, site=EPSILONS, statistics=COUNTS, rounds=st.integers(1, 30))
def test_the_stricter_always_wins_and_calibration_never_overspends(
    run: float, site: float, statistics: StatisticsSettings | None, rounds: int
) -> None:
    try:
        plan = planned(
            privacy=asking(run),
            site_epsilon=site,
            statistics=statistics,
            planned_rounds=rounds,
        )
    except BudgetError:
        # the counts alone were dearer than what both allow
        assert statistics is not None
        alone = spent_epsilon([counts_use(statistics, least_noise=0.0)], delta=1e-5, accountant="pld")
        assert alone > 0.9 * min(run, site)
        return
    counts = [counts_use(statistics, least_noise=0.0)] if statistics else []
    total = spent_epsilon([*counts, plan.uses(rounds)], delta=plan.delta, accountant="pld")
    assert total == plan.epsilon
    assert 0.99 * min(run, site) < total <= min(run, site)


@settings(max_examples=200, deadline=None)
@given(
    short=st.sampled_from(["refuse", "fewer-rounds", "more-noise"]),
    run=EPSILONS,
    cap=EPSILONS,
    statistics=COUNTS,
    before=st.lists(st.builds(MechanismUse, st.floats(0.5, 40.0), st.just(1.0), st.integers(1, 50)), max_size=3),
)
def test_whatever_the_owner_chose_the_total_stays_within_the_cap(
    short: ShortBudget, run: float, cap: float, statistics: StatisticsSettings | None, before: list[MechanismUse]
) -> None:
    """With "fewer-rounds" that holds for the rounds that the ledger grants, one of which at least fits."""
    try:
        plan = planned(
            privacy=asking(run),
            site_epsilon=cap,
            site_delta=1e-5,
            statistics=statistics,
            before=before,
            on_short_budget=short,
        )
    except BudgetError:
        assume(False)
        return
    counts = [counts_use(statistics, least_noise=0.0)] if statistics else []
    granted = 1 if short == "fewer-rounds" else plan.planned_rounds
    assert spent_epsilon([*before, *counts, plan.uses(granted)], delta=plan.delta, accountant="pld") <= cap
    assert plan.epsilon <= min(run, cap)
    if short != "more-noise":
        own = planned(privacy=asking(run), site_epsilon=cap, site_delta=1e-5, statistics=statistics)
        assert plan.noise_multiplier == own.noise_multiplier
