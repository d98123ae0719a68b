"""Evaluation: the metrics are the libraries', the intervals draw subjects, and odd parts of data do no harm."""

import math
import warnings

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve
from torch import Tensor, nn

from server.bootstrap import Interval, drawn, intervals, resample_counts
from server.evaluation import NO_VALUE, evaluate, modality_subsets, predict, score
from server.metrics import class_metrics, classification_metrics, rating_metrics
from server.records import Evaluation
from shared.batch import Samples
from shared.config import RunConfig
from shared.errors import RunError
from shared.schema import TaskKind

LABELS = ("calm", "cross", "glad")


def run_of(*modalities: str, rating: bool = False, groups: tuple[str, ...] = ()) -> RunConfig:
    task = {"task": "rating", "rating_range": (-3.0, 3.0)} if rating else {"task": "single-label", "labels": LABELS}
    return RunConfig.model_validate(
        {
            "name": "toy",
            "seed": 0,
            "data": {
                **task,
                "modalities": {name: {"kind": "features", "width": 3} for name in modalities},
                "groups": groups,
            },
            "model": {
                "embedding_width": 4,
                "encoders": {name: {"name": "linear"} for name in modalities},
                "fusion": {"name": "mean"},
            },
            "training": {"optimizer": "sgd", "learning_rate": 0.1, "batch_size": 4, "local_steps": 1},
            "privacy": "none",
            "federation": {"rounds": 1},
        }
    )


class Sum(nn.Module):
    """Adds up the inputs that are present; its outputs are known without training."""

    def __init__(self, modalities: tuple[str, ...], *, width: int = 3) -> None:
        super().__init__()
        self.modalities, self.width = modalities, width
        self.dropout = nn.Dropout(0.5)
        self.seen: list[int] = []

    def forward(self, inputs: dict[str, Tensor], present: Tensor) -> Tensor:
        self.seen.append(len(present))
        columns = [self.modalities.index(name) for name in inputs]
        stacked = torch.stack(
            [inputs[name] * present[:, [column]] for name, column in zip(inputs, columns, strict=True)]
        )
        outputs: Tensor = self.dropout(stacked.sum(dim=0))[:, : self.width]
        return outputs


def samples_of(
    num_rows: int,
    *,
    modalities: tuple[str, ...] = ("image", "text"),
    rating: bool = False,
    subjects: tuple[str, ...] | None = None,
    groups: dict[str, tuple[str, ...]] | None = None,
    seed: int = 0,
) -> Samples:
    generator = torch.Generator().manual_seed(seed)
    targets = (
        torch.randn(num_rows, generator=generator) if rating else torch.randint(0, 3, (num_rows,), generator=generator)
    )
    signal = targets[:, None].expand(-1, 3) if rating else nn.functional.one_hot(targets, 3).float()
    return Samples(
        inputs={name: signal + torch.randn(num_rows, 3, generator=generator) for name in modalities},
        present=torch.ones(num_rows, len(modalities), dtype=torch.bool),
        targets=targets,
        subjects=subjects or tuple(map(str, range(num_rows))),
        groups=groups or {},
    )


def evaluated(samples: Samples, *, run: RunConfig, resamples: int = 200, subsets: bool = True) -> Evaluation:
    width = 1 if run.data.task == "rating" else 3
    model = Sum(run.modalities, width=width)
    return evaluate(model, samples, run=run, part="test", bootstrap_samples=resamples, subsets=subsets, seed=1)


def intervals_of(
    outputs: Tensor, targets: Tensor, *, subjects: tuple[str, ...], resamples: int, seed: int
) -> tuple[dict[str, Interval], dict[str, list[Interval | None]]]:
    """Of a rating where targets are no whole numbers."""
    kind: TaskKind = "rating" if targets.is_floating_point() else "single-label"
    return intervals(drawn(outputs, targets, kind=kind, subjects=subjects, resamples=resamples, seed=seed))


def calibration_by_scikit_learn(probabilities: Tensor, truth: NDArray[np.int64]) -> float:
    confidence, predicted = (each.numpy() for each in probabilities.max(dim=1))
    right, sure = calibration_curve(predicted == truth, confidence, n_bins=15)
    rows = np.histogram(confidence, bins=np.linspace(0, 1, 16))[0]
    return float((np.abs(right - sure) * rows[rows > 0]).sum() / len(truth))


def test_overall_scores_are_those_of_scikit_learn() -> None:
    samples, run = samples_of(300), run_of("image", "text")
    overall = evaluated(samples, run=run).overall
    logits = sum(samples.inputs.values(), torch.zeros(300, 3))
    truth, predicted = samples.targets.numpy(), logits.argmax(dim=1).numpy()

    values = {name: estimate.value for name, estimate in overall.metrics.items()}
    assert values["accuracy"] == pytest.approx(sk.accuracy_score(truth, predicted))
    assert values["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(truth, predicted))
    assert values["macro_precision"] == pytest.approx(sk.precision_score(truth, predicted, average="macro"))
    assert values["weighted_recall"] == pytest.approx(sk.recall_score(truth, predicted, average="weighted"))
    assert values["macro_f1"] == pytest.approx(sk.f1_score(truth, predicted, average="macro"))
    assert values["loss"] == pytest.approx(sk.log_loss(truth, logits.softmax(dim=1).numpy()), rel=1e-5)
    assert values["calibration_error"] == pytest.approx(calibration_by_scikit_learn(logits.softmax(dim=1), truth))
    assert overall.confusion == tuple(map(tuple, sk.confusion_matrix(truth, predicted).tolist()))
    assert [scores.support for scores in overall.classes] == np.bincount(truth).tolist()
    assert overall.classes[1].f1.value == pytest.approx(sk.f1_score(truth, predicted, average=None)[1])
    assert set(values) == {
        *("accuracy", "balanced_accuracy", "calibration_error", "loss"),
        *(f"{average}_{name}" for average in ("macro", "weighted") for name in ("precision", "recall", "f1")),
    }


def test_every_metric_and_every_class_has_an_interval_around_it() -> None:
    overall = evaluated(samples_of(300), run=run_of("image", "text")).overall
    estimates = [
        *overall.metrics.values(),
        *(value for scores in overall.classes for value in (scores.precision, scores.recall, scores.f1)),
    ]
    for estimate in estimates:
        assert estimate.low is not None
        assert estimate.high is not None
        assert estimate.low <= estimate.value <= estimate.high
        assert estimate.low < estimate.high


def test_the_metrics_of_counted_resamples_are_those_of_scikit_learn_on_the_drawn_rows() -> None:
    """Two ways, one number: ours from counts, scikit-learn's from rows that are really repeated."""
    samples = samples_of(40, modalities=("image",), subjects=tuple(f"p{row % 7}" for row in range(40)))
    logits, resamples = samples.inputs["image"], 60
    overall, by_class = intervals_of(logits, samples.targets, subjects=samples.subjects, resamples=resamples, seed=5)
    seen: dict[str, list[float]] = {}
    for counts in resample_counts(samples.subjects, resamples=resamples, seed=5):
        for row in counts:
            rows = torch.from_numpy(np.repeat(np.arange(40), row))
            found = classification_metrics(logits[rows], samples.targets[rows], calibration=True)
            found["f1 of class 0"] = float(class_metrics(logits[rows], samples.targets[rows])[0][2, 0])
            for name, value in found.items():
                seen.setdefault(name, []).append(value)

    low, high = np.quantile(seen.pop("f1 of class 0"), (0.025, 0.975))
    assert by_class["f1"][0] == pytest.approx((low, high), abs=1e-6)
    assert set(overall) == set(seen)
    for name, values in seen.items():
        assert overall[name] == pytest.approx(tuple(np.quantile(values, (0.025, 0.975))), abs=1e-6), name


def test_a_resample_draws_whole_subjects() -> None:
    subjects = ("a", "b", "a", "c", "a", "b")
    for counts in resample_counts(subjects, resamples=100, seed=0):
        for row in counts:
            assert row[0] == row[2] == row[4]
            assert row[1] == row[5]
            assert row[0] + row[1] + row[3] == 3


def test_intervals_are_wider_when_rows_share_subjects() -> None:
    """Forty rows that say the same are worth one row, not forty: accuracy's interval must widen several times."""
    generator = torch.Generator().manual_seed(3)
    right = (torch.rand(25, generator=generator) < 0.7).repeat_interleave(40)
    targets = torch.zeros(1000, dtype=torch.int64)
    logits = nn.functional.one_hot((~right).long(), 3).float()
    widths = []
    for subjects in (tuple(map(str, range(1000))), tuple(f"p{row // 40}" for row in range(1000))):
        low, high = intervals_of(logits, targets, subjects=subjects, resamples=500, seed=0)[0]["accuracy"]
        widths.append(high - low)
    assert 4 < widths[1] / widths[0] < 9  # the square root of 40 is 6.3


def test_one_subject_gives_no_interval_because_nothing_is_known_about_others() -> None:
    samples = samples_of(30, subjects=("p1",) * 30)
    overall = evaluated(samples, run=run_of("image", "text")).overall
    assert overall.metrics["accuracy"].low is None
    assert overall.classes[0].f1.low is None


def test_no_resamples_give_numbers_without_intervals() -> None:
    overall = evaluated(samples_of(30), run=run_of("image", "text"), resamples=0).overall
    assert overall.metrics
    assert all(estimate.low is None and estimate.high is None for estimate in overall.metrics.values())


def test_the_same_seed_gives_the_same_intervals() -> None:
    samples, run = samples_of(50), run_of("image", "text")
    assert evaluated(samples, run=run) == evaluated(samples, run=run)


def test_ratings_have_errors_and_correlations_of_scikit_learn_and_scipy() -> None:
    samples, run = samples_of(200, rating=True), run_of("image", "text", rating=True)
    overall = evaluated(samples, run=run).overall
    predicted = sum(samples.inputs.values(), torch.zeros(200, 3))[:, 0].double().numpy()
    truth = samples.targets.double().numpy()
    values = {name: estimate.value for name, estimate in overall.metrics.items()}
    assert values == pytest.approx(
        {
            "mae": sk.mean_absolute_error(truth, predicted),
            "rmse": sk.root_mean_squared_error(truth, predicted),
            "loss": sk.mean_squared_error(truth, predicted),
            "pearson": stats.pearsonr(truth, predicted).statistic,
            "spearman": stats.spearmanr(truth, predicted).statistic,
        }
    )
    for estimate in overall.metrics.values():
        assert estimate.low is not None
        assert estimate.high is not None
        assert estimate.low < estimate.value < estimate.high
    assert overall.classes == ()
    assert overall.confusion == ()


def test_a_correlation_of_a_constant_is_left_out_without_a_warning() -> None:
    outputs = torch.ones(10, 1)
    assert set(rating_metrics(outputs, torch.arange(10.0))) == {"mae", "rmse", "loss"}
    nearly = outputs + torch.arange(10)[:, None] * 1e-7
    assert set(rating_metrics(nearly, torch.arange(10.0))) == {"mae", "rmse", "loss"}
    subjects = tuple(map(str, range(10)))
    assert set(intervals_of(nearly, torch.arange(10.0), subjects=subjects, resamples=50, seed=0)[0]) == {
        "mae",
        "rmse",
        "loss",
    }


@pytest.mark.parametrize("digits", [0, 6])
def test_the_rating_metrics_of_resamples_are_those_of_the_libraries_on_the_drawn_rows(digits: int) -> None:
    """Rounded to whole numbers, many are equal and share a rank."""
    samples = samples_of(40, rating=True, modalities=("image",), subjects=tuple(f"p{row % 7}" for row in range(40)))
    outputs, targets = samples.inputs["image"][:, :1].round(decimals=digits), samples.targets.round(decimals=digits)
    found, _ = intervals_of(outputs, targets, subjects=samples.subjects, resamples=60, seed=5)
    seen: dict[str, list[float]] = {}
    for counts in resample_counts(samples.subjects, resamples=60, seed=5):
        for row in counts:
            rows = torch.from_numpy(np.repeat(np.arange(40), row))
            for name, value in rating_metrics(outputs[rows], targets[rows]).items():
                seen.setdefault(name, []).append(value)
    assert set(found) == set(seen)
    for name, values in seen.items():
        assert found[name] == pytest.approx(tuple(np.quantile(values, (0.025, 0.975))), abs=1e-9), name


@pytest.mark.parametrize("rating", [False, True])
def test_a_single_row_is_scored(rating: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        overall = evaluated(samples_of(1, rating=rating), run=run_of("image", "text", rating=rating)).overall
    assert overall.num_samples == 1
    assert ("mae" if rating else "accuracy") in overall.metrics


def test_rows_of_a_single_class_are_scored() -> None:
    samples = samples_of(20)
    samples = Samples(
        inputs=samples.inputs,
        present=samples.present,
        targets=torch.zeros(20, dtype=torch.int64),
        subjects=samples.subjects,
        groups={},
    )
    overall = evaluated(samples, run=run_of("image", "text")).overall
    assert [scores.support for scores in overall.classes] == [20, 0, 0]
    assert overall.metrics["balanced_accuracy"].value == overall.metrics["accuracy"].value


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("rating", [False, True])
def test_a_diverged_model_gets_only_the_metrics_that_are_defined(bad: float, rating: bool) -> None:
    run = run_of("image", "text", rating=rating)
    samples = samples_of(12, rating=rating)
    samples.inputs["image"][3] = bad
    overall = evaluated(samples, run=run).overall
    assert set(overall.metrics) & {"loss", "calibration_error", "mae"} == set()
    assert ("macro_f1" in overall.metrics) != rating


def test_no_samples_are_an_error_that_says_what_to_do() -> None:
    samples = samples_of(3).subset(torch.arange(0))
    with pytest.raises(RunError, match="give the server held-out rows"):
        score(Sum(("image", "text")), samples, run=run_of("image", "text"))


def test_every_subset_of_modalities_is_scored_on_the_samples_that_have_one_of_them() -> None:
    samples, run = samples_of(100, modalities=("image", "text", "voice")), run_of("image", "text", "voice")
    samples.present[:40, 2] = False
    samples.present[:10, 0] = False
    by_modalities = evaluated(samples, run=run, resamples=0).by_modalities

    sizes = {name: scores.num_samples for name, scores in by_modalities.items()}
    assert sizes == {
        **{"image": 90, "text": 100, "voice": 60},
        **{"image+text": 100, "image+voice": 90, "text+voice": 100, "image+text+voice": 100},
    }
    rows = samples.present[:, 2]
    expected = float((samples.inputs["voice"].argmax(dim=1) == samples.targets)[rows].double().mean())
    assert by_modalities["voice"].metrics["accuracy"].value == pytest.approx(expected)
    assert (
        by_modalities["image"].metrics["accuracy"].value < by_modalities["image+text+voice"].metrics["accuracy"].value
    )


def test_a_modality_that_no_sample_has_is_left_out() -> None:
    samples = samples_of(20)
    samples.present[:, 1] = False
    assert set(evaluated(samples, run=run_of("image", "text"), resamples=0).by_modalities) == {"image", "image+text"}


def test_more_than_four_modalities_are_scored_alone_all_but_one_and_together() -> None:
    names = ("a", "b", "c", "d", "e")
    assert len(list(modality_subsets(names[:4]))) == 15
    assert [len(subset) for subset in modality_subsets(names)] == [1] * 5 + [4] * 5 + [5]


def test_subsets_are_left_out_when_not_asked_for() -> None:
    assert evaluated(samples_of(20), run=run_of("image", "text"), resamples=0, subsets=False).by_modalities == {}


def test_each_group_is_scored_on_its_own_rows() -> None:
    languages = ("da",) * 30 + ("el",) * 50 + ("",) * 20
    samples, run = samples_of(100, groups={"language": languages}), run_of("image", "text", groups=("language",))
    groups = evaluated(samples, run=run).by_group["language"]

    assert {value: scores.num_samples for value, scores in groups.items()} == {NO_VALUE: 20, "da": 30, "el": 50}
    right = sum(samples.inputs.values(), torch.zeros(100, 3)).argmax(dim=1) == samples.targets
    assert groups["el"].metrics["accuracy"].value == pytest.approx(float(right[30:80].double().mean()))
    assert groups["el"].metrics["macro_f1"].low is not None


def test_the_round_score_is_the_overall_value_without_intervals() -> None:
    samples, run = samples_of(60), run_of("image", "text")
    quick, full = score(Sum(run.modalities), samples, run=run), evaluated(samples, run=run).overall
    assert quick.num_samples == full.num_samples
    assert all(estimate.low is None for estimate in quick.metrics.values())
    for name, estimate in quick.metrics.items():
        assert estimate.value == full.metrics[name].value


def test_prediction_is_batched_without_gradient_and_leaves_the_mode_as_it_was() -> None:
    samples, model = samples_of(600), Sum(("image", "text"))
    model.train()
    outputs = predict(model, samples)
    assert model.training
    assert not outputs.requires_grad
    assert max(model.seen) < 600
    assert sum(model.seen) == 600
    assert torch.equal(outputs, sum(samples.inputs.values(), torch.zeros(600, 3)))  # no dropout, rows in order
