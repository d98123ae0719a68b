"""Charge: what a request costs here, on the site's disk before its data is opened; and what is told about it.

in        a permitted request, the owner's settings and ledger
out       the run's plan, the reservation that pays for one answer, and the statement of both; or a refusal
relies on shared/privacy/ledger.py for rows that last, plan.py for the noise
"""

from dataclasses import dataclass, replace
from typing import Literal

from client.plan import PrivacyPlan, counts_use, make_plan
from client.site import SiteConfig
from shared.errors import PermissionRefused
from shared.messages import PrivacyStatement, RequestHeader, StatisticsHeader
from shared.privacy.accountant import MechanismUse, spent_epsilon
from shared.privacy.ledger import Ledger, LedgerRow, Mechanism, Reservation, uses_of_rows

SiteUnit = Literal["record", "subject"]
COUNTS_ROUND = 0
"""where the ledger keeps counts: before the first round"""


@dataclass(frozen=True)
class History:
    """What one run, and all the others, have reserved for a data set; void rows left out."""

    rounds: tuple[LedgerRow, ...]
    counts: tuple[LedgerRow, ...]
    others: tuple[MechanismUse, ...]
    before: tuple[MechanismUse, ...]
    """of the others, what came before this run"""


def history_of(ledger: Ledger, *, site: SiteConfig, run_id: str, unit: SiteUnit) -> History:
    """The ledger as one run sees it."""
    mine = [row for row in ledger.rows(site.data_set, run_id=run_id) if row.state != "void"]
    return History(
        rounds=tuple(row for row in mine if row.mechanism != "counts"),
        counts=tuple(row for row in mine if row.mechanism == "counts"),
        others=ledger.uses_of_others(site.data_set, run_id, unit=unit),
        before=ledger.uses_of_others(site.data_set, run_id, unit=unit, before=True),
    )


def plan_round(header: RequestHeader, *, unit: SiteUnit, site: SiteConfig, history: History) -> PrivacyPlan:
    """The mechanism of the whole run, calibrated when its first round is asked for and the same ever after.

    Raises:
        PermissionRefused: the run has had its rounds, or asks otherwise than in its first one.
        BudgetError: the owner's budget does not cover it.
    """
    num_charged = len(history.rounds)
    # PRIVACY: a run was calibrated for so many rounds and gets no more. test_a_run_gets_the_rounds_it_was_planned_for
    if header.round_number > header.run.federation.rounds or num_charged >= header.planned_rounds:
        raise PermissionRefused(
            f"round {header.round_number}: the run was calibrated for {header.planned_rounds} rounds and "
            f"{num_charged} are charged here; a round that was asked again after an interruption is charged again"
        )
    first = history.rounds[0] if history.rounds else None
    plan = _plan(
        header,
        unit=unit,
        site=site,
        history=history,
        counted=uses_of_rows(history.counts, unit=unit),
        # PRIVACY: one multiplier for the whole run. test_a_second_run_has_more_noise_and_keeps_it
        agreed_noise=first.use.noise_multiplier if first else None,
    )
    if first and (first.unit, first.use.sample_rate, first.use.steps) != (
        plan.unit, plan.sample_rate, plan.steps_per_round,
    ):  # fmt: skip
        raise PermissionRefused("the run's unit, sampling or steps differ from its first round's; start another run")
    return plan


def plan_counts(
    header: StatisticsHeader, *, unit: SiteUnit, site: SiteConfig, history: History
) -> tuple[PrivacyPlan, MechanismUse]:
    """The run's plan with one more answer of counts in it, and what that answer costs.

    Raises:
        PermissionRefused: the run does not say that it asks for counts, or its rounds have begun.
        BudgetError: the run's epsilon, or the owner's budget, does not cover the counts and the rounds after them.
    """
    if header.run.statistics is None:
        raise PermissionRefused("counts are asked for, and the run's settings have no statistics")
    # PRIVACY: the rounds were calibrated to what the counts had left. test_counts_are_refused_once_rounds_have_begun
    if history.rounds:
        raise PermissionRefused("the run's rounds have begun; counts are asked for before the first")
    counted = uses_of_rows(history.counts, unit=unit)
    use = counts_use(header.run.statistics, least_noise=site.privacy.least_noise_multiplier)
    return _plan(header, unit=unit, site=site, history=history, counted=(*counted, use), agreed_noise=None), use


def reserve_round(header: RequestHeader, *, site: SiteConfig, ledger: Ledger, plan: PrivacyPlan | None) -> Reservation:
    """The round is paid for: from here on it counts as spent, whatever becomes of it.

    Args:
        plan: None: the update has no noise of the site's own, which the owner has permitted.

    Raises:
        BudgetError, PermissionRefused, LedgerError: as Ledger.reserve.
    """
    return _reserve(
        header,
        site=site,
        ledger=ledger,
        plan=plan,
        round_number=header.round_number,
        use=plan.uses(1) if plan else None,
        mechanism="adaptive-gaussian" if plan and plan.clipping == "adaptive" else "gaussian",
    )


def reserve_counts(
    header: StatisticsHeader, *, site: SiteConfig, ledger: Ledger, plan: PrivacyPlan, use: MechanismUse
) -> Reservation:
    """The counts are paid for: from here on they count as spent, whatever becomes of them.

    Raises:
        BudgetError, PermissionRefused, LedgerError: as Ledger.reserve.
    """
    return _reserve(header, site=site, ledger=ledger, plan=plan, round_number=COUNTS_ROUND, use=use, mechanism="counts")


def statement(plan: PrivacyPlan, *, site: SiteConfig, reservation: Reservation, history: History) -> PrivacyStatement:
    """How an answer was protected, and what the data set has spent in all."""
    # PRIVACY: the cap and what was spent before are told by the owner's leave only. The total always is, being the
    # guarantee; who knows what this run costs can work out from it about how much was spent before.
    # test_the_budget_is_told_by_the_owners_leave
    before = None
    if site.privacy.tell_budget:
        before = spent_epsilon(history.before, delta=plan.delta, accountant=plan.accountant)
    return PrivacyStatement(
        unit=site.privacy.unit,
        epsilon=reservation.epsilon_spent,
        delta=plan.delta,
        clipping=plan.clipping,
        clip_norm=plan.clip_norm,
        noise_multiplier=plan.noise_multiplier,
        sample_rate=plan.sample_rate,
        steps_per_round=plan.steps_per_round,
        accountant=plan.accountant,
        noise=plan.noise,
        reproducible_noise=site.privacy.reproducible_noise,
        cap_epsilon=site.privacy.epsilon if site.privacy.tell_budget else None,
        epsilon_before=before,
    )


def as_counts(plan: PrivacyPlan, *, use: MechanismUse) -> PrivacyPlan:
    """The plan as a statement about the counts tells it: one sum, which each unit moves by at most 1."""
    return replace(
        plan,
        clip_norm=1.0,
        noise_multiplier=use.noise_multiplier,
        sample_rate=use.sample_rate,
        steps_per_round=use.steps,
        clipping="flat",
    )


def _plan(
    header: RequestHeader | StatisticsHeader,
    *,
    unit: SiteUnit,
    site: SiteConfig,
    history: History,
    counted: tuple[MechanismUse, ...],
    agreed_noise: float | None,
) -> PrivacyPlan:
    privacy = header.run.local_privacy
    if privacy is None:
        raise PermissionRefused("the run protects neither records nor subjects; there is nothing to plan")
    return make_plan(
        training=header.run.training,
        privacy=privacy,
        unit=unit,
        nominal_units=site.nominal_units(unit),
        planned_rounds=header.planned_rounds,
        site_epsilon=site.privacy.epsilon,
        site_delta=site.privacy.delta,
        before=history.others,
        statistics=header.run.statistics,
        counted=counted,
        on_short_budget=site.privacy.on_short_budget,
        least_noise=site.privacy.least_noise_multiplier,
        noise=site.privacy.noise,
        agreed_noise=agreed_noise,
    )


def _reserve(
    header: RequestHeader | StatisticsHeader,
    *,
    site: SiteConfig,
    ledger: Ledger,
    plan: PrivacyPlan | None,
    round_number: int,
    use: MechanismUse | None,
    mechanism: Mechanism,
) -> Reservation:
    return ledger.reserve(
        data_set=site.data_set,
        unit=site.privacy.unit,
        use=use,
        run_id=header.run_id,
        round_number=round_number,
        attempt=header.attempt,
        cap_epsilon=site.privacy.epsilon,
        delta=plan.delta if plan else site.privacy.delta,
        accountant=plan.accountant if plan else "pld",
        mechanism=mechanism,
    )
