"""Participation is fixed before the first round and balanced, or drawn by secret coins, one a site and round."""

import math
from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from server.schedule import draw_sites, plan_rounds, planned_participations
from shared.config import FederationSettings
from shared.privacy.noise import reproducible_source


@given(st.integers(1, 12), st.integers(1, 15), st.integers(1, 30), st.integers(0, 5))
def test_every_site_is_asked_as_often_as_any_other_give_or_take_once(
    num_sites: int, per_round: int, rounds: int, seed: int
) -> None:
    sites = [f"s{number}" for number in range(num_sites)]
    settings = FederationSettings(rounds=rounds, sites_per_round=per_round)
    plan = plan_rounds(sites, settings=settings, seed=seed)
    counts = Counter(site for chosen in plan for site in chosen)
    assert len(plan) == rounds
    assert all(len(set(chosen)) == min(per_round, num_sites) for chosen in plan)
    assert max(counts.values()) - min(counts[site] for site in sites) <= 1
    assert planned_participations(plan) == dict(counts)


def test_the_plan_depends_on_the_seed_and_on_nothing_else() -> None:
    settings = FederationSettings(rounds=20, sites_per_round=2)
    first, again, other = (plan_rounds(sites, settings=settings, seed=seed) for sites, seed in
                           ((list("abcdef"), 1), (list("fedcba"), 1), (list("abcdef"), 2)))  # fmt: skip
    assert first == again
    assert first != other


RATE, ROUNDS, SITES, FALSE_ALARM = 0.3, 4_000, tuple(f"s{number}" for number in range(12)), 1e-6


def is_poisson(rounds: list[tuple[str, ...]], *, rate: float) -> bool:
    """Whether each site entered by coins of that rate and whether sizes vary as those of coins do; both two-sided."""
    entered = Counter(site for chosen in rounds for site in chosen)
    rates = [float(stats.binomtest(entered[site], len(rounds), rate).pvalue) for site in SITES]
    sizes = np.array([len(chosen) for chosen in rounds])
    variance = len(SITES) * rate * (1 - rate)
    # the variance of a sample of binomials is close to normal here; its spread from their fourth moment
    spread = math.sqrt((3 * variance**2 + variance * (1 - 6 * rate * (1 - rate)) - variance**2) / len(rounds))
    sizes_fit = abs(float(sizes.var()) - variance) < stats.norm.isf(FALSE_ALARM / 4) * spread
    return min(rates) > FALSE_ALARM / 2 / len(SITES) and sizes_fit


def test_every_site_is_drawn_by_a_coin_of_its_own() -> None:
    """Fails by chance for one seed in a million; rejects rounds of a fixed size and a rate a tenth off."""
    source = reproducible_source(0, purpose="sites")
    rounds = [draw_sites(SITES, sample_rate=RATE, source=source) for _ in range(ROUNDS)]
    assert is_poisson(rounds, rate=RATE)
    assert not is_poisson(rounds, rate=RATE * 1.1)
    assert any(len(chosen) == 0 for chosen in rounds)

    settings = FederationSettings(rounds=ROUNDS, sites_per_round=4)
    fixed = plan_rounds(SITES, settings=settings, seed=0)
    assert not is_poisson(fixed, rate=4 / len(SITES))


def test_one_sites_coin_says_nothing_about_anothers_or_the_next_rounds() -> None:
    """Fails by chance for one seed in a million."""
    source = reproducible_source(1, purpose="sites")
    rounds = [draw_sites(SITES, sample_rate=RATE, source=source) for _ in range(ROUNDS)]
    first, second = ([site in chosen for chosen in rounds] for site in SITES[:2])
    for one, other in ((first, second), (first[:-1], first[1:])):
        together = sum(a and b for a, b in zip(one, other, strict=True))
        assert float(stats.binomtest(together, len(one), RATE**2).pvalue) > FALSE_ALARM / 2


def test_sites_are_named_alike_whatever_order_they_came_in() -> None:
    draws = [
        draw_sites(sites, sample_rate=0.5, source=reproducible_source(5, purpose="sites"))
        for sites in (list("abcdef"), list("fedcba"))
    ]
    assert draws[0] == draws[1] == tuple(sorted(draws[0]))
