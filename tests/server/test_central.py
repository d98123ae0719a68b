"""Whole sites hide in the sum: what one adds is bounded, the noise has its scale, and the ledger counts every round."""

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from server.central import (
    CentralPlan,
    SiteBudget,
    make_central_plan,
    noisy_unclipped_share,
    protect,
    steps_due,
    with_round,
)
from server.settings import ServerSettings
from shared.config import PrivacySettings
from shared.errors import BudgetError, PrivacyError, RunError
from shared.privacy.accountant import MechanismUse, spent_epsilon
from shared.privacy.ledger import Ledger
from shared.privacy.mechanism import layers_of, split_noise
from shared.privacy.noise import RandomSource, reproducible_source
from tests.server.conftest import small_run, small_settings

SHAPES = {"a.weight": (3, 2), "a.bias": (3,), "scale": ()}
PRIVACY = {"unit": "site", "trust": "server", "epsilon": 8.0, "delta": 1e-3, "clip_norm": 1.0}
FALSE_ALARM = 1e-6


def central_plan(
    *, noise: float = 0.0, denominator: float = 4.0, shapes: dict[str, tuple[int, ...]] | None = None, **privacy: object
) -> CentralPlan:
    return CentralPlan(
        privacy=PrivacySettings.model_validate({**PRIVACY, **privacy}),
        cap_epsilon=8.0,
        noise_multiplier=noise,
        sample_rate=1.0,
        denominator=denominator,
        shapes=shapes or SHAPES,
        reproducible_seed=0,
    )


def source(purpose: str = "test") -> RandomSource:
    return reproducible_source(0, purpose=purpose)


def update(*numbers: float) -> dict[str, Tensor]:
    """Ten numbers as an update of every parameter."""
    values = torch.tensor(numbers, dtype=torch.float32)
    return {"a.weight": values[:6].reshape(3, 2), "a.bias": values[6:9], "scale": values[9]}


def length(change: dict[str, Tensor]) -> float:
    return math.sqrt(sum(float(value.double().square().sum()) for value in change.values()))


numbers = st.one_of(
    st.floats(-1e9, 1e9, width=32), st.sampled_from([0.0, 1e-30, -1e-38, 3e38, -3e38, math.nan, math.inf, -math.inf])
)


@given(
    st.lists(numbers, min_size=10, max_size=10),
    st.sampled_from([1e-6, 0.5, 1e6]),
    st.sampled_from(["flat", "per-layer", "adaptive"]),
    st.sampled_from([("a.weight", "a.bias", "scale"), ("a.bias",), ("scale",), ("a.weight", "scale")]),
)
def test_one_site_moves_the_sum_by_at_most_the_clip_norm(
    values: list[float], clip_norm: float, clipping: str, sent: tuple[str, ...]
) -> None:
    """Whatever it sends and however little of the model, 0-d parameters too; others are there or not."""
    plan = central_plan(denominator=1.0, clipping=clipping)
    others = {"b": update(*[0.1] * 10)}
    one = {name: value for name, value in update(*values).items() if name in sent}
    without = protect(others, plan=plan, clip_norm=clip_norm, source=source())
    with_it = protect({**others, "a": one}, plan=plan, clip_norm=clip_norm, source=source())
    moved = {name: with_it[name].double() - without[name].double() for name in SHAPES}
    # what float32 rounds off the two results
    assert length(moved) <= clip_norm * (1 + 1e-5)
    assert all(moved[name].count_nonzero() == 0 for name in SHAPES if name not in sent)


def test_an_update_within_the_norm_is_not_changed() -> None:
    result = protect({"a": update(*[0.1] * 10)}, plan=central_plan(), clip_norm=1.0, source=source())
    torch.testing.assert_close(result["a.weight"], torch.full((3, 2), 0.1 / 4))
    torch.testing.assert_close(result["scale"], torch.tensor(0.1 / 4))


def test_each_layer_has_its_share_of_the_norm() -> None:
    plan = central_plan(denominator=1.0, clipping="per-layer")
    result = protect({"a": update(*[100.0] * 9, 0.001)}, plan=plan, clip_norm=1.0, source=source())
    layer = {name: result[name] for name in ("a.weight", "a.bias")}
    assert len(layers_of(tuple(SHAPES))) == 2
    assert length(layer) == pytest.approx(1 / math.sqrt(2), rel=1e-5)
    assert result["scale"].item() == pytest.approx(0.001)


def test_the_order_of_replies_does_not_change_a_bit_of_the_protected_average() -> None:
    updates = {f"s{number}": update(*torch.randn(10).tolist()) for number in range(9)}
    first, second = (
        protect(each, plan=central_plan(noise=1.0), clip_norm=1.0, source=source())
        for each in (updates, dict(reversed(updates.items())))
    )
    assert all(torch.equal(first[name], second[name]) for name in SHAPES)


def variance_is_plausible(values: Tensor, *, std: float) -> bool:
    """Chi-square, two-sided."""
    statistic = float((values.double() / std).square().sum())
    return bool(
        stats.chi2.ppf(FALSE_ALARM / 2, values.numel()) < statistic < stats.chi2.isf(FALSE_ALARM / 2, values.numel())
    )


@pytest.mark.parametrize("clipping", ["flat", "per-layer", "adaptive"])
def test_central_noise_has_the_promised_scale(clipping: str) -> None:
    """Fails by chance for one seed in a million; catches a scale of the average 5 % off either way."""
    plan = central_plan(noise=1.3, denominator=5.0, clipping=clipping, shapes={"w": (20_000,), "scale": ()})
    result = protect({"a": {"w": torch.zeros(20_000)}}, plan=plan, clip_norm=0.7, source=source(clipping))
    multiplier = split_noise(1.3)[0] if clipping == "adaptive" else 1.3
    std = multiplier * 0.7 / 5.0
    assert variance_is_plausible(result["w"], std=std)
    assert not variance_is_plausible(result["w"], std=std * 1.05)
    assert not variance_is_plausible(result["w"], std=std / 1.05)
    assert result["scale"].item() != 0


def test_adaptive_clipping_pays_for_its_count_with_more_noise_on_the_sum() -> None:
    """By 2 %, which no statistical test of this size would see: the same draws, compared number by number."""
    flat, adaptive = (
        protect({}, plan=central_plan(noise=1.3, clipping=clipping), clip_norm=1.0, source=source())["a.weight"]
        for clipping in ("flat", "adaptive")
    )
    torch.testing.assert_close(adaptive / flat, torch.full((3, 2), split_noise(1.3)[0] / 1.3))
    assert split_noise(1.3)[0] > 1.3 * 1.01


def test_central_count_has_the_promised_noise() -> None:
    """Fails by chance for one seed in a million; catches a scale 5 % off either way."""
    plan, draws = central_plan(noise=2.0, denominator=10.0, clipping="adaptive"), source("count")
    shares = torch.tensor(
        [noisy_unclipped_share([True, True, False], plan=plan, source=draws) for _ in range(8_000)]
    ).double()
    std = split_noise(2.0)[1] / 10.0
    # two within and one beyond: half a site more than none
    assert variance_is_plausible(shares - 0.55, std=std)
    assert not variance_is_plausible(shares - 0.55, std=std * 1.05)
    assert not variance_is_plausible(shares - 0.55, std=std / 1.05)


def test_sum_and_count_together_cost_what_the_accountant_is_told() -> None:
    """Two Gaussian sums over the same sites are one whose precision is the sum of theirs."""
    of_sum, of_count = split_noise(1.7)
    assert of_sum**-2 + (2 * of_count) ** -2 == pytest.approx(1.7**-2)


def test_a_round_without_updates_is_noise_alone() -> None:
    plan = central_plan(noise=1.0)
    result = protect({}, plan=plan, clip_norm=1.0, source=source())
    assert {name: tuple(value.shape) for name, value in result.items()} == SHAPES
    assert all(bool((value != 0).all()) for value in result.values())


def budget_of(folder: Path, *, run_id: str = "r", cap: float | None = None, **changes: object) -> tuple[
    SiteBudget, ServerSettings
]:  # fmt: skip
    settings = small_settings(small_run(), folder=folder).model_copy(update={"run_id": run_id, "site_cap_epsilon": cap})
    return SiteBudget(settings), settings.model_copy(update=changes)


def planned(folder: Path, *, run_id: str = "r", cap: float | None = None, sites: int = 4, rounds: int = 3,
            **privacy: object) -> tuple[CentralPlan, SiteBudget]:  # fmt: skip
    budget, settings = budget_of(folder, run_id=run_id, cap=cap)
    plan = make_central_plan(
        PrivacySettings.model_validate({**PRIVACY, **privacy}),
        budget=budget,
        settings=settings,
        num_sites=sites,
        planned_steps=rounds,
        shapes=SHAPES,
    )
    return plan, budget


def test_all_planned_rounds_together_keep_the_runs_epsilon_and_use_it(tmp_path: Path) -> None:
    plan, budget = planned(tmp_path)
    spent = [budget.charge(plan, steps=1, round_number=number, attempt=0) for number in (1, 2, 3)]
    assert spent == sorted(spent)
    assert 7.9 < spent[-1] <= 8.0
    again = Ledger(tmp_path / "server-ledger.sqlite").uses("small", unit="site")
    assert again == (MechanismUse(plan.noise_multiplier, 1.0, 3),)
    assert spent_epsilon(again, delta=1e-3, accountant="pld") == spent[-1]
    with pytest.raises(BudgetError, match="round 4"):
        budget.charge(plan, steps=1, round_number=4, attempt=0)


@pytest.mark.parametrize(("epsilon", "cap"), [(8.0, 2.0), (2.0, 8.0)])
def test_the_stricter_of_run_and_cap_wins(epsilon: float, cap: float, tmp_path: Path) -> None:
    plan, budget = planned(tmp_path, epsilon=epsilon, cap=cap)
    for number in (1, 2, 3):
        last = budget.charge(plan, steps=1, round_number=number, attempt=0)
    assert 1.95 < last <= 2.0


def test_a_second_run_on_a_federation_is_refused_beyond_the_cap(tmp_path: Path) -> None:
    first, budget = planned(tmp_path, cap=12.0)
    for number in (1, 2, 3):
        spent = budget.charge(first, steps=1, round_number=number, attempt=0)
    with pytest.raises(BudgetError, match=r"would bring it to 1[2-9]"):
        planned(tmp_path, run_id="second", cap=12.0)
    second, budget = planned(tmp_path, run_id="second", cap=12.0, epsilon=4.0)
    total = budget.charge(second, steps=1, round_number=1, attempt=0)
    assert spent < total < 12.0
    assert budget.before() == (first.use(1),) * 3
    assert budget.charged() == 1


def test_a_resumed_run_keeps_its_noise_whatever_else_was_spent_since(tmp_path: Path) -> None:
    plan, budget = planned(tmp_path, cap=12.0)
    budget.charge(plan, steps=1, round_number=1, attempt=0)
    other, others = planned(tmp_path, run_id="other", cap=12.0, epsilon=3.0)
    others.charge(other, steps=1, round_number=1, attempt=0)
    assert planned(tmp_path, cap=12.0)[0].noise_multiplier == plan.noise_multiplier


def test_a_run_spends_no_more_than_it_asked_for_under_a_larger_cap(tmp_path: Path) -> None:
    plan, budget = planned(tmp_path, cap=100.0)
    budget.charge(plan, steps=1, round_number=1, attempt=0)
    with pytest.raises(BudgetError, match="it asked for"):
        budget.charge(plan, steps=49, round_number=2, attempt=0)
    assert budget.spent(plan) <= plan.privacy.epsilon


def test_a_public_schedule_costs_the_most_rounds_that_any_site_is_in() -> None:
    """Of rounds with one site each, the second costs nothing that the first did not, and the third does."""
    participations: dict[str, int] = {}
    owed, charged = [], 0
    for sites in (["a"], ["b"], ["a"], ["b"], ["b"]):  # the last is repeated after a crash
        before, participations = participations, with_round(participations, sites=sites)
        owed.append(steps_due(participations, before=before, charged=charged))
        charged += owed[-1]
    assert owed == [1, 0, 1, 0, 1]
    assert charged == max(participations.values())


def test_a_ledger_from_an_old_copy_is_paid_up() -> None:
    """Three rounds were asked and the ledger holds one: the fourth pays for all that is missing."""
    before = {"a": 3, "b": 1}
    assert steps_due(with_round(before, sites=["a"]), before=before, charged=1) == 3
    assert steps_due(with_round(before, sites=["b"]), before=before, charged=1) == 2


def test_the_central_denominator_is_public(tmp_path: Path) -> None:
    """What a site is divided by follows from settings; whether one more answered does not move it."""
    plan = central_plan()
    one = protect({"a": update(*[0.1] * 10)}, plan=plan, clip_norm=1.0, source=source())
    two = protect({"a": update(*[0.1] * 10), "b": update(*[0.0] * 10)}, plan=plan, clip_norm=1.0, source=source())
    assert all(torch.equal(one[name], two[name]) for name in SHAPES)
    for federation, expected in (({}, 4.0), ({"sites_per_round": 3}, 3.0), ({"site_sample_rate": 0.3}, 1.2)):
        budget, settings = budget_of(tmp_path)
        run = settings.run.model_copy(
            update={"federation": settings.run.federation.model_copy(update=dict(federation))}
        )
        made = make_central_plan(
            PrivacySettings.model_validate({**PRIVACY, "accountant": "rdp"}),
            budget=budget,
            settings=settings.model_copy(update={"run": run}),
            num_sites=4,
            planned_steps=2,
            shapes=SHAPES,
        )
        assert made.denominator == pytest.approx(expected)


def test_secret_sampling_is_cheaper_and_only_it(tmp_path: Path) -> None:
    noise = {}
    for name, federation in (("public", {"sites_per_round": 2}), ("secret", {"site_sample_rate": 0.5})):
        budget, settings = budget_of(tmp_path / name)
        run = settings.run.model_copy(
            update={"federation": settings.run.federation.model_copy(update=dict(federation))}
        )
        made = make_central_plan(
            PrivacySettings.model_validate({**PRIVACY, "accountant": "rdp"}), budget=budget, settings=settings.model_copy(update={"run": run}),
            num_sites=4, planned_steps=4, shapes=SHAPES,
        )  # fmt: skip
        noise[name] = (made.sample_rate, made.noise_multiplier)
    assert noise["public"][0] == 1.0
    assert noise["secret"][1] < noise["public"][1]


def test_a_delta_that_would_allow_publishing_a_site_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PrivacyError, match="publishing one whole site"):
        planned(tmp_path, sites=2000)


def test_a_run_folder_without_a_ledger_is_refused_where_sites_are_protected(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="ledger and federation"):
        SiteBudget(small_settings(small_run(), folder=tmp_path).model_copy(update={"ledger": None}))
