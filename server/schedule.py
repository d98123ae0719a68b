"""Schedule: which sites are asked in which round, fixed and public before the first.

in        the sites that introduced themselves, the run's federation settings and seed
out       for every round the sites asked, and for every site the most rounds it can be asked for
relies on nothing secret: participation is known, so no amplification is claimed for it
"""

import random
from collections import Counter
from collections.abc import Sequence

from shared.config import FederationSettings


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
