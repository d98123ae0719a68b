"""Metrics: predictions and truth of some held-out rows become named numbers, each by a library's own function.

in        outputs [N, K] or [N, 1] of the model and targets [N], from evaluation.py
out       plain numbers by name, read by evaluation.py; bootstrap.py gives them their intervals
relies on scikit-learn (accuracy, precision, recall, F1, confusion, MAE, RMSE), scipy (correlations), torchmetrics
          (calibration error) and torch (loss); no formula here is ours
"""

import math

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray
from scipy import stats
from sklearn import metrics as sk
from torch import Tensor
from torch.nn import functional

CALIBRATION_BINS = 15
"""Guo et al. 2017, arXiv:1706.04599, section 3; the l1 norm is their expected calibration error."""


def classification_metrics(
    outputs: Float[Tensor, "N K"], targets: Int[Tensor, "N"], *, calibration: bool
) -> dict[str, float]:
    """Metrics over all classes; those that the rows do not define are left out.

    Macro averages run over the classes that occur in the truth or among the predictions of these rows, and count a
    class that is never predicted, or never true, as 0. Balanced accuracy is the mean recall over the true classes.

    Args:
        outputs: logits. Ones that are not finite (a run that diverged) still have a prediction but no loss.
        targets: class indices.
        calibration: also the calibration error, whose library takes seconds to import.
    """
    truth, predicted = targets.numpy(), predicted_classes(outputs).numpy()
    occurring = np.unique(truth)
    found = {
        "accuracy": float(sk.accuracy_score(truth, predicted)),
        "balanced_accuracy": float(
            sk.recall_score(truth, predicted, labels=occurring, average="macro", zero_division=0)
        ),
    }
    for average in ("macro", "weighted"):
        values = sk.precision_recall_fscore_support(truth, predicted, average=average, zero_division=0)
        names = (f"{average}_precision", f"{average}_recall", f"{average}_f1")
        found |= {name: float(value) for name, value in zip(names, values[:3], strict=True)}
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
        "mae": float(sk.mean_absolute_error(truth, predicted)),
        "rmse": float(sk.root_mean_squared_error(truth, predicted)),
        "loss": float(row_losses(outputs, targets).mean()),
    }
    if len(truth) >= 3 and not is_constant(truth) and not is_constant(predicted):
        found["pearson"] = float(stats.pearsonr(truth, predicted).statistic)
        found["spearman"] = float(stats.spearmanr(truth, predicted).statistic)
    return _finite(found)


def is_constant(values: NDArray[np.float64]) -> bool:
    """Whether [N] values differ by so little that a correlation with them would be one of rounding errors.

    scipy's own limit for its warning (1e-13 of the mean) is for float64; the ratings of a model are float32.
    """
    return bool(np.ptp(values) <= 1e-6 * max(1.0, float(np.abs(values).max())))


def class_metrics(
    outputs: Float[Tensor, "N K"], targets: Int[Tensor, "N"]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Precision, recall and F1 of every class against all others as [3, K], and how many rows it has as [K]."""
    labels = np.arange(outputs.shape[1])
    *values, support = sk.precision_recall_fscore_support(
        targets.numpy(), predicted_classes(outputs).numpy(), labels=labels, average=None, zero_division=0
    )
    return np.stack(values), np.asarray(support, dtype=np.int64)


def confusion_counts(outputs: Float[Tensor, "N K"], targets: Int[Tensor, "N"]) -> tuple[tuple[int, ...], ...]:
    """Counts by true class (rows) and predicted class (columns), K by K."""
    labels = np.arange(outputs.shape[1])
    counts = sk.confusion_matrix(targets.numpy(), predicted_classes(outputs).numpy(), labels=labels)
    return tuple(tuple(int(count) for count in row) for row in counts)


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
    from torchmetrics.functional.classification import multiclass_calibration_error

    return float(
        multiclass_calibration_error(
            probabilities, targets, num_classes=probabilities.shape[1], n_bins=CALIBRATION_BINS, validate_args=False
        )
    )


def _finite(found: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in found.items() if math.isfinite(value)}
