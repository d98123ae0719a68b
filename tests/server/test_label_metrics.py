"""Metrics of many labels: scikit-learn's, on rows that are really repeated too, and defined for odd parts of data."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn import metrics as sk
from torch import Tensor

from server.bootstrap import drawn, intervals, resample_counts
from server.label_metrics import given_labels, label_metrics, label_scores, ranking_precisions


def made(rows: int, *, labels: int = 4, seed: int = 0, rounded: bool = False) -> tuple[Tensor, Tensor]:
    """Logits and truth that have to do with each other; rounded: with many equal logits."""
    draw = torch.Generator().manual_seed(seed)
    targets = (torch.rand(rows, labels, generator=draw) < 0.4).float()
    outputs = torch.randn(rows, labels, generator=draw) + 1.5 * (targets - 0.5)
    return (outputs * 2).round() / 2 if rounded else outputs, targets


def by_scikit_learn(outputs: Tensor, targets: Tensor) -> dict[str, float]:
    """All of them; rows with no label on either side count as right, which is ours to choose."""
    truth, taken = targets.numpy().astype(int), (outputs >= 0).numpy().astype(int)
    found: dict[str, float] = {}
    empty = (truth + taken).sum(axis=1) == 0
    for name in ("precision", "recall", "f1"):
        measure = getattr(sk, f"{name}_score")
        for average in ("micro", "macro"):
            found[f"{average}_{name}"] = float(measure(truth, taken, average=average, zero_division=0))
        some = measure(truth[~empty], taken[~empty], average="samples", zero_division=0) if (~empty).any() else 0.0
        found[f"samples_{name}"] = float(some * (~empty).mean() + empty.mean())
    found["subset_accuracy"] = float(sk.accuracy_score(truth, taken))
    found["hamming_loss"] = float(sk.hamming_loss(truth, taken))
    has = truth.any(axis=0)
    found["average_precision"] = float(sk.average_precision_score(truth[:, has], outputs.numpy()[:, has]))
    found["ranking_precision"] = float(sk.label_ranking_average_precision_score(truth, outputs.numpy()))
    losses = [
        sk.log_loss(truth[:, label], outputs[:, label].double().sigmoid().numpy(), labels=[0, 1])
        for label in range(truth.shape[1])
    ]
    found["loss"] = float(np.mean(losses))
    return found


@pytest.mark.parametrize("rounded", [False, True], ids=["all different", "ties"])
def test_scores_of_labels_are_those_of_scikit_learn(rounded: bool) -> None:
    outputs, targets = made(200, rounded=rounded)
    assert label_metrics(outputs, targets) == pytest.approx(by_scikit_learn(outputs, targets), rel=1e-5)
    values, support = label_scores(outputs, targets)
    truth, taken = targets.numpy().astype(int), (outputs >= 0).numpy().astype(int)
    assert support.tolist() == truth.sum(axis=0).tolist()
    expected = sk.precision_recall_fscore_support(truth, taken, average=None, zero_division=0)[:3]
    assert values == pytest.approx(np.array(expected))


def test_ties_are_judged_together() -> None:
    outputs, targets = torch.zeros(4, 2), torch.tensor([[1.0, 0], [0, 1], [0, 0], [1, 1]])
    found = label_metrics(outputs, targets)
    assert found["average_precision"] == pytest.approx(0.5)
    assert ranking_precisions(outputs, targets).tolist() == [0.5, 0.5, 1, 1]


def test_the_metrics_of_resamples_are_those_of_scikit_learn_on_the_drawn_rows() -> None:
    outputs, targets = made(40, labels=3, seed=2, rounded=True)
    subjects = tuple(f"p{row % 7}" for row in range(40))
    found = drawn(outputs, targets, kind="multi-label", subjects=subjects, resamples=30, seed=5)
    place = 0
    for counts in resample_counts(subjects, resamples=30, seed=5):
        for row in counts:
            rows = torch.from_numpy(np.repeat(np.arange(40), row))
            expected = by_scikit_learn(outputs[rows], targets[rows])
            assert {name: float(found[name][place]) for name in expected} == pytest.approx(expected, rel=1e-5)
            f1 = sk.f1_score(targets[rows].numpy(), (outputs[rows] >= 0).numpy(), average=None, zero_division=0)
            assert found["f1"][place] == pytest.approx(f1)
            place += 1
    assert place == 30
    overall, by_label = intervals(found)
    low, high = np.quantile(found["micro_f1"], (0.025, 0.975))
    assert overall["micro_f1"] == pytest.approx((low, high))
    assert len(by_label["recall"]) == 3


def test_a_row_without_labels_that_is_given_none_is_right() -> None:
    outputs, targets = torch.tensor([[-1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]]), torch.tensor([[0.0, 0], [0, 0], [1, 0]])
    found = label_metrics(outputs, targets)
    assert found["samples_f1"] == found["samples_precision"] == found["samples_recall"] == pytest.approx(1 / 3)
    assert found["subset_accuracy"] == pytest.approx(1 / 3)
    assert found["hamming_loss"] == pytest.approx(2 / 6)


def test_macro_averages_run_over_the_labels_that_occur() -> None:
    """Else a group that has no row of a rare label would be marked down for it."""
    outputs, targets = torch.tensor([[1.0, -1, -1], [1, -1, -1]]), torch.tensor([[1.0, 0, 0], [1, 0, 0]])
    assert label_metrics(outputs, targets)["macro_f1"] == 1
    missed = torch.tensor([[1.0, 0, 1], [1, 0, 0]])
    assert label_metrics(outputs, missed)["macro_f1"] == pytest.approx(0.5)


def test_no_label_in_any_row_has_no_average_precision() -> None:
    found = label_metrics(torch.randn(5, 3), torch.zeros(5, 3))
    assert "average_precision" not in found
    assert found["micro_f1"] == 0
    assert all(math.isfinite(value) for value in found.values())


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_diverged_model_gets_only_what_is_defined(bad: float) -> None:
    outputs, targets = made(12)
    outputs[3] = bad
    found = label_metrics(outputs, targets)
    assert set(found) & {"loss", "average_precision", "ranking_precision"} == set()
    assert "macro_f1" in found
    if math.isnan(bad):
        assert not bool(given_labels(outputs)[3].any())


def test_many_labels_are_compared_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    outputs, targets = made(50)
    whole: NDArray[np.float64] = ranking_precisions(outputs, targets)
    monkeypatch.setattr("server.label_metrics._MOST_PAIRS", 3 * 16)
    assert ranking_precisions(outputs, targets).tolist() == whole.tolist()
