"""Bootstrap: how far each metric would move if other people had been in the held-out data.

in        outputs, targets and subjects of held-out rows, from scoring.py
out       95 % percentile intervals by metric name, and by class
relies on metrics.py and label_metrics.py for every value; here rows are only drawn and counted

Rows of one subject are not independent: windows of one person look alike. So subjects are drawn with replacement, each
with all its rows (the cluster bootstrap: Davison and Hinkley 1997, section 3.8). Where every row has a subject of its
own this is the ordinary bootstrap over rows. Drawing rows where subjects share them would give intervals that are too
narrow.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from server.label_metrics import label_draws
from server.metrics import (
    CONSTANT_SPREAD,
    calibration_gaps,
    count_metrics,
    predicted_classes,
    row_losses,
    shares,
)
from shared.schema import TaskKind

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


def drawn(
    outputs: Float[Tensor, "N K"],
    targets: Tensor,
    *,
    kind: TaskKind,
    subjects: tuple[str, ...],
    resamples: int,
    seed: int,
    rows: Int[Tensor, "B"] | None = None,
    in_full: bool = True,
) -> dict[str, NDArray[np.float64]]:
    """Metrics of every resample: [R], or [R, K] under precision, recall and f1; NaN where one has none.

    Args:
        subjects: of all rows of the part, the same for all tasks, so that their resamples are of the same people.
        rows: those of outputs and targets among them; None: all.
        in_full: also those that take long and no choice goes by: calibration errors and correlations.
    """
    if len(set(subjects)) < 2 or not resamples:
        return {}
    make: dict[TaskKind, Callable[..., dict[str, NDArray[np.float64]]]] = {
        "single-label": partial(class_draws, calibration=in_full),
        "multi-label": label_draws,
        "rating": partial(rating_draws, correlation=in_full),
    }
    found: dict[str, list[NDArray[np.float64]]] = defaultdict(list)
    for counts in resample_counts(subjects, resamples=resamples, seed=seed):
        own = counts if rows is None else counts[:, rows.numpy()]
        for name, values in make[kind](outputs, targets, counts=own).items():
            values[own.sum(axis=1) == 0] = np.nan
            found[name].append(values)
    return {name: np.concatenate(chunks) for name, chunks in found.items()}


def intervals(
    found: Mapping[str, NDArray[np.float64]],
) -> tuple[dict[str, Interval], dict[str, list[Interval | None]]]:
    """Of the metrics of `drawn`, and of precision, recall and f1 of each class; where too few define one, none."""
    overall = {
        name: interval for name, values in found.items() if values.ndim == 1 and (interval := interval_of(values))
    }
    by_class = {
        name: [interval_of(column) for column in values.T] for name, values in found.items() if values.ndim == 2
    }
    return overall, by_class


def class_draws(
    outputs: Float[Tensor, "N K"], targets: Int[Tensor, "N"], *, counts: Int[np.ndarray, "R N"], calibration: bool
) -> dict[str, NDArray[np.float64]]:
    """Metrics of `classification_metrics` of R resamples, and precision, recall and f1 of each class.

    All but the calibration error and the loss follow from how many rows of a resample are true, false, taken or missed
    for each class: the counts of all resamples become metrics at once. A class without a row in a resample has no score
    there and is left out of that resample.
    """
    num_classes = outputs.shape[1]
    truth_rows = functional.one_hot(targets, num_classes).float()
    taken_rows = functional.one_hot(predicted_classes(outputs), num_classes).float()
    weights = torch.from_numpy(counts).float()
    # float32 sums of whole numbers are exact up to 16 million rows
    true_positive = (weights @ (truth_rows * taken_rows)).double().numpy()
    held, taken = (weights @ truth_rows).double().numpy(), (weights @ taken_rows).double().numpy()
    found = {
        name: values if values.ndim == 1 else np.where(held > 0, values, np.nan)
        for name, values in count_metrics(true_positive, held, taken).items()
    }
    if bool(outputs.isfinite().all()):
        found["loss"] = _averages(row_losses(outputs, targets).numpy(), counts=counts)
        if calibration:
            gaps = calibration_gaps(outputs.softmax(dim=1), targets)
            found["calibration_error"] = _calibration_errors(gaps, counts=counts)
    return found


def rating_draws(
    outputs: Float[Tensor, "N 1"], targets: Float[Tensor, "N"], *, counts: Int[np.ndarray, "R N"], correlation: bool
) -> dict[str, NDArray[np.float64]]:
    """Metrics of `rating_metrics` of R resamples; none of outputs that are not finite."""
    if not bool(outputs.isfinite().all()):
        return {}
    predicted, truth = outputs[:, 0].double(), targets.double()
    distances = functional.l1_loss(predicted, truth, reduction="none").numpy()
    found = {
        "mae": _averages(distances, counts=counts),
        "loss": _averages(row_losses(outputs, targets).numpy(), counts=counts),
    }
    found["rmse"] = np.sqrt(found["loss"])
    if not correlation:
        return found
    both = truth.numpy(), predicted.numpy()
    defined = counts.sum(axis=1) >= 3
    for values in both:
        defined &= ~_constant(values, counts=counts)
    by_value = [np.broadcast_to(values, counts.shape) for values in both]
    by_rank = [_ranks(values, counts=counts) for values in both]
    for name, (first, second) in (("pearson", by_value), ("spearman", by_rank)):
        found[name] = np.where(defined, _correlations(first, second, counts=counts), math.nan)
    return found


def _calibration_errors(gaps: NDArray[np.float64], *, counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """The calibration error of every resample: gaps [N, bins], counts [R, N] -> [R].

    That is the mean over rows of how far each bin's confidence lies from its accuracy, so sums over bins suffice; one
    call for each of a thousand resamples took most of a run's last evaluation.
    """
    return shares(np.abs(counts @ gaps).sum(axis=1), counts.sum(axis=1, dtype=np.float64))


def _averages(values: NDArray[np.float64], *, counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Mean over the rows of each resample: values [N], counts [R, N] -> [R]."""
    return shares(counts @ values, counts.sum(axis=1, dtype=np.float64))


def _constant(values: NDArray[np.float64], *, counts: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which resamples have no spread: `is_constant` of the drawn ones of values [N], for each of counts [R, N]."""
    most = np.where(counts > 0, values, -np.inf).max(axis=1, initial=-np.inf)
    least = np.where(counts > 0, values, np.inf).min(axis=1, initial=np.inf)
    largest = np.maximum(np.abs(most), np.abs(least))
    constant: NDArray[np.bool_] = most - least <= CONSTANT_SPREAD * np.maximum(1.0, largest)
    return constant


def _ranks(values: NDArray[np.float64], *, counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """The rank of each row among the drawn ones, the mean of its equals': values [N], counts [R, N] -> [R, N]."""
    _, places, sizes = np.unique(values, return_inverse=True, return_counts=True)
    # how many rows of each resample have each value
    held = np.add.reduceat(counts[:, np.argsort(places)], sizes.cumsum() - sizes, axis=1)
    return (held.cumsum(axis=1) - (held - 1) / 2)[:, places]


def _correlations(
    first: NDArray[np.float64], second: NDArray[np.float64], *, counts: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Pearson's of each resample: two values a row [R, N], which counts [R, N] times -> [R]. Without spread it means
    nothing, and the caller leaves it out.

    All resamples at once: one call for each took nine tenths of the time of a small run that rates.
    """
    shares_of_rows = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    x, y = (each - (shares_of_rows * each).sum(axis=1, keepdims=True) for each in (first, second))
    spread = np.sqrt((shares_of_rows * x * x).sum(axis=1) * (shares_of_rows * y * y).sum(axis=1))
    return np.clip(shares((shares_of_rows * x * y).sum(axis=1), spread), -1.0, 1.0)


def interval_of(values: NDArray[np.float64]) -> Interval | None:
    """The middle 95 % of the resamples in which the metric is defined; None where that is less than half of them."""
    defined = values[np.isfinite(values)]
    if len(defined) < max(2, len(values) / 2):
        return None
    low, high = np.quantile(defined, (0.025, 0.975))
    return float(low), float(high)
