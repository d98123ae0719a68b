"""Tests of shared/privacy/mechanism.py and of clipping in a round: flat, by layer, adaptive, and to whole numbers."""

import math

import pytest
import torch
from dp_accounting import GaussianDpEvent
from dp_accounting.rdp import RdpAccountant
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from client.gradient.functional import FunctionalEngine
from client.gradient.reference import ReferenceEngine
from client.noisy_optimizer import clip_of
from client.private_training import noisy_excess
from shared.config import NoiseKind, PrivacySettings
from shared.privacy.mechanism import (
    GRIDS_PER_NORM,
    Clip,
    ClippedSum,
    clip_update,
    clipped_sum,
    layers_of,
    next_clip_norm,
    sample_norms,
    split_noise,
    sum_of_none,
    whole_number_sensitivity,
)
from shared.privacy.noise import RandomSource, reproducible_source
from tests.client.toy import (
    LAYERED_NAMES,
    LAYERED_WIDTH,
    PlantedLayers,
    flat,
    plan_of,
    planted_samples,
    trained_round,
    training_settings,
)

CLIPS = {
    "flat": Clip(0.5),
    "per-layer": Clip(0.5, per_layer=True),
    "whole": Clip(0.5, grid=0.5 / GRIDS_PER_NORM),
    "coarse": Clip(0.5, grid=0.125),
    "per-layer-whole": Clip(0.5, per_layer=True, grid=0.5 / GRIDS_PER_NORM),
}
plain = st.floats(min_value=-3, max_value=3, width=32)
strange = st.sampled_from([0.0, 1e-30, 1e18, -1e18, 3e38, math.nan, math.inf, -math.inf])
contribution = st.lists(st.one_of(plain, strange), min_size=LAYERED_WIDTH, max_size=LAYERED_WIDTH)


def planted(rows: list[list[float]], clip: Clip) -> ClippedSum:
    """The sum that FunctionalEngine makes of these gradients over three layers, one of them a 0-d weight."""
    batch = planted_samples(torch.tensor(rows, dtype=torch.float32).reshape(-1, LAYERED_WIDTH))
    return FunctionalEngine(microbatch_size=2).clipped_sum(PlantedLayers(), batch, names=LAYERED_NAMES, clip=clip)


def reach(clip: Clip) -> float:
    """How far one unit may move the sum, in the sum's own widths."""
    if clip.grid is None:
        return clip.norm * (1 + 5e-6)
    return whole_number_sensitivity(clip_norm=clip.norm, grid=clip.grid, num_parameters=LAYERED_WIDTH)


@settings(max_examples=30, deadline=None)
@pytest.mark.parametrize("name", CLIPS)
@given(others=st.lists(contribution, max_size=4), one=contribution)
def test_one_unit_moves_any_sum_by_at_most_its_reach(name: str, others: list[list[float]], one: list[float]) -> None:
    clip = CLIPS[name]
    with_one, without = planted([*others, one], clip), planted(others, clip)

    assert float((flat(with_one.sums).double() - flat(without.sums).double()).norm()) <= reach(clip)
    assert with_one.unclipped - without.unclipped in (0.0, 1.0)


@pytest.mark.parametrize("per_layer", [False, True])
def test_whole_number_contributions_keep_their_bound(per_layer: bool) -> None:
    """On a coarse grid, where rounding adds a quarter to a contribution: the bound holds, and it is nearly reached."""
    clip = Clip(1.0, per_layer=per_layer, grid=0.05)
    rows = torch.randn(400, LAYERED_WIDTH, generator=torch.Generator().manual_seed(3)) * 10
    bound = whole_number_sensitivity(clip_norm=1.0, grid=0.05, num_parameters=LAYERED_WIDTH)
    sums = [clipped_sum({"a.b": row[None, :4], "c.d": row[None, 4:]}, clip=clip).sums for row in rows]
    norms = [float(flat(each).double().norm()) for each in sums]

    clipped = [
        clipped_sum({"a.b": row[None, :4], "c.d": row[None, 4:]}, clip=Clip(1.0, per_layer)).sums for row in rows
    ]
    away = max(float((flat(a) * 0.05 - flat(b)).abs().max()) for a, b in zip(sums, clipped, strict=True))

    assert away <= 0.05 / 2 * (1 + 1e-5)  # to the nearest
    assert 20.0 < max(norms) <= bound
    assert bound == pytest.approx(20 + math.sqrt(LAYERED_WIDTH) / 2)


def test_a_whole_number_contribution_beyond_its_bound_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Should the clip ever fail, noise on whole numbers still covers what is added."""
    monkeypatch.setattr("shared.privacy.mechanism.clip_factors", lambda norms, clip_norm: torch.ones_like(norms))
    rows = torch.zeros(40, LAYERED_WIDTH)
    rows[:, 0] = 0.4
    rows[7, 0] = 0.8

    assert clipped_sum({"a": rows}, clip=CLIPS["coarse"]).sums["a"][0] == 39 * 3
    beyond = torch.full((1, LAYERED_WIDTH), 9.0)
    assert not clipped_sum({"a": beyond}, clip=CLIPS["whole"]).sums["a"].any()


def test_whole_numbers_are_added_exactly() -> None:
    """The sum is the same to the last bit in whatever order and pieces; in float32 it is not."""
    rows = torch.rand(301, LAYERED_WIDTH, generator=torch.Generator().manual_seed(1))

    def summed(gradients: Tensor, clip: Clip) -> Tensor:
        return clipped_sum({"a": gradients}, clip=clip).sums["a"]

    whole = summed(rows, CLIPS["whole"])
    assert whole.dtype == torch.int64
    assert torch.equal(whole, summed(rows.flip(0), CLIPS["whole"]))
    assert torch.equal(whole, summed(rows[:200], CLIPS["whole"]) + summed(rows[200:], CLIPS["whole"]))
    pieces = [planted(part.tolist(), CLIPS["whole"]) for part in (rows[:9], rows[:4], rows[4:9])]
    assert torch.equal(flat(pieces[0].sums), flat(pieces[1].sums) + flat(pieces[2].sums))
    assert not torch.equal(summed(rows, CLIPS["flat"]), summed(rows.flip(0), CLIPS["flat"]))


def test_each_layer_has_its_share_of_the_norm_and_0d_weights_too() -> None:
    huge = [1e9] * LAYERED_WIDTH
    sums = planted([huge], Clip(0.6, per_layer=True)).sums
    norms = {
        layer: float(torch.cat([sums[name].reshape(-1) for name in names]).double().norm())
        for layer, names in layers_of(LAYERED_NAMES).items()
    }

    assert len(norms) == 3
    assert all(norm == pytest.approx(0.6 / math.sqrt(3), rel=1e-6) for norm in norms.values())
    assert abs(float(sums["scale.factor"])) == pytest.approx(0.6 / math.sqrt(3), rel=1e-6)
    assert float(flat(sums).double().norm()) == pytest.approx(0.6, rel=1e-6)


def test_a_small_layer_is_left_alone_beside_a_large_one() -> None:
    gradient = [1e9] * 4 + [0.1] * (LAYERED_WIDTH - 4)
    sums = planted([gradient], Clip(0.6, per_layer=True)).sums

    assert sums["second.weight"].tolist() == pytest.approx([0.1])
    assert planted([gradient], Clip(0.6)).sums["second.weight"].abs().max() < 1e-9


def test_a_layer_that_is_broken_empties_the_whole_contribution() -> None:
    for clip in CLIPS.values():
        broken = planted([[0.1] * (LAYERED_WIDTH - 1) + [math.nan]], clip)

        assert not flat(broken.sums).any()
        assert broken.unclipped == 0.0


def test_units_within_the_norm_are_counted() -> None:
    rows = [[size] + [0.0] * (LAYERED_WIDTH - 1) for size in (0.0, 0.1, 0.49, 0.51, 9.0, math.inf)]

    assert planted(rows, Clip(0.5)).unclipped == 3.0
    assert planted(rows, Clip(0.5, per_layer=True)).unclipped == 2.0  # .49 is above 0.5 / sqrt(3)
    assert planted([], Clip(0.5)).unclipped == 0.0


def test_an_update_is_clipped_as_one_unit() -> None:
    update = {"a.weight": torch.tensor([[3.0, 0.0]]), "a.scale": torch.tensor(4.0)}
    clipped, was_within = clip_update(update, clip_norm=1.0, per_layer=False)
    same, within = clip_update(update, clip_norm=5.0, per_layer=False)

    assert clipped["a.weight"].tolist() == [[pytest.approx(0.6), 0.0]]
    assert clipped["a.scale"].item() == pytest.approx(0.8)
    assert (was_within, within) == (False, True)
    assert all(torch.equal(same[name], update[name]) for name in update)
    broken, _ = clip_update({**update, "b": torch.tensor([math.nan])}, clip_norm=1.0, per_layer=True)
    assert not any(value.any() for value in broken.values())


def test_the_sum_of_none_has_the_shapes_and_no_value() -> None:
    none = sum_of_none({"a": torch.ones(2, 3), "b": torch.tensor(1.0)}, clip=CLIPS["whole"])

    assert none.sums["a"].shape == (2, 3)
    assert none.sums["b"].dtype == torch.int64
    assert not any(value.any() for value in none.sums.values())


def test_norms_of_many_numbers_lose_no_digits() -> None:
    """A plain float32 norm of these is 0.04 % too small, and the clip that much too loose."""
    numbers = torch.randn(1, 10_000_000, generator=torch.Generator().manual_seed(0))
    exact = float(numbers.double().norm())

    assert float(sample_norms({"all": numbers})) == pytest.approx(exact, rel=1e-6)


def test_clipping_is_joint_over_parameters() -> None:
    sums = clipped_sum({"a": torch.tensor([[3.0]]), "b": torch.tensor([4.0])}, clip=Clip(1.0)).sums

    assert sums["a"].item() == pytest.approx(0.6)
    assert sums["b"].item() == pytest.approx(0.8)


@pytest.mark.parametrize("multiplier", [0.4, 1.0, 7.0])
def test_sum_and_count_together_cost_what_one_gaussian_does(multiplier: float) -> None:
    """By an independent accountant; the count moves by 1/2, so its own multiplier is twice its deviation."""
    of_sum, of_count = split_noise(multiplier)

    def cost(*multipliers: float) -> float:
        accountant = RdpAccountant()
        for each in multipliers:
            accountant.compose(GaussianDpEvent(each), 3)
        return float(accountant.get_epsilon(1e-5))

    assert cost(of_sum, 2 * of_count) == pytest.approx(cost(multiplier), rel=1e-9)
    assert cost(of_sum / 1.05, 2 * of_count) > cost(multiplier) * 1.02
    assert cost(of_sum, of_count) > cost(multiplier) * 1.02
    assert 1 < of_sum / multiplier < 1.03


class Blocks(RandomSource):
    """The same kind of numbers, drawn many at a time, as one alone takes a tenth of a millisecond."""

    def __init__(self) -> None:
        super().__init__(bytes(32))
        self.drawn: list[Tensor] = []

    def normal(self, shape: tuple[int, ...], *, std: float, kind: NoiseKind = "float64") -> Tensor:
        assert shape == ()
        self.drawn = self.drawn or list(super().normal((5_000,), std=std, kind=kind))
        return self.drawn.pop()

    def discrete_normal(self, shape: tuple[int, ...], *, std: float) -> Tensor:
        assert shape == ()
        self.drawn = self.drawn or list(super().discrete_normal((5_000,), std=std))
        return self.drawn.pop()


def count_noise(kind: NoiseKind, num: int) -> Tensor:
    """Noise of counts over no units."""
    plan, source = plan_of(clipping="adaptive", noise=kind), Blocks()
    none = ClippedSum(sums={}, unclipped=0.0)
    return torch.tensor([noisy_excess(none.unclipped, units=0, plan=plan, noise=source) for _ in range(num)])


@pytest.mark.parametrize("kind", ["float64", "discrete"])
def test_the_count_has_the_promised_noise(kind: NoiseKind) -> None:
    """Would fail for two keys in a million; rejects a scale 5 % off either way."""
    noise, (_, std) = count_noise(kind, 25_000), split_noise(1.3)
    total = float(noise.double().square().sum())

    def is_plausible(deviation: float) -> bool:
        return 1e-6 / 2 < float(stats.chi2.cdf(total / deviation**2, len(noise))) < 1 - 1e-6 / 2

    assert is_plausible(std)
    assert not is_plausible(std * 1.05)
    assert not is_plausible(std / 1.05)


@pytest.mark.parametrize("kind", ["float64", "discrete"])
def test_the_share_that_leaves_is_the_mean_of_the_noisy_counts(kind: NoiseKind) -> None:
    """Three of four are within the norm at each of two steps; the noise is what the same stream gives again."""
    rows = torch.zeros(4, LAYERED_WIDTH)
    rows[0, 0] = 9.0
    plan = plan_of(clipping="adaptive", noise=kind, sample_rate=1.0, expected_batch_size=4.0, steps_per_round=2)
    done = trained_round(
        PlantedLayers(), planted_samples(rows), training=training_settings(), plan=plan, names=LAYERED_NAMES
    )

    again, counts = reproducible_source(1, purpose="noise"), []
    of_sum, of_count = split_noise(1.3)
    for _ in range(2):
        if kind == "discrete":
            sensitivity = whole_number_sensitivity(
                clip_norm=0.7, grid=0.7 / GRIDS_PER_NORM, num_parameters=LAYERED_WIDTH
            )
            again.discrete_normal((LAYERED_WIDTH,), std=of_sum * sensitivity)
        else:
            again.normal((LAYERED_WIDTH,), std=of_sum * 0.7)
        noise = (
            int(again.discrete_normal((), std=2 * of_count)) / 2
            if kind == "discrete"
            else float(again.normal((), std=of_count))
        )
        counts.append(3 - 4 / 2 + noise)

    assert done.unclipped_share == pytest.approx(0.5 + sum(counts) / 2 / 4.0)


def test_no_share_leaves_without_adaptive_clipping() -> None:
    for plan in (None, plan_of(), plan_of(clipping="per-layer")):
        samples = planted_samples(torch.ones(4, LAYERED_WIDTH))
        done = trained_round(PlantedLayers(), samples, training=training_settings(), plan=plan, names=LAYERED_NAMES)

        assert done.unclipped_share is None


def adaptive_settings(target: float) -> PrivacySettings:
    return PrivacySettings(
        unit="record",
        trust="nobody",
        epsilon=1.0,
        delta=1e-5,
        clip_norm=1.0,
        clipping="adaptive",
        target_quantile=target,
    )


@pytest.mark.parametrize("start", [0.1, 6.0])
@pytest.mark.parametrize("target", [0.3, 0.8])
def test_the_clip_norm_finds_its_quantile_within_sixty_rounds(start: float, target: float) -> None:
    """Through real, noised rounds, from far below and far above; the norms are planted."""
    norms = torch.exp(torch.randn(200, generator=torch.Generator().manual_seed(5)) / 2)
    rows = torch.zeros(200, LAYERED_WIDTH)
    rows[:, 0] = norms
    noise, sampling = (reproducible_source(7, purpose=use) for use in ("noise", "sampling"))
    clip_norm, settled = start, []
    for number in range(60):
        done = trained_round(
            PlantedLayers(),
            planted_samples(rows),
            training=training_settings(),
            plan=plan_of(clipping="adaptive", clip_norm=clip_norm, noise_multiplier=1.0, expected_batch_size=100.0),
            names=LAYERED_NAMES,
            noise=noise,
            sampling=sampling,
        )
        assert done.unclipped_share is not None
        clip_norm = next_clip_norm(clip_norm, unclipped_share=done.unclipped_share, settings=adaptive_settings(target))
        if number >= 50:
            settled.append(clip_norm)
    within = float((norms <= sum(settled) / len(settled)).double().mean())

    assert within == pytest.approx(target, abs=0.06)


def test_the_clip_norm_stays_within_what_is_allowed() -> None:
    for share, norm in ((-1e9, 1e6), (1e9, 1e-6), (-1e9, 1.0), (1e9, 1.0)):
        assert 1e-6 <= next_clip_norm(norm, unclipped_share=share, settings=adaptive_settings(0.5)) <= 1e6
    # a share far outside 0..1 moves it no further than 0 or 1 would
    moved = next_clip_norm(1.0, unclipped_share=-1e9, settings=adaptive_settings(0.5))
    assert moved == pytest.approx(math.exp(0.2 * 0.5))


def test_a_plan_says_how_to_clip() -> None:
    assert clip_of(None) == Clip(math.inf)
    assert clip_of(plan_of()) == clip_of(plan_of(clipping="adaptive")) == Clip(0.7)
    assert clip_of(plan_of(clipping="per-layer")) == Clip(0.7, per_layer=True)
    assert clip_of(plan_of(noise="discrete")) == Clip(0.7, grid=0.7 / 2**20)


@pytest.mark.parametrize("name", CLIPS)
def test_the_reference_plants_the_same(name: str) -> None:
    rows = torch.randn(7, LAYERED_WIDTH, generator=torch.Generator().manual_seed(2))
    wanted = ReferenceEngine().clipped_sum(
        PlantedLayers(), planted_samples(rows), names=LAYERED_NAMES, clip=CLIPS[name]
    )
    found = planted(rows.tolist(), CLIPS[name])

    assert torch.allclose(flat(found.sums).double(), flat(wanted.sums).double(), rtol=1e-6)
    assert found.unclipped == wanted.unclipped
