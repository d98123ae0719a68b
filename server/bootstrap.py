"""Bootstrap: how far each metric would move if other people had been in the held-out data.

in        outputs, targets and subjects of held-out rows, from evaluation.py
out       95 % percentile intervals by metric name, and by class
relies on metrics.py for every value; here rows are only drawn and counted

Rows of one subject are not independent: windows of one person look alike. So subjects are drawn with replacement, each
with all its rows (the cluster bootstrap: Davison and Hinkley 1997, section 3.8). Where every row has a subject of its
own this is the ordinary bootstrap over rows. Drawing rows where subjects share them would give intervals that are too
narrow.
"""

import math
from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from server.metrics import calibration_gaps, correlations, count_metrics, is_constant, predicted_classes, row_losses

Interval = tuple[float, float]
CHUNK = 64
"""resamples at a time: bounds memory to CHUNK x N counts"""


def resample_counts(subjects: tuple[str, ...], *, resamples: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """How often each row is in each resample, in chunks of [up to CHUNK, N]; each draws as many subjects as exist."""
    generator = np.random.default_rng(seed)
    _, subject_of = np.unique(np.array(subjects, dtype=object).astype(str), return_inverse=True)
    num_subjects = int(subject_of.max()) + 1
    for start in range(0, resamples, CHUNK):
        drawn = generator.integers(0, num_subjects, (min(CHUNK, resamples - start), num_subjects))
        counts = np.stack([np.bincount(row, minlength=num_subjects) for row in drawn])
        yield counts[:, subject_of]


def classification_intervals(
    outputs: Float[Tensor, "N K"],
    targets: Int[Tensor, "N"],
    *,
    subjects: tuple[str, ...],
    resamples: int,
    seed: int,
) -> tuple[dict[str, Interval], dict[str, list[Interval | None]]]:
    """Intervals of the metrics of `classification_metrics`, and of precision, recall and f1 of each class.

    All but the calibration error and the loss follow from how many rows of a resample are true, false, taken or missed
    for each class: the counts of all resamples become metrics at once. A class without a row in a resample has no score
    there and is left out of that resample.
    """
    if len(set(subjects)) < 2 or not resamples:
        return {}, {}
    num_classes = outputs.shape[1]
    predicted = predicted_classes(outputs)
    truth_rows = functional.one_hot(targets, num_classes).float()
    taken_rows = functional.one_hot(predicted, num_classes).float()
    finite = bool(outputs.isfinite().all())
    losses, gaps = row_losses(outputs, targets), calibration_gaps(outputs.softmax(dim=1), targets)
    drawn: dict[str, list[NDArray[np.float64]]] = defaultdict(list)
    for counts in resample_counts(subjects, resamples=resamples, seed=seed):
        weights = torch.from_numpy(counts)
        # float32 sums of whole numbers are exact up to 16 million rows
        true_positive = weights.float() @ (truth_rows * taken_rows)
        truth, taken = weights.float() @ truth_rows, weights.float() @ taken_rows
        held = truth.double().numpy()
        for name, values in count_metrics(true_positive.double().numpy(), held, taken.double().numpy()).items():
            drawn[name].append(values if values.ndim == 1 else np.where(held > 0, values, np.nan))
        if finite:
            drawn["loss"].append(_averages(losses.numpy(), counts=counts))
            drawn["calibration_error"].append(_calibration_errors(gaps, counts=counts))
    merged = {name: np.concatenate(chunks) for name, chunks in drawn.items()}
    overall = {
        name: interval for name, values in merged.items() if values.ndim == 1 and (interval := _interval(values))
    }
    by_class = {name: [_interval(column) for column in values.T] for name, values in merged.items() if values.ndim == 2}
    return overall, by_class


def rating_intervals(
    outputs: Float[Tensor, "N 1"],
    targets: Float[Tensor, "N"],
    *,
    subjects: tuple[str, ...],
    resamples: int,
    seed: int,
) -> dict[str, Interval]:
    """Intervals of the metrics of `rating_metrics`.

    The errors are averages over the rows of a resample, whose errors are computed once.
    """
    if len(set(subjects)) < 2 or not resamples or not bool(outputs.isfinite().all()):
        return {}
    predicted, truth = outputs[:, 0].double(), targets.double()
    squares = row_losses(outputs, targets).numpy()
    distances = functional.l1_loss(predicted, truth, reduction="none").numpy()
    drawn: dict[str, list[NDArray[np.float64]]] = defaultdict(list)
    for counts in resample_counts(subjects, resamples=resamples, seed=seed):
        drawn["mae"].append(_averages(distances, counts=counts))
        drawn["loss"].append(_averages(squares, counts=counts))
        drawn["rmse"].append(np.sqrt(drawn["loss"][-1]))
        pairs = [_correlations(truth.numpy()[rows], predicted.numpy()[rows]) for rows in _rows(counts)]
        drawn["pearson"].append(np.array([pearson for pearson, _ in pairs]))
        drawn["spearman"].append(np.array([spearman for _, spearman in pairs]))
    merged = {name: np.concatenate(chunks) for name, chunks in drawn.items()}
    return {name: found for name, values in merged.items() if (found := _interval(values))}


def _calibration_errors(gaps: NDArray[np.float64], *, counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """The calibration error of every resample: gaps [N, bins], counts [R, N] -> [R].

    That is the mean over rows of how far each bin's confidence lies from its accuracy, so sums over bins suffice; one
    call for each of a thousand resamples took most of a run's last evaluation.
    """
    errors: NDArray[np.float64] = np.abs(counts @ gaps).sum(axis=1) / counts.sum(axis=1)
    return errors


def _averages(values: NDArray[np.float64], *, counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Mean over the rows of each resample: values [N], counts [R, N] -> [R]."""
    averages: NDArray[np.float64] = counts @ values / counts.sum(axis=1)
    return averages


def _correlations(truth: NDArray[np.float64], predicted: NDArray[np.float64]) -> tuple[float, float]:
    if len(truth) < 3 or is_constant(truth) or is_constant(predicted):
        return math.nan, math.nan
    return correlations(truth, predicted)


def _rows(counts: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    return (np.repeat(np.arange(counts.shape[1]), row) for row in counts)


def _interval(values: NDArray[np.float64]) -> Interval | None:
    """The middle 95 % of the resamples in which the metric is defined; None where that is less than half of them."""
    defined = values[np.isfinite(values)]
    if len(defined) < max(2, len(values) / 2):
        return None
    low, high = np.quantile(defined, (0.025, 0.975))
    return float(low), float(high)
