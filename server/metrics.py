"""Metrics: predictions and truth of some held-out rows become named numbers.

in        outputs [N, K] or [N, 1] of the model and targets [N], from evaluation.py
out       plain numbers by name, read by evaluation.py; bootstrap.py gives them their intervals
relies on counts by class alone for all but loss and calibration error: one formula for rows and resamples of them

scikit-learn, by which every one of them is tested, takes seconds to import, which is longer than a small run trains.
"""

import math

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

CALIBRATION_BINS = 15
"""Guo et al. 2017, arXiv:1706.04599, section 3; the l1 norm is their expected calibration error."""
CONSTANT_SPREAD = 1e-6
"""Ratings that differ by no more, in units of the largest, count as one."""


def classification_metrics(
    outputs: Float[Tensor, "N K"], targets: Int[Tensor, "N"], *, calibration: bool
) -> dict[str, float]:
    """Metrics over all classes; those that the rows do not define are left out.

    Macro averages run over the classes that occur in the truth or among the predictions of these rows, and count a
    class that is never predicted, or never true, as 0. Balanced accuracy is the mean recall over the true classes.

    Args:
        outputs: logits. Ones that are not finite (a run that diverged) still have a prediction but no loss.
        targets: class indices.
        calibration: also the calibration error.
    """
    counts = class_counts(outputs, targets)
    found = {name: float(values[0]) for name, values in count_metrics(*counts).items() if values.ndim == 1}
    if bool(outputs.isfinite().all()):
        found["loss"] = float(row_losses(outputs, targets).mean())
        if calibration:
            found["calibration_error"] = calibration_error(outputs.softmax(dim=1), targets)
    return _finite(found)


def rating_metrics(outputs: Float[Tensor, "N 1"], targets: Float[Tensor, "N"]) -> dict[str, float]:
    """Errors and correlations of ratings, in the data's own scale; a correlation of a constant is left out."""
    if not bool(outputs.isfinite().all()):
        return {}
    predicted, truth = outputs[:, 0].double().numpy(), targets.double().numpy()
    found = {
        "mae": float(np.abs(truth - predicted).mean()),
        "rmse": math.sqrt(float(np.square(truth - predicted).mean())),
        "loss": float(row_losses(outputs, targets).mean()),
    }
    if len(truth) >= 3 and not is_constant(truth) and not is_constant(predicted):
        found["pearson"], found["spearman"] = correlations(truth, predicted)
    return _finite(found)


def is_constant(values: NDArray[np.float64]) -> bool:
    """Whether [N] values differ by so little that a correlation with them would be one of rounding errors.

    scipy's own limit for its warning (1e-13 of the mean) is for float64; the ratings of a model are float32.
    """
    return bool(np.ptp(values) <= CONSTANT_SPREAD * max(1.0, float(np.abs(values).max())))


def correlations(truth: NDArray[np.float64], predicted: NDArray[np.float64]) -> tuple[float, float]:
    """Pearson's and Spearman's, of [N] values that are not constant."""
    # of all of scipy.stats this one function, and for ratings alone: its import takes a second
    from scipy.stats import rankdata

    ranks = rankdata(truth), rankdata(predicted)
    return float(np.corrcoef(truth, predicted)[0, 1]), float(np.corrcoef(*ranks)[0, 1])


def class_metrics(
    outputs: Float[Tensor, "N K"], targets: Int[Tensor, "N"]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Precision, recall and F1 of every class against all others as [3, K], and how many rows it has as [K]."""
    hits, truth, taken = class_counts(outputs, targets)
    found = count_metrics(hits, truth, taken)
    return np.concatenate([found[name] for name in ("precision", "recall", "f1")]), truth[0].astype(np.int64)


def count_metrics(
    hits: Float[np.ndarray, "R K"], truth: Float[np.ndarray, "R K"], taken: Float[np.ndarray, "R K"]
) -> dict[str, NDArray[np.float64]]:
    """Metrics of R sets of rows from their counts by class: [R], or [R, K] under precision, recall and f1.

    Args:
        hits: rows of the class that were given it.
        truth: rows of the class.
        taken: rows that were given the class.
    """
    total = truth.sum(axis=1)
    by_class = {"precision": shares(hits, taken), "recall": shares(hits, truth), "f1": shares(2 * hits, truth + taken)}
    found = {
        "accuracy": shares(hits.sum(axis=1), total),
        "balanced_accuracy": shares(by_class["recall"].sum(axis=1), (truth > 0).sum(axis=1, dtype=np.float64)),
    }
    for name, values in by_class.items():
        found[f"macro_{name}"] = shares(values.sum(axis=1), (truth + taken > 0).sum(axis=1, dtype=np.float64))
        found[f"weighted_{name}"] = shares((values * truth).sum(axis=1), total)
        found[name] = values
    return found


def shares(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    """Part over whole; 0 where there is nothing to share."""
    return np.divide(part, whole, out=np.zeros_like(whole), where=whole > 0)


def class_counts(
    outputs: Float[Tensor, "N K"], targets: Int[Tensor, "N"]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Of each class its rows that were given it, its rows, and the rows that were given it; each [1, K]."""
    counts = np.array(confusion_counts(outputs, targets), dtype=np.float64)
    return counts.diagonal()[None], counts.sum(axis=1)[None], counts.sum(axis=0)[None]


def confusion_counts(outputs: Float[Tensor, "N K"], targets: Int[Tensor, "N"]) -> tuple[tuple[int, ...], ...]:
    """Counts by true class (rows) and predicted class (columns), K by K."""
    num_classes = outputs.shape[1]
    pairs = targets.long() * num_classes + predicted_classes(outputs)
    counts = torch.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)
    return tuple(tuple(int(count) for count in row) for row in counts.tolist())


def predicted_classes(outputs: Float[Tensor, "N K"]) -> Int[Tensor, "N"]:
    """The class with the highest logit; NaN counts as the lowest of all, so a diverged model predicts something."""
    return outputs.nan_to_num(nan=-math.inf, posinf=math.inf, neginf=-math.inf).argmax(dim=1)


def row_losses(outputs: Float[Tensor, "N K"], targets: Tensor) -> Float[Tensor, "N"]:
    """Cross-entropy in nats of each row for classes, squared error for ratings."""
    if targets.is_floating_point():
        return functional.mse_loss(outputs[:, 0].double(), targets.double(), reduction="none")
    return functional.cross_entropy(outputs.double(), targets, reduction="none")


def calibration_error(probabilities: Float[Tensor, "N K"], targets: Int[Tensor, "N"]) -> float:
    """Expected calibration error in [0, 1]: the gap between confidence and accuracy, averaged over 15 bins."""
    return float(np.abs(calibration_gaps(probabilities, targets).sum(axis=0)).sum()) / len(targets)


def calibration_gaps(probabilities: Float[Tensor, "N K"], targets: Int[Tensor, "N"]) -> NDArray[np.float64]:
    """For each row [N, bins], in the bin of its confidence: 1 or 0 for right or wrong, minus that confidence."""
    confidence, predicted = probabilities.max(dim=1)
    edges = torch.linspace(0, 1, CALIBRATION_BINS + 1, dtype=confidence.dtype)
    bins = (torch.bucketize(confidence, edges, right=True) - 1).clamp(0, CALIBRATION_BINS - 1)
    gaps = (predicted == targets).double() - confidence.double()
    return (functional.one_hot(bins, CALIBRATION_BINS).double() * gaps[:, None]).numpy()


def _finite(found: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in found.items() if math.isfinite(value)}
