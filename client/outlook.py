"""Outlook: what would become of a run at a site, were it to begin now, and what it would cost there.

in        a run, the owner's settings, what the ledger holds
out       Outlook, a part of the budget that ledger.py puts together
relies on plan.py, the very function that the agent plans with; nothing is charged here
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, PlainSerializer

from client.plan import PrivacyPlan, counts_use, make_plan
from client.site import SiteConfig
from shared.config import PrivacySettings, RunConfig, Unit
from shared.errors import BudgetError
from shared.privacy.accountant import Accountant, MechanismUse, spent_epsilon
from shared.settings import Settings

INFINITE = "infinite"
Epsilon = Annotated[
    float,
    Field(ge=0, allow_inf_nan=True),
    BeforeValidator(lambda value: math.inf if value == INFINITE else value),
    PlainSerializer(lambda value: INFINITE if value == math.inf else value, return_type=float | str, when_used="json"),
]
"""an upper bound; in JSON, which has no infinity, the word "infinite" where there is none"""
Fate = Literal["fits", "more-noise", "fewer-rounds", "refused", "without-noise"]


class Outlook(Settings):
    """What would become of a run here, were it to begin now and to ask this site in every round."""

    run: str
    unit: Unit
    delta: float
    """the smaller of the run's and the owner's"""
    accountant: Accountant
    """the run's"""
    planned_rounds: int
    rounds_that_fit: int
    """planned rounds, with the run's noise, until the cap"""
    fate: Fate
    what_happens: str
    noise_multiplier: float | None = None
    """None where no plan can be made, as in the three that follow"""
    counts_epsilon: Epsilon | None = None
    """by how much the total grows by the noisy counts before round 1; None where the run asks for none"""
    next_round_epsilon: Epsilon | None = None
    """by how much the total grows by the run's first round"""
    total_epsilon: Epsilon | None = None
    """everything ever, after the rounds that fit"""


def outlook_of(run: RunConfig, *, site: SiteConfig, before: Sequence[MechanismUse]) -> Outlook:
    """What the agent would do with the run, and what that would cost.

    Args:
        before: all that the ledger holds about the data set, in the owner's unit.
    """
    privacy, rounds, delta = run.local_privacy, run.federation.rounds, site.privacy.delta
    told = partial(Outlook, run=run.name, unit=site.privacy.unit, planned_rounds=rounds)
    if privacy is None:
        refusal = _refusal_without_noise(run, site=site)
        return told(
            delta=delta,
            accountant="pld",
            rounds_that_fit=0 if refusal else rounds,
            fate="refused" if refusal else "without-noise",
            what_happens=refusal or "it adds no noise here: the budget is infinite ever after",
            total_epsilon=None if refusal else math.inf,
        )
    told = partial(told, delta=min(privacy.delta, delta), accountant=privacy.accountant)
    if privacy.unit == "subject" and site.privacy.unit == "record":
        need = 'the run protects subjects; the owner has to set privacy.unit = "subject" and nominal_subjects first'
        return told(rounds_that_fit=0, fate="refused", what_happens=need)
    try:
        alone = plan = _plan(run, privacy, site=site, before=())
    except BudgetError as error:
        return told(rounds_that_fit=0, fate="refused", what_happens=str(error))
    refusal = ""
    try:
        plan = _plan(run, privacy, site=site, before=before)
    except BudgetError as error:
        refusal = str(error)  # what its own noise would cost is told all the same
    counts = _counts(run, site=site)

    def total(*more: MechanismUse) -> float:
        return spent_epsilon([*before, *more], delta=plan.delta, accountant=plan.accountant)

    fit = _largest(lambda number: total(*counts, plan.uses(number)) <= site.privacy.epsilon, most=rounds)
    fate: Fate = "more-noise" if plan.noise_multiplier > alone.noise_multiplier else "fits"
    fate = "refused" if refusal else fate if fit == rounds else "fewer-rounds"
    said = {
        "refused": refusal,
        "fits": "all its rounds fit under the cap",
        "more-noise": "its noise is raised until all its rounds fit under the cap",
        "fewer-rounds": f"it is given {fit} of its {rounds} rounds, and is refused then",
    }
    return told(
        rounds_that_fit=fit,
        fate=fate,
        what_happens=said[fate],
        noise_multiplier=plan.noise_multiplier,
        counts_epsilon=_growth(total(), total(*counts)) if counts else None,
        next_round_epsilon=_growth(total(*counts), total(*counts, plan.uses(1))),
        total_epsilon=total(*counts, plan.uses(fit)) if fit else total(),
    )


def _refusal_without_noise(run: RunConfig, *, site: SiteConfig) -> str:
    """Why a run that asks for no noise of the site's is refused; empty where the owner permits it."""
    if run.central_privacy is not None and not site.privacy.trust_server:
        return "the server adds the noise, and the owner does not permit that: privacy.trust_server"
    if run.central_privacy is None and not site.privacy.allow_non_private:
        return "the run is not private, and the owner does not permit that: privacy.allow_non_private"
    return ""


def _plan(run: RunConfig, privacy: PrivacySettings, *, site: SiteConfig, before: Sequence[MechanismUse]) -> PrivacyPlan:
    """The plan that the agent would make, were the run to begin now."""
    return make_plan(
        training=run.training,
        privacy=privacy,
        unit=site.privacy.unit,
        nominal_units=site.nominal_units(site.privacy.unit),
        planned_rounds=run.federation.rounds,
        site_epsilon=site.privacy.epsilon,
        site_delta=site.privacy.delta,
        before=before,
        statistics=run.statistics,
        on_short_budget=site.privacy.on_short_budget,
        least_noise=site.privacy.least_noise_multiplier,
        noise=site.privacy.noise,
    )


def _counts(run: RunConfig, *, site: SiteConfig) -> tuple[MechanismUse, ...]:
    """The noisy counts that the run asks for before round 1."""
    least = site.privacy.least_noise_multiplier
    return (counts_use(run.statistics, least_noise=least),) if run.statistics is not None else ()


def _largest(is_allowed: Callable[[int], bool], *, most: int) -> int:
    """The largest number from 0 to `most` that is allowed, where all below an allowed one are; 0 need not be."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if is_allowed(middle) else (low, middle - 1)
    return low


def _growth(before: float, after: float) -> float | None:
    """By how much a total grows; None where it was infinite before."""
    return None if math.isinf(before) else max(0.0, after - before)
