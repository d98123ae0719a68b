"""Schedule: which sites are asked in which round: fixed and public before the first, or drawn in secret in each.

in        the sites that introduced themselves, the run's federation settings and seed
out       for every round the sites asked, and for every site the most rounds it can be asked for
relies on nothing secret for a public schedule, for which no amplification is claimed; a secret draw on its coins
"""

import random
from collections import Counter
from collections.abc import Sequence

from shared.config import FederationSettings
from shared.privacy.noise import RandomSource


def plan_rounds(sites: Sequence[str], *, settings: FederationSettings, seed: int) -> list[tuple[str, ...]]:
    """Sites of every round; each site is asked as often as any other, give or take once.

    Balance keeps the bound low: a site calibrates its noise for the most rounds it can be asked for.
    """
    per_round = min(settings.sites_per_round or len(sites), len(sites))
    generator, asked, rounds = random.Random(seed), Counter(dict.fromkeys(sites, 0)), []  # noqa: S311  a public draw
    for _ in range(settings.rounds):
        order = sorted(sites)
        generator.shuffle(order)
        chosen = sorted(order, key=lambda site: asked[site])[:per_round]
        asked.update(chosen)
        rounds.append(tuple(sorted(chosen)))
    return rounds


def planned_participations(rounds: Sequence[tuple[str, ...]]) -> dict[str, int]:
    """How often each site is asked over the whole run."""
    return dict(Counter(site for chosen in rounds for site in chosen))


def draw_sites(sites: Sequence[str], *, sample_rate: float, source: RandomSource) -> tuple[str, ...]:
    """The sites of one round, each by a coin of its own; perhaps all, perhaps none.

    Promise: each site with probability `sample_rate`, independently of the others and of other rounds: the Poisson
    sample that the accountant assumes. Who was drawn has to stay as secret as the coins.
    """
    # PRIVACY: a coin for each, not a sample of a fixed size. test_every_site_is_drawn_by_a_coin_of_its_own
    coins = source.uniform(len(sites))
    return tuple(site for site, coin in zip(sorted(sites), coins.tolist(), strict=True) if coin < sample_rate)
