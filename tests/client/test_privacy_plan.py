"""Tests of the plan in client/private_training.py: one calibration for all rounds, the stricter budget, nothing overspent."""

from collections.abc import Callable

import pytest

from client.plan import PrivacyPlan, make_plan
from shared.config import PrivacySettings
from shared.errors import BudgetError
from shared.privacy.accountant import MechanismUse, spent_epsilon
from tests.client.toy import training_settings

PRIVACY = PrivacySettings(unit="record", trust="nobody", epsilon=8, delta=1e-5, clip_norm=0.7, accountant="pld")


def planned(**changes: object) -> PrivacyPlan:
    table: dict[str, object] = {
        "training": training_settings(local_steps=4, sample_rate=0.1),
        "privacy": PRIVACY,
        "nominal_size": 100,
        "planned_rounds": 10,
        "site_epsilon": 20.0,
        "site_delta": 1e-3,
        **changes,
    }
    make: Callable[..., PrivacyPlan] = make_plan
    return make(**table)


def test_the_stricter_budget_wins() -> None:
    run, site, delta = planned(), planned(site_epsilon=2.0), planned(site_delta=1e-7)

    assert 7.9 < run.epsilon <= 8
    assert 1.9 < site.epsilon <= 2
    assert run.delta == 1e-5
    assert delta.delta == 1e-7
    assert delta.noise_multiplier > run.noise_multiplier


def test_the_plan_covers_all_rounds_and_spends_no_more() -> None:
    plan = planned()
    spent = spent_epsilon([plan.uses(1)] * 10, delta=1e-5, accountant="pld")

    assert plan.uses(10) == MechanismUse(plan.noise_multiplier, 0.1, 40)
    assert 7.9 < spent <= 8
    assert spent_epsilon([plan.uses(11)], delta=1e-5, accountant="pld") > 8


def test_what_was_spent_before_leaves_less() -> None:
    before = planned(planned_rounds=10).uses(10)
    plan = planned(before=(before,), site_epsilon=10.0, site_delta=1e-5)

    assert 9.9 < spent_epsilon([before, plan.uses(10)], delta=1e-5, accountant="pld") <= 10
    assert plan.epsilon < 8


def test_a_run_is_held_to_its_own_epsilon_however_much_the_site_has_left() -> None:
    plan = planned(before=(MechanismUse(50.0, 0.1, 1),), site_epsilon=500.0)

    assert 7.9 < plan.epsilon <= 8


def test_nothing_left_is_refused() -> None:
    with pytest.raises(BudgetError):
        planned(before=(MechanismUse(1.0, 0.5, 100),), site_epsilon=8.0)
    with pytest.raises(BudgetError):
        planned(before=(MechanismUse(0.0, 1.0, 1),), site_epsilon=8.0)


def test_the_plan_does_not_depend_on_the_rows() -> None:
    plan = make_plan(
        training=training_settings(batch_size=16, sample_rate=None),
        privacy=PRIVACY,
        nominal_size=160,
        planned_rounds=5,
        site_epsilon=9.0,
        site_delta=1e-5,
    )

    assert plan.sample_rate == pytest.approx(0.1)
    assert plan.expected_batch_size == pytest.approx(16)
