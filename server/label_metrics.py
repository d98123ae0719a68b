"""Label metrics: predictions and truth of a multi-label task become named numbers, for rows and for resamples of them.

in        logits [N, K] and targets [N, K] of 0 and 1, from scoring.py
out       plain numbers by name; bootstrap.py gives them their intervals
relies on a label being given where its probability is at least one half, and on counts by label, values by row and
          sums along each label's ranking alone: one formula for the rows themselves and for any resample

A row is right about a label that it neither has nor is given. So a row without any label that is given none is right:
its F1, precision and recall are 1, as its subset accuracy is; scikit-learn leaves that choice to `zero_division`.
"""

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from server.metrics import shares

_MOST_PAIRS = 4_000_000
"""numbers held at once while labels are compared in pairs"""


def label_metrics(outputs: Float[Tensor, "N K"], targets: Float[Tensor, "N K"]) -> dict[str, float]:
    """Metrics over all labels; those that the rows, or outputs that are not finite, do not define are left out.

    Macro averages run over the labels that occur in the truth or among the predictions of these rows; the mean average
    precision over those that some row has.
    """
    counts = np.ones((1, len(targets)), dtype=np.int64)
    found = label_draws(outputs, targets, counts=counts)
    return {name: float(values[0]) for name, values in found.items() if values.ndim == 1 and np.isfinite(values[0])}


def label_draws(
    outputs: Float[Tensor, "N K"], targets: Float[Tensor, "N K"], *, counts: Int[np.ndarray, "R N"]
) -> dict[str, NDArray[np.float64]]:
    """The metrics of R resamples, [R], and precision, recall and f1 of each label, [R, K]; NaN where not defined.

    Args:
        counts: how often each row is in each resample.
    """
    truth, taken = targets.double().numpy(), given_labels(outputs).double().numpy()
    weights = counts.astype(np.float64)
    held = weights @ truth
    found = count_metrics(weights @ (truth * taken), held, weights @ taken)
    for name in ("precision", "recall", "f1"):
        found[name] = np.where(held > 0, found[name], np.nan)
    total = weights.sum(axis=1)
    for name, values in row_values(outputs, targets).items():
        found[name] = shares(weights @ values, total)
    if bool(outputs.isfinite().all()):
        found["average_precision"] = _mean_average_precision(outputs, truth, weights=weights)
    for values in found.values():
        values[total == 0] = np.nan
    return found


def label_scores(
    outputs: Float[Tensor, "N K"], targets: Float[Tensor, "N K"]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Precision, recall and F1 of every label as [3, K], and how many rows have it as [K]."""
    truth, taken = targets.double().numpy(), given_labels(outputs).double().numpy()
    counts = [each.sum(axis=0)[None] for each in (truth * taken, truth, taken)]
    found = count_metrics(*counts)
    return np.concatenate([found[name] for name in ("precision", "recall", "f1")]), counts[1][0].astype(np.int64)


def given_labels(outputs: Float[Tensor, "N K"]) -> Tensor:
    """True where a label's probability is at least one half; a logit that is not a number gives none."""
    return outputs >= 0


def count_metrics(
    hits: Float[np.ndarray, "R K"], truth: Float[np.ndarray, "R K"], taken: Float[np.ndarray, "R K"]
) -> dict[str, NDArray[np.float64]]:
    """Macro and micro averages of R sets of rows, [R], and by label, [R, K], from their counts.

    Args:
        hits: rows that have the label and were given it.
        truth: rows that have it.
        taken: rows that were given it.
    """
    by_label = {"precision": shares(hits, taken), "recall": shares(hits, truth), "f1": shares(2 * hits, truth + taken)}
    sums = [each.sum(axis=1) for each in (hits, truth, taken)]
    found = {
        "micro_precision": shares(sums[0], sums[2]),
        "micro_recall": shares(sums[0], sums[1]),
        "micro_f1": shares(2 * sums[0], sums[1] + sums[2]),
    }
    for name, values in by_label.items():
        found[f"macro_{name}"] = shares(values.sum(axis=1), (truth + taken > 0).sum(axis=1, dtype=np.float64))
        found[name] = values
    return found


def row_values(outputs: Float[Tensor, "N K"], targets: Float[Tensor, "N K"]) -> dict[str, NDArray[np.float64]]:
    """Metrics that are means over rows, of each row [N]."""
    truth, taken = targets.double().numpy(), given_labels(outputs).double().numpy()
    hits, had, given = (each.sum(axis=1) for each in (truth * taken, truth, taken))
    is_empty = had + given == 0
    found = {
        "samples_precision": np.where(is_empty, 1.0, shares(hits, given)),
        "samples_recall": np.where(is_empty, 1.0, shares(hits, had)),
        "samples_f1": np.where(is_empty, 1.0, shares(2 * hits, had + given)),
        "subset_accuracy": (truth == taken).all(axis=1).astype(np.float64),
        "hamming_loss": (truth != taken).mean(axis=1),
    }
    if bool(outputs.isfinite().all()):
        found["ranking_precision"] = ranking_precisions(outputs, targets)
        costs = functional.binary_cross_entropy_with_logits(outputs.double(), targets.double(), reduction="none")
        found["loss"] = costs.mean(dim=1).numpy()
    return found


def ranking_precisions(outputs: Float[Tensor, "N K"], targets: Float[Tensor, "N K"]) -> NDArray[np.float64]:
    """Label ranking average precision of each row, 1 for a row with no label or with all.

    Source: Schapire and Singer 2000, Machine Learning 39, section 2, there for words; as scikit-learn has it.
    """
    num_labels = outputs.shape[1]
    found = []
    at_once = max(1, _MOST_PAIRS // num_labels**2)
    for scores, truth in zip(torch.split(outputs, at_once), torch.split(targets > 0, at_once), strict=True):
        not_below = scores[:, None, :] >= scores[:, :, None]
        share = (not_below & truth[:, None, :]).sum(dim=2) / not_below.sum(dim=2)
        num_true = truth.sum(dim=1)
        mean = (share.double() * truth).sum(dim=1) / num_true.clamp(min=1)
        found.append(mean.masked_fill((num_true == 0) | (num_true == num_labels), 1.0))
    return torch.cat(found).numpy()


def _mean_average_precision(
    outputs: Float[Tensor, "N K"], truth: Float[np.ndarray, "N K"], *, weights: Float[np.ndarray, "R N"]
) -> NDArray[np.float64]:
    """Over the labels that a resample has, [R]; NaN where it has none.

    Source: as scikit-learn's average_precision_score: the precision at each threshold, weighted by the gain in recall.
    """
    by_label = np.full((len(weights), truth.shape[1]), np.nan)
    scores = outputs.double().numpy()
    for label in range(truth.shape[1]):
        order = np.argsort(-scores[:, label], kind="stable")
        # rows of one score are above the threshold together
        ends = np.flatnonzero(np.append(np.diff(scores[order, label]) != 0, True))
        hits = np.cumsum(weights[:, order] * truth[order, label], axis=1)[:, ends]
        taken = np.cumsum(weights[:, order], axis=1)[:, ends]
        gains = np.diff(hits, axis=1, prepend=0.0)
        has_any = hits[:, -1] > 0
        by_label[has_any, label] = (gains * shares(hits, taken)).sum(axis=1)[has_any] / hits[has_any, -1]
    defined = np.isfinite(by_label)
    mean = shares(np.where(defined, by_label, 0.0).sum(axis=1), defined.sum(axis=1, dtype=np.float64))
    return np.where(defined.any(axis=1), mean, np.nan)
