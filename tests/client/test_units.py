"""Tests of units in a round: a subject with 500 rows moves it no further than a record may, however it is protected."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from client.plan import PrivacyPlan
from shared.batch import Samples
from shared.config import Clipping, NoiseKind
from shared.privacy.mechanism import GRIDS_PER_NORM, split_noise, whole_number_sensitivity
from tests.client.toy import (
    LAYERED_NAMES,
    LAYERED_WIDTH,
    PlantedLayers,
    Toy,
    flat,
    plan_of,
    planted_samples,
    toy_samples,
    trained,
    trained_round,
    training_settings,
)

CLIPPINGS: tuple[Clipping, ...] = ("flat", "per-layer", "adaptive")
NOISES: tuple[NoiseKind, ...] = ("float64", "float32", "discrete")
DENOMINATOR, CLIP_NORM = 8.0, 0.7

extreme = st.sampled_from([0.0, 0.3, 1e20, -3e38, math.nan, math.inf])
value = st.one_of(extreme, st.floats(min_value=-50, max_value=50, width=32))


def subject_plan(clipping: Clipping, noise: NoiseKind, *, records: int) -> PrivacyPlan:
    return plan_of(
        unit="subject",
        clipping=clipping,
        noise=noise,
        records_per_unit=records,
        clip_norm=CLIP_NORM,
        sample_rate=1.0,
        expected_batch_size=DENOMINATOR,
        noise_multiplier=0.4,
    )


def cohort(one: Tensor) -> tuple[Samples, Samples]:
    """Eight subjects of one to three rows; the same with a ninth who has the rows given.

    The rows of each of the eight are equal, so that it does not matter that the ninth has the others draw anew.
    """
    owners = [str(number) for number in range(8) for _ in range(1 + number % 3)]
    of_subject = torch.randn(8, LAYERED_WIDTH, generator=torch.Generator().manual_seed(2))
    others = of_subject[torch.tensor([int(owner) for owner in owners])]
    without = replace(planted_samples(others), subjects=tuple(owners))
    with_one = replace(planted_samples(torch.cat([others, one])), subjects=(*owners, *["one"] * len(one)))
    return with_one, without


def reach(plan: PrivacyPlan) -> float:
    """How far one unit may move a round of one step with a learning rate of 1."""
    if plan.noise != "discrete":
        return plan.clip_norm / DENOMINATOR * (1 + 1e-5)
    grid = plan.clip_norm / GRIDS_PER_NORM
    sensitivity = whole_number_sensitivity(clip_norm=plan.clip_norm, grid=grid, num_parameters=LAYERED_WIDTH)
    return sensitivity * grid / DENOMINATOR * (1 + 1e-5)


@settings(max_examples=5, deadline=None)
@pytest.mark.parametrize("records", [1, 4])
@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("clipping", CLIPPINGS)
@given(row=st.lists(value, min_size=LAYERED_WIDTH, max_size=LAYERED_WIDTH))
def test_a_subject_with_500_rows_moves_a_round_as_far_as_one_record_may(
    clipping: Clipping, noise: NoiseKind, records: int, row: list[float]
) -> None:
    """Through the whole of train_round; all of them point one way, so that a sum over rows would go 500 times as far."""
    plan = subject_plan(clipping, noise, records=records)
    with_one, without = (
        trained_round(PlantedLayers(), samples, training=training_settings(), plan=plan, names=LAYERED_NAMES)
        for samples in cohort(torch.tensor(row, dtype=torch.float32).expand(500, -1))
    )
    moved = flat(with_one.update).double() - flat(without.update).double()

    assert float(moved.norm()) <= reach(plan)
    if clipping == "adaptive":
        assert with_one.unclipped_share is not None
        assert without.unclipped_share is not None
        assert abs(with_one.unclipped_share - without.unclipped_share) <= 0.5 / DENOMINATOR * (1 + 1e-9)


def test_the_reach_is_really_used() -> None:
    """The test above could not fail if a subject moved nothing."""
    plan = subject_plan("flat", "float64", records=1)
    with_one, without = (
        flat(trained(PlantedLayers(), samples, training=training_settings(), plan=plan, names=LAYERED_NAMES))
        for samples in cohort(torch.full((500, LAYERED_WIDTH), 9.0))
    )

    assert float((with_one - without).double().norm()) == pytest.approx(reach(plan), rel=1e-4)


def test_by_record_the_same_person_moves_a_round_five_hundred_times_as_far() -> None:
    """Why the unit matters: what `subject` prevents does happen under `record`."""
    plan = replace(subject_plan("flat", "float64", records=1), unit="record")
    with_one, without = (
        flat(trained(PlantedLayers(), samples, training=training_settings(), plan=plan, names=LAYERED_NAMES))
        for samples in cohort(torch.full((500, LAYERED_WIDTH), 9.0))
    )

    assert float((with_one - without).double().norm()) == pytest.approx(500 * reach(plan), rel=1e-3)


@pytest.mark.parametrize("clipping", ["flat", "per-layer"])
@pytest.mark.parametrize("records", [1, 3])
def test_without_noise_and_clipping_subjects_of_one_record_are_trained_as_records_are(
    clipping: Clipping, records: int
) -> None:
    """The same as ordinary training without a plan, to rounding."""
    samples, steps = toy_samples(12), 6
    samples = replace(samples, inputs={name: values.double() for name, values in samples.inputs.items()})
    training = training_settings("momentum", learning_rate=0.1, sample_rate=1.0, local_steps=steps)
    plan = plan_of(
        unit="subject",
        clipping=clipping,
        records_per_unit=records,
        clip_norm=1e9,
        noise_multiplier=0.0,
        sample_rate=1.0,
        expected_batch_size=12.0,
        steps_per_round=steps,
    )
    as_subjects = trained(Toy().double(), samples, training=training, plan=plan)
    ordinary = trained(Toy().double(), samples, training=training, plan=None, nominal_size=12)

    assert all(torch.allclose(as_subjects[name], ordinary[name], rtol=1e-10, atol=1e-12) for name in ordinary)


def test_a_subject_contributes_the_mean_of_its_records() -> None:
    """Two rows, both drawn at every step: their mean leaves, over the denominator."""
    rows = torch.zeros(2, LAYERED_WIDTH)
    rows[0, 0], rows[1, 0] = 0.5, 0.1
    samples = replace(planted_samples(rows), subjects=("one", "one"))
    plan = replace(subject_plan("flat", "float64", records=2), noise_multiplier=0.0)
    change = trained(PlantedLayers(), samples, training=training_settings(), plan=plan, names=LAYERED_NAMES)

    assert float(change["first.weight"][0]) == pytest.approx(-0.3 / DENOMINATOR)


@pytest.mark.parametrize("noise", ["float64", "discrete"])
def test_the_count_pays_for_itself_out_of_the_sums_noise(noise: NoiseKind) -> None:
    """Adaptive clipping adds the first share of split_noise to the sum: the same draws, that much longer."""
    samples, plan = cohort(torch.zeros(0, LAYERED_WIDTH))[0], subject_plan("flat", noise, records=1)
    nothing, flat_noise, adaptive_noise = (
        flat(trained(PlantedLayers(), samples, training=training_settings(), plan=each, names=LAYERED_NAMES)).double()
        for each in (replace(plan, noise_multiplier=0.0), plan, replace(plan, clipping="adaptive"))
    )
    of_sum, _ = split_noise(0.4)

    if noise == "float64":
        assert torch.allclose((adaptive_noise - nothing) / (flat_noise - nothing), torch.tensor(of_sum / 0.4).double())
    assert float((adaptive_noise - nothing).norm()) > 0
