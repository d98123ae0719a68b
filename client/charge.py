"""Charge: what a request costs here, on the site's disk before its data is opened; and what is told about it.

in        a permitted request, the owner's settings, what the ledger says of the data set
out       the run's plan, the charge that pays for one answer, and the statement of both; or a refusal
relies on shared/privacy/ledger.py for rows that last, plan.py for the noise
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal, TypedDict

from client.limits import refuse_too_much_work
from client.plan import PrivacyPlan, counts_use, make_plan
from client.site import OwnerPrivacy, SiteConfig
from client.unchanged import Same
from shared.config import PrivacySettings, StatisticsSettings, TrainingSettings
from shared.errors import BudgetError, PermissionRefused
from shared.messages import PROTOCOL_VERSION, PrivacyStatement, ReplyHeader, RequestHeader, StatisticsHeader
from shared.privacy.accountant import Accountant, MechanismUse, spent_epsilon
from shared.privacy.ledger import Mechanism, Reservation
from shared.privacy.ledger_totals import History

SiteUnit = Literal["record", "subject"]
COUNTS_ROUND = 0
"""where the ledger keeps counts: before the first round"""


class Charge(TypedDict):
    """What `Ledger.reserve` is asked."""

    data_set: str
    unit: SiteUnit
    use: MechanismUse | None
    run_id: str
    round_number: int
    attempt: int
    cap_epsilon: float
    delta: float
    accountant: Accountant
    mechanism: Mechanism
    most_rounds: int | None
    most_a_day: int | None


def plan_round(header: RequestHeader, *, unit: SiteUnit, site: SiteConfig, history: History) -> PrivacyPlan:
    """The mechanism of the whole run, calibrated when its first round is asked for and the same ever after.

    Raises:
        PermissionRefused: the run has had its rounds, or asks otherwise than in its first one.
        BudgetError: the owner's budget does not cover it.
    """
    num_charged = history.num_rounds
    # PRIVACY: a run was calibrated for so many rounds and gets no more. test_a_run_gets_the_rounds_it_was_planned_for
    if header.round_number > header.run.federation.rounds or num_charged >= header.planned_rounds:
        raise PermissionRefused(
            f"round {header.round_number}: the run was calibrated for {header.planned_rounds} rounds and "
            f"{num_charged} are charged here; a round that was asked again after an interruption is charged again"
        )
    first = history.first
    plan = _plan(
        header,
        unit=unit,
        site=site,
        history=history,
        counted=history.counts,
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
    if history.num_rounds:
        raise PermissionRefused("the run's rounds have begun; counts are asked for before the first")
    use = counts_use(header.run.statistics, least_noise=site.privacy.least_noise_multiplier)
    return _plan(header, unit=unit, site=site, history=history, counted=(*history.counts, use), agreed_noise=None), use


def charge_for_round(header: RequestHeader, *, site: SiteConfig, plan: PrivacyPlan | None) -> Charge:
    """What the round costs: once it is reserved it counts as spent, whatever becomes of it.

    Args:
        plan: None: the update has no noise of the site's own, which the owner has permitted.

    Raises:
        PermissionRefused: the round is more work than the owner permits.
    """
    units = site.nominal_units(plan.unit if plan else "record")
    refuse_too_much_work(header.run.training, units=units, limits=site.limits)
    return _charge(
        header,
        site=site,
        plan=plan,
        round_number=header.round_number,
        use=plan.uses(1) if plan else None,
        mechanism="adaptive-gaussian" if plan and plan.clipping == "adaptive" else "gaussian",
    )


def charge_for_counts(header: StatisticsHeader, *, site: SiteConfig, plan: PrivacyPlan, use: MechanismUse) -> Charge:
    """What the counts cost: once they are reserved they count as spent, whatever becomes of them."""
    return _charge(header, site=site, plan=plan, round_number=COUNTS_ROUND, use=use, mechanism="counts")


def statement(plan: PrivacyPlan, *, site: SiteConfig, reservation: Reservation, history: History) -> PrivacyStatement:
    """How an answer was protected, and what the data set has spent in all."""
    # PRIVACY: the cap and what was spent before are told by the owner's leave only. The total always is, being the
    # guarantee; who knows what this run costs can work out from it about how much was spent before.
    # test_the_budget_is_told_by_the_owners_leave
    return _statement(plan, Same(site.privacy), reservation.epsilon_spent, history.before)


# Ten thousand sites of one run say a handful of different things.
@lru_cache(maxsize=1024)
def _statement(
    plan: PrivacyPlan, owners: Same[OwnerPrivacy], epsilon_spent: float, before: tuple[MechanismUse, ...]
) -> PrivacyStatement:
    privacy, epsilon_before = owners.it, None
    if privacy.tell_budget:
        epsilon_before = spent_epsilon(before, delta=plan.delta, accountant=plan.accountant)
    return PrivacyStatement(
        unit=privacy.unit,
        epsilon=epsilon_spent,
        delta=plan.delta,
        clipping=plan.clipping,
        clip_norm=plan.clip_norm,
        noise_multiplier=plan.noise_multiplier,
        sample_rate=plan.sample_rate,
        steps_per_round=plan.steps_per_round,
        accountant=plan.accountant,
        noise=plan.noise,
        reproducible_noise=privacy.reproducible_noise,
        cap_epsilon=privacy.epsilon if privacy.tell_budget else None,
        epsilon_before=epsilon_before,
    )


def reply_header(
    header: RequestHeader,
    *,
    nominal_size: int,
    said: PrivacyStatement | None,
    unclipped_share: float | None,
    is_within: bool | None,
) -> ReplyHeader:
    """All that leaves beside the update; one object for all sites of a round that say the same."""
    told = None if said is None else Same(said)
    return _reply_header(header.run_id, header.round_number, nominal_size, told, unclipped_share, is_within)


@lru_cache(maxsize=256)
def _reply_header(
    run_id: str,
    round_number: int,
    nominal_size: int,
    said: Same[PrivacyStatement] | None,
    unclipped_share: float | None,
    is_within: bool | None,
) -> ReplyHeader:
    return ReplyHeader(
        protocol_version=PROTOCOL_VERSION,
        run_id=run_id,
        round_number=round_number,
        nominal_size=nominal_size,
        privacy=None if said is None else said.it,
        unclipped_share=unclipped_share,
        is_within_clip=is_within,
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
    made = _made_plan(
        _Asked(header.run.training, privacy, header.run.statistics, header.planned_rounds),
        site.privacy,
        unit,
        site.nominal_units(unit),
        history.others,
        counted,
        agreed_noise,
    )
    if isinstance(made, str):
        raise BudgetError(made)
    return made


@dataclass(frozen=True)
class _Asked:
    """What a run asks of every site alike."""

    training: TrainingSettings
    privacy: PrivacySettings
    statistics: StatisticsSettings | None
    planned_rounds: int


# Ten thousand sites of one run have a handful of plans; and a refusal takes as long to find as a plan.
@lru_cache(maxsize=65536)
def _made_plan(
    asked: _Asked,
    owners: OwnerPrivacy,
    unit: SiteUnit,
    nominal_units: int,
    before: tuple[MechanismUse, ...],
    counted: tuple[MechanismUse, ...],
    agreed_noise: float | None,
) -> PrivacyPlan | str:
    """The plan, or why the budget does not cover it."""
    try:
        return make_plan(
            training=asked.training,
            privacy=asked.privacy,
            unit=unit,
            nominal_units=nominal_units,
            planned_rounds=asked.planned_rounds,
            site_epsilon=owners.epsilon,
            site_delta=owners.delta,
            before=before,
            statistics=asked.statistics,
            counted=counted,
            on_short_budget=owners.on_short_budget,
            least_noise=owners.least_noise_multiplier,
            noise=owners.noise,
            agreed_noise=agreed_noise,
        )
    except BudgetError as error:
        return str(error)


def _charge(
    header: RequestHeader | StatisticsHeader,
    *,
    site: SiteConfig,
    plan: PrivacyPlan | None,
    round_number: int,
    use: MechanismUse | None,
    mechanism: Mechanism,
) -> Charge:
    return Charge(
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
        most_rounds=site.limits.rounds if round_number != COUNTS_ROUND else None,
        most_a_day=site.limits.rounds_a_day,
    )
