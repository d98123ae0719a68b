"""Participation is fixed before the first round and balanced."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from server.schedule import plan_rounds, planned_participations
from shared.config import FederationSettings


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
