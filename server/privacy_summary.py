"""Privacy summary: each site's mechanism as its replies stated it, the server's own as its ledger holds it.

in        the history of rounds, noisy counts, the server's ledger
out       SitePrivacy, one a site that protected anything, and CentralPrivacy, each with a second accountant's opinion
relies on two libraries that share no code: where the one was used, the other judges what it says
"""

from collections.abc import Mapping, Sequence

from server.history import SiteHistory, site_histories, use_of
from server.plan import Central, Plan
from server.records import CentralPrivacy, RoundRecord, SitePrivacy
from shared.config import PrivacySettings, RunConfig
from shared.messages import StatisticsReply
from shared.privacy.accountant import Accountant, MechanismUse, calibrate_noise, spent_epsilon


def summarise_privacy(
    history: Sequence[RoundRecord], *, run: RunConfig, plan: Plan, statistics: Mapping[str, StatisticsReply]
) -> tuple[SitePrivacy, ...]:
    """The last statement of every site, and what all the mechanisms it stated compose to.

    Composed is what came back in this run; a round whose reply was lost is in the site's own statement only. Where
    participation is secret: what was planned for each site.
    """
    local = run.local_privacy
    if local is None:
        return ()
    if plan.rounds is None:
        return tuple(_planned(local, site=site, plan=plan, run=run) for site in plan.site_names)
    found = {site: held for site, held in sorted(site_histories(history).items()) if held.said}
    return tuple(_stated(site, held, counts=statistics.get(site)) for site, held in found.items())


def summarise_central(central: Central) -> CentralPrivacy:
    """What the server's ledger says about this federation and this run."""
    plan, privacy = central.plan, central.plan.privacy
    delta, accountant, second = privacy.delta, privacy.accountant, _other(privacy.accountant)
    before, mine = central.budget.before(), central.budget.of_run()
    return CentralPrivacy(
        epsilon=spent_epsilon([*before, *mine], delta=delta, accountant=accountant),
        epsilon_before=spent_epsilon(before, delta=delta, accountant=accountant),
        epsilon_run=spent_epsilon(mine, delta=delta, accountant=accountant),
        cap_epsilon=plan.cap_epsilon,
        delta=delta,
        clipping=privacy.clipping,
        noise_multiplier=plan.noise_multiplier,
        sample_rate=plan.sample_rate,
        rounds=central.budget.charged(),
        denominator=plan.denominator,
        accountant=accountant,
        second_epsilon=spent_epsilon(mine, delta=delta, accountant=second),
        second_accountant=second,
    )


def _stated(site: str, found: SiteHistory, *, counts: StatisticsReply | None) -> SitePrivacy:
    said = list(found.said.values())
    last = said[-1].privacy
    uses = [use_of(each.privacy) for each in said]
    steps = sum(use.steps for use in uses)
    if counts is not None:
        uses.append(MechanismUse(counts.privacy.noise_multiplier, 1.0, 1))
    own: Accountant = "rdp" if last.accountant == "rdp" else "prv" if last.accountant == "prv" else "pld"
    return SitePrivacy(
        site=site,
        unit=last.unit,
        epsilon=max(each.epsilon for each in said),
        delta=last.delta,
        noise_multiplier=last.noise_multiplier,
        sample_rate=last.sample_rate,
        steps=steps,
        nominal_size=found.nominal_size,
        accountant=own,
        second_epsilon=spent_epsilon(uses, delta=last.delta, accountant=_other(own)),
        second_accountant=_other(own),
        run_epsilon=spent_epsilon(uses, delta=last.delta, accountant=own),
        epsilon_before=last.epsilon_before,
        cap_epsilon=last.cap_epsilon,
        left_after_round=found.left_after(),
    )


def _planned(local: PrivacySettings, *, site: str, plan: Plan, run: RunConfig) -> SitePrivacy:
    """What a site protects at least, if it is ever drawn: its own noise may be more, and never less."""
    nominal_size = plan.nominal_size(site)
    rate, steps = run.training.sampling(nominal_size), run.training.steps(nominal_size) * plan.planned[site]
    noise = calibrate_noise(
        epsilon=local.epsilon, delta=local.delta, sample_rate=rate, steps=steps, accountant=local.accountant
    )
    use, second = MechanismUse(noise, rate, steps), _other(local.accountant)
    epsilon = spent_epsilon([use], delta=local.delta, accountant=local.accountant)
    return SitePrivacy(
        site=site,
        unit=local.unit,
        epsilon=epsilon,
        delta=local.delta,
        noise_multiplier=noise,
        sample_rate=rate,
        steps=steps,
        nominal_size=nominal_size,
        accountant=local.accountant,
        second_epsilon=spent_epsilon([use], delta=local.delta, accountant=second),
        second_accountant=second,
        run_epsilon=epsilon,
    )


def _other(accountant: Accountant) -> Accountant:
    """The accountant that judges another."""
    return "prv" if accountant == "pld" else "pld"
