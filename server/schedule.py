"""Schedule: which sites are asked in which round: public and fixed beforehand, or drawn in secret in each.

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


def with_newcomer(
    rounds: Sequence[tuple[str, ...]],
    *,
    site: str,
    from_round: int,
    num_sites: int,
    settings: FederationSettings,
    seed: int,
) -> list[tuple[str, ...]]:
    """The rounds with one site more, from a round on: whoever is in already is asked as often as before, or less.

    Where a round asks all sites, it asks this one too. Where it asks so many, it asks no more: the newcomer takes the
    place of whoever has most rounds left, in its share of them and at least one. The same join gives the same rounds.

    Args:
        rounds: of the whole run; those before `from_round` stay as they are.
        site: the newcomer.
        from_round: its first, counted from 1.
        num_sites: how many there were before.
        settings: of the run.
        seed: of the run.
    """
    before, left = list(rounds[: from_round - 1]), list(rounds[from_round - 1 :])
    most = settings.sites_per_round
    if most is None or num_sites < most:
        # rounds that ask the same sites share one tuple
        grown = {chosen: tuple(sorted((*chosen, site))) for chosen in dict.fromkeys(left)}
        return [*before, *(grown[chosen] for chosen in left)]
    generator = random.Random(f"{seed}/{from_round}/{site}")  # noqa: S311  a public draw
    asked = Counter(name for chosen in left for name in chosen)
    order = sorted(asked)
    generator.shuffle(order)
    free = list(range(len(left)))
    for _ in range(min(len(left), max(1, len(left) * most // (num_sites + 1)))):
        # PRIVACY: a place changes hands and none is added: whoever was told a number is never asked more often.
        # test_no_site_is_ever_asked_for_more_rounds_than_it_was_told
        there = {name for place in free for name in left[place]}
        gives = max((name for name in order if name in there), key=lambda name: asked[name])
        place = generator.choice([place for place in free if gives in left[place]])
        left[place] = tuple(sorted((*(name for name in left[place] if name != gives), site)))
        asked[gives] -= 1
        free.remove(place)
    return [*before, *left]


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
