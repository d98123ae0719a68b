"""Privacy summary: each site's mechanism as its replies stated it, with a second accountant's opinion.

in        the history of rounds
out       SitePrivacy, one a site that protected anything
relies on two libraries that share no code: where a site used the one, the other judges the epsilon it states
"""

from collections.abc import Sequence

from server.records import RoundRecord, SitePrivacy
from shared.messages import PrivacyStatement, ReplyHeader
from shared.privacy.accountant import Accountant, MechanismUse, spent_epsilon


def summarise_privacy(history: Sequence[RoundRecord]) -> tuple[SitePrivacy, ...]:
    """The last statement of every site, and what all the mechanisms it stated compose to.

    The second opinion covers this run's rounds; what a site spent in other runs is in its own statement only.
    """
    statements: dict[str, list[tuple[ReplyHeader, PrivacyStatement]]] = {}
    for record in history:
        for site in record.sites:
            if site.header is not None and site.header.privacy is not None:
                statements.setdefault(site.site, []).append((site.header, site.header.privacy))
    return tuple(_summary(site, said) for site, said in sorted(statements.items()))


def _summary(site: str, said: Sequence[tuple[ReplyHeader, PrivacyStatement]]) -> SitePrivacy:
    header, last = said[-1]
    uses = [MechanismUse(each.noise_multiplier, each.sample_rate, each.steps_per_round) for _, each in said]
    second: Accountant = "prv" if last.accountant == "pld" else "pld"
    return SitePrivacy(
        site=site,
        unit=last.unit,
        epsilon=max(each.epsilon for _, each in said),
        delta=last.delta,
        noise_multiplier=last.noise_multiplier,
        sample_rate=last.sample_rate,
        steps=sum(use.steps for use in uses),
        nominal_size=header.nominal_size,
        accountant=last.accountant,
        second_epsilon=spent_epsilon(uses, delta=last.delta, accountant=second),
        second_accountant=second,
    )
