"""Contributions: exact by hand, adding up to the whole, the same whichever way a metric runs, and never of other rows."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from server.bootstrap import resample_counts
from server.contributions import MOST_FOR_ALL_SUBSETS, contributions_to
from server.evaluation import evaluate
from server.metrics import classification_metrics, rating_metrics
from server.records import Contributions, Evaluation
from server.shapley import sampled_shapley_values, shapley_values
from shared.batch import Samples
from shared.config import RunConfig
from shared.model.multimodal import MultimodalModel, build_model
from shared.model.registry import Fusion
from tests.server.test_evaluation import Sum, run_of, samples_of

Measure = Callable[[tuple[str, ...]], float | None]
Measured = Callable[[tuple[str, ...]], NDArray[np.float64] | None]
PHOTO_AND_WORDS = {(): 0.1, ("photo",): 0.5, ("words",): 0.3, ("photo", "words"): 0.8}
score = st.floats(-1, 1)


def alone(measure: Measure) -> Measured:
    """Without resamples."""

    def measured(names: tuple[str, ...]) -> NDArray[np.float64] | None:
        value = measure(names)
        return None if value is None else np.array([value])

    return measured


def found_of(measure: Measure, *, modalities: tuple[str, ...], is_error: bool = False) -> Contributions:
    found = contributions_to("macro_f1", measure=alone(measure), modalities=modalities, is_error=is_error, seed=3)
    assert found is not None
    return found


def test_two_modalities_by_hand() -> None:
    found = found_of(PHOTO_AND_WORDS.__getitem__, modalities=("photo", "words"))

    assert (found.everything, found.nothing, found.orders) == (0.8, 0.1, None)
    assert found.by_modality["photo"].shapley == pytest.approx(((0.5 - 0.1) + (0.8 - 0.3)) / 2)
    assert found.by_modality["words"].shapley == pytest.approx(((0.3 - 0.1) + (0.8 - 0.5)) / 2)
    assert found.by_modality["photo"].drop_one == pytest.approx(0.8 - 0.3)
    assert found.by_modality["words"].drop_one == pytest.approx(0.8 - 0.5)
    assert found.by_modality["words"].standard_error is None


def test_of_an_error_what_makes_it_smaller_brings_more_than_nothing() -> None:
    errors = {names: 1 - value for names, value in PHOTO_AND_WORDS.items()}
    found = found_of(errors.__getitem__, modalities=("photo", "words"), is_error=True)

    assert (found.everything, found.nothing) == pytest.approx((0.2, 0.9))
    assert found.by_modality["photo"].shapley == pytest.approx(0.45)
    assert found.by_modality["words"].drop_one == pytest.approx(0.3)


def test_two_that_say_the_same_share_it_and_neither_is_missed() -> None:
    found = found_of(
        lambda names: 0.9 if set(names) & {"photo", "copy"} else 0.2, modalities=("photo", "copy", "silent")
    )

    assert [each.shapley for each in found.by_modality.values()] == pytest.approx([0.35, 0.35, 0])
    assert [each.drop_one for each in found.by_modality.values()] == [0, 0, 0]


@settings(max_examples=50, deadline=None)
@given(scores=st.lists(score, min_size=16, max_size=16), is_error=st.booleans())
def test_the_parts_add_up_to_what_the_model_reaches_beyond_its_constant_answer(
    scores: list[float], is_error: bool
) -> None:
    names = ("photo", "words", "sound", "motion")

    def measure(shown: tuple[str, ...]) -> float:
        return scores[sum(1 << names.index(name) for name in shown)]

    found = found_of(measure, modalities=names, is_error=is_error)

    gained = (found.everything - found.nothing) * (-1 if is_error else 1)
    assert (found.everything, found.nothing) == (scores[15], scores[0])
    assert sum(each.shapley for each in found.by_modality.values()) == pytest.approx(gained, abs=1e-12)


@settings(max_examples=25, deadline=None)
@given(scores=st.lists(score, min_size=16, max_size=16))
def test_orders_drawn_at_random_add_up_too_and_are_about_the_exact_values(scores: list[float]) -> None:
    """Off by more than six standard errors by chance once in 10^8 where 400 orders are as good as normal."""
    exact = shapley_values(torch.tensor(scores, dtype=torch.float64)[:, None], num_players=4)[:, 0].numpy()

    twice = [np.array([score, -2 * score]) for score in scores]
    found, spread = sampled_shapley_values(twice.__getitem__, num_players=4, orders=400, seed=0)

    # every column by itself, all of them in the same orders
    np.testing.assert_allclose(found[:, 1], -2 * found[:, 0], atol=1e-12)
    np.testing.assert_allclose(spread[:, 1], 2 * spread[:, 0], atol=1e-12)
    drawn, errors = found[:, 0], spread[:, 0]
    assert drawn.sum() == pytest.approx(scores[15] - scores[0], abs=1e-12)
    assert (np.abs(drawn - exact) <= 6 * errors + 1e-9).all()


def test_many_modalities_are_drawn_with_a_seed_and_say_how_far_off_they_may_be() -> None:
    names = tuple(f"m{number}" for number in range(MOST_FOR_ALL_SUBSETS + 1))
    asked: list[tuple[str, ...]] = []

    def measure(shown: tuple[str, ...]) -> float:
        asked.append(shown)
        return 0.05 * len(shown) + (0.3 if {"m0", "m1"} <= set(shown) else 0.0)

    found = found_of(measure, modalities=names)

    assert found.orders == 64
    assert len(asked) == len(set(asked)) < 2 ** len(names)
    assert found == found_of(measure, modalities=names)
    assert found.by_modality["m8"].shapley == pytest.approx(0.05)
    assert found.by_modality["m8"].standard_error == pytest.approx(0.0, abs=1e-12)
    error = found.by_modality["m0"].standard_error
    assert error is not None
    assert 0.01 < error < 0.03
    assert found.by_modality["m0"].shapley == pytest.approx(0.2, abs=6 * error)


def test_what_is_not_defined_or_needs_no_parts_has_none() -> None:
    always, sometimes = alone(lambda _: 1.0), alone(lambda shown: 1.0 if shown else None)
    assert contributions_to("mae", measure=always, modalities=("photo",), is_error=True, seed=0) is None
    assert contributions_to("mae", measure=sometimes, modalities=("photo", "words"), is_error=True, seed=0) is None


def test_intervals_are_of_the_differences_in_each_resample_and_hold_the_value() -> None:
    """Scores that all move together by far more than any difference between them: the differences do not move."""
    moves = np.append(0.0, np.random.default_rng(0).normal(0, 0.3, 200))
    tilts = np.append(0.0, np.linspace(-0.1, 0.1, 200))

    def measure(names: tuple[str, ...], *, sign: int) -> NDArray[np.float64]:
        return sign * (PHOTO_AND_WORDS[names] + moves + (tilts if "photo" in names else 0))

    for is_error, sign in ((False, 1), (True, -1)):
        found = contributions_to(
            "macro_f1", measure=partial(measure, sign=sign), modalities=("photo", "words"), is_error=is_error, seed=0
        )
        assert found is not None
        photo, words = found.by_modality["photo"], found.by_modality["words"]
        assert photo.shapley_interval == pytest.approx((0.45 - 0.095, 0.45 + 0.095))
        assert photo.drop_one_interval == pytest.approx((0.5 - 0.095, 0.5 + 0.095))
        assert words.shapley_interval == pytest.approx((0.25, 0.25))
        assert words.drop_one_interval == pytest.approx((0.3, 0.3))


def test_resamples_that_define_nothing_are_left_out_and_too_few_give_no_interval() -> None:
    def measure(names: tuple[str, ...], *, undefined: int) -> NDArray[np.float64]:
        resamples = np.linspace(0, 1, 100)
        resamples[:undefined] = np.nan
        return np.append(len(names), len(names) * resamples)

    for undefined, lowest in ((40, 40 / 99), (60, None)):
        found = contributions_to(
            "mae",
            measure=partial(measure, undefined=undefined),
            modalities=("photo", "words"),
            is_error=False,
            seed=0,
        )
        assert found is not None
        interval = found.by_modality["photo"].shapley_interval
        assert (interval is None) == (lowest is None)
        if interval is not None and lowest is not None:
            assert interval[0] == pytest.approx(lowest, abs=0.03)


def evaluated(
    model: nn.Module, samples: Samples, *, run: RunConfig, subsets: bool = True, resamples: int = 0
) -> Evaluation:
    return evaluate(model, samples, run=run, part="test", bootstrap_samples=resamples, subsets=subsets, seed=1)


@pytest.mark.parametrize("rating", [False, True])
def test_intervals_are_those_of_the_bootstrap_over_subjects_done_by_hand(rating: bool) -> None:
    """The same people in each resample as those of every other score, each with all rows, and nothing trained anew."""
    run, samples = run_of("image", "text", rating=rating), samples_of(60, seed=2, rating=rating)
    samples = replace(samples, subjects=tuple(str(row // 3) for row in range(60)))
    found = evaluated(Sum(run.modalities, width=1 if rating else 3), samples, run=run, resamples=40).contributions
    assert found is not None

    def score(rows: Tensor, *names: str) -> float:
        some = samples.subset(rows)
        outputs = sum((some.inputs[name] for name in names), torch.zeros(len(rows), 3))
        if rating:
            return rating_metrics(outputs[:, :1], some.targets)["mae"]
        return classification_metrics(outputs, some.targets, calibration=False)["macro_f1"]

    brought, missed = [], []
    for chunk in resample_counts(samples.subjects, resamples=40, seed=1):
        for counts in chunk:
            rows = torch.from_numpy(np.repeat(np.arange(60), counts))
            nothing, image, text = score(rows), score(rows, "image"), score(rows, "text")
            both, sign = score(rows, "image", "text"), -1 if rating else 1
            brought.append(sign * (image - nothing + both - text) / 2)
            missed.append(sign * (both - text))
    each = found.by_modality["image"]
    assert each.shapley_interval == pytest.approx(np.quantile(brought, (0.025, 0.975)), abs=1e-6)
    assert each.drop_one_interval == pytest.approx(np.quantile(missed, (0.025, 0.975)), abs=1e-6)


def test_without_resamples_there_are_no_intervals() -> None:
    run = run_of("image", "text")
    found = evaluated(Sum(run.modalities), samples_of(20), run=run).contributions
    assert found is not None
    assert {each.shapley_interval for each in found.by_modality.values()} == {None}


def test_every_subset_is_measured_on_all_rows_and_those_without_any_of_it_get_the_constant_answer() -> None:
    samples, run = samples_of(60, seed=2), run_of("image", "text")
    present = samples.present.clone()
    present[:40, 0] = False
    samples = replace(samples, present=present)
    found = evaluated(Sum(run.modalities), samples, run=run).contributions
    assert found is not None

    def macro_f1(image: bool, text: bool) -> float:
        # `Sum` says 0 to all classes where nothing is present, which is taken for the first
        outputs = samples.inputs["image"] * (present[:, :1] & image) + samples.inputs["text"] * (present[:, 1:] & text)
        return classification_metrics(outputs, samples.targets, calibration=False)["macro_f1"]

    nothing, image, text, both = (
        macro_f1(False, False),
        macro_f1(True, False),
        macro_f1(False, True),
        macro_f1(True, True),
    )
    assert (found.metric, found.nothing) == ("macro_f1", nothing)
    assert found.everything == pytest.approx(both)
    assert found.by_modality["image"].drop_one == pytest.approx(both - text)
    assert found.by_modality["image"].shapley == pytest.approx((image - nothing + both - text) / 2)
    assert found.by_modality["text"].shapley == pytest.approx((text - nothing + both - image) / 2)


def test_a_modality_that_nobody_has_brings_nothing() -> None:
    samples, run = samples_of(30), run_of("image", "text")
    samples = replace(samples, present=samples.present & torch.tensor([True, False]))
    found = evaluated(Sum(run.modalities), samples, run=run).contributions

    assert found is not None
    assert (found.by_modality["text"].shapley, found.by_modality["text"].drop_one) == (0.0, 0.0)


def test_ratings_are_told_by_their_error() -> None:
    run = run_of("image", "text", rating=True)
    evaluation = evaluated(Sum(run.modalities, width=1), samples_of(40, rating=True), run=run)
    found = evaluation.contributions

    assert found is not None
    assert (found.metric, found.everything) == ("mae", evaluation.overall.metrics["mae"].value)
    parts = sum(each.shapley for each in found.by_modality.values())
    assert parts == pytest.approx(found.nothing - found.everything)


def test_without_subsets_and_of_one_modality_and_of_a_model_that_diverged_there_are_none() -> None:
    run = run_of("image", "text")
    assert evaluated(Sum(run.modalities), samples_of(20), run=run, subsets=False).contributions is None
    one = run_of("image")
    assert evaluated(Sum(one.modalities), samples_of(20, modalities=("image",)), run=one).contributions is None
    rating, samples = run_of("image", "text", rating=True), samples_of(20, rating=True)
    broken = replace(samples, inputs={**samples.inputs, "text": torch.full((20, 3), torch.nan)})
    assert evaluated(Sum(rating.modalities, width=1), broken, run=rating).contributions is None


class Counted(MultimodalModel):
    """Not the model itself, so that nothing of it is kept between subsets."""


def test_a_model_whose_encoders_run_once_gives_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    run, samples = run_of("image", "text"), samples_of(50)
    present = samples.present.clone()
    present[:20, 0] = present[20:30, 1] = False
    samples = replace(samples, present=present)
    model, whole = build_model(run), build_model(run)
    whole.__class__ = Counted
    seen: list[int] = []
    encoder = model.encoders["image"]
    plain = encoder.forward

    def counted(values: Tensor) -> Tensor:
        seen.append(len(values))
        outputs: Tensor = plain(values)
        return outputs

    monkeypatch.setattr(encoder, "forward", counted)

    for is_training in (True, False):
        seen.clear()
        assert evaluated(model.train(is_training), samples, run=run) == evaluated(whole, samples, run=run)
        assert sum(seen) == 2 * 50
        assert all(module.training is is_training for module in model.modules())


class Careless(Fusion):
    """What a user might write: it forgets that a modality can be absent."""

    def forward(self, embeddings: Tensor, present: Tensor) -> Tensor:
        return embeddings.sum(dim=1)


def test_a_fusion_that_forgets_about_absent_modalities_is_given_zeros_for_what_a_subset_hides() -> None:
    run, samples = run_of("image", "text"), samples_of(50)
    model, whole = build_model(run), build_model(run)
    model.fusion, whole.fusion = Careless(), Careless()
    whole.__class__ = Counted

    assert evaluated(model, samples, run=run) == evaluated(whole, samples, run=run)
