"""Participation is fixed before the first round and balanced, or drawn by secret coins, one a site and round."""

import math
from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from server.schedule import draw_sites, plan_rounds, planned_participations, with_newcomer
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


@given(
    st.integers(1, 8),
    st.one_of(st.none(), st.integers(1, 9)),
    st.integers(1, 24),
    st.lists(st.integers(1, 24), max_size=5),
    st.integers(0, 5),
)
def test_no_site_is_ever_asked_for_more_rounds_than_it_was_told(
    num_sites: int, per_round: int | None, num_rounds: int, joins: list[int], seed: int
) -> None:
    """However many come late, and when: what a site was told when it came in holds to the end."""
    settings = FederationSettings(rounds=num_rounds, sites_per_round=per_round)
    names = [f"s{number}" for number in range(num_sites)]
    rounds = plan_rounds(names, settings=settings, seed=seed)
    told = Counter(planned_participations(rounds))
    for number, first in enumerate(sorted(min(join, num_rounds) for join in joins)):
        before, name = rounds, f"late{number}"
        rounds, again = (
            with_newcomer(before, site=name, from_round=first, num_sites=len(names), settings=settings, seed=seed)
            for _ in range(2)
        )
        assert rounds == again
        assert rounds[: first - 1] == before[: first - 1]
        names.append(name)
        planned = planned_participations(rounds)
        told[name] = planned.get(name, 0)
        assert 1 <= told[name] <= num_rounds - first + 1
        assert all(planned.get(site, 0) <= told[site] for site in names)
        width = min(per_round or len(names), len(names))
        assert all(len(chosen) == len(set(chosen)) == width for chosen in rounds[first - 1 :])
        assert all(list(chosen) == sorted(chosen) and set(chosen) <= set(names) for chosen in rounds)


def test_a_newcomer_is_asked_about_as_often_as_those_that_are_there() -> None:
    settings = FederationSettings(rounds=40, sites_per_round=2)
    rounds = plan_rounds(list("abcd"), settings=settings, seed=3)
    after = with_newcomer(rounds, site="e", from_round=11, num_sites=4, settings=settings, seed=3)
    left = planned_participations(after[10:])
    assert left["e"] == 30 * 2 // 5
    assert max(left.values()) - min(left.values()) <= 1
    # by the seed, and by when it came
    other = with_newcomer(rounds, site="e", from_round=11, num_sites=4, settings=settings, seed=4)
    assert other != after
    # it is not always the same rounds' first or last
    asked = [number for number, chosen in enumerate(after, start=1) if "e" in chosen]
    assert asked[0] < 21 < asked[-1]


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
