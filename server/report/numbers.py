"""Numbers: how a report writes them, so that no digit claims more than is known.

in        numbers with units, from records.py
out       short texts for html.py, closing.py and compare.py
relies on epsilon and delta being rounded up, never down: a shown bound must still be a bound
"""

import math
from collections.abc import Iterable

from server.records import Estimate

METRIC_NAMES = {
    "mean_score": "Mean score",
    "macro_f1": "Macro-F1",
    "micro_f1": "Micro-F1",
    "samples_f1": "F1 by sample",
    "subset_accuracy": "All labels right",
    "hamming_loss": "Labels wrong",
    "average_precision": "Mean average precision",
    "ranking_precision": "Label ranking precision",
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "macro_precision": "Macro precision",
    "macro_recall": "Macro recall",
    "micro_precision": "Micro precision",
    "micro_recall": "Micro recall",
    "samples_precision": "Precision by sample",
    "samples_recall": "Recall by sample",
    "weighted_f1": "Weighted F1",
    "weighted_precision": "Weighted precision",
    "weighted_recall": "Weighted recall",
    "calibration_error": "Calibration error",
    "loss": "Loss",
    "recall_at_10": "Recall@10",
    "recall_at_5": "Recall@5",
    "recall_at_1": "Recall@1",
    "mrr": "Mean reciprocal rank",
    "ndcg_at_10": "nDCG@10",
    "median_rank": "Median rank",
    "closeness": "Closeness",
    "mae": "Mean absolute error",
    "rmse": "Root mean squared error",
    "pearson": "Pearson correlation",
    "spearman": "Spearman correlation",
}
"""in the order in which they are shown"""


def metric_name(name: str) -> str:
    """What a metric is called, one of several tasks as `task: Macro-F1`."""
    task, _, metric = name.rpartition("/")
    label = METRIC_NAMES.get(metric, metric)
    return f"{task.replace('_', ' ')}: {label}" if task else label


def in_order(names: Iterable[str]) -> list[str]:
    """Metrics as they are shown: those of the whole first, then task by task; names that are not known last."""
    found, order = list(dict.fromkeys(names)), list(METRIC_NAMES)
    tasks = list(dict.fromkeys(name.rpartition("/")[0] for name in sorted(found, key=lambda name: "/" in name)))

    def place(name: str) -> tuple[int, int]:
        task, _, metric = name.rpartition("/")
        return tasks.index(task), order.index(metric) if metric in METRIC_NAMES else len(order)

    return sorted(found, key=place)


_THREE_DECIMALS = 1e-3


def metric_text(value: float) -> str:
    """Three decimals; more would be noise in every data set that a report is about."""
    return "0.000" if abs(value) < _THREE_DECIMALS / 2 else f"{value:.3f}"


def interval_text(estimate: Estimate) -> str:
    """`0.71 to 0.78`, or nothing where there is no interval."""
    if estimate.low is None or estimate.high is None:
        return ""
    return f"{metric_text(estimate.low)} to {metric_text(estimate.high)}"


def estimate_text(estimate: Estimate | None) -> str:
    """`0.743 (0.712 to 0.781)`, or a dash."""
    if estimate is None:
        return "–"
    interval = interval_text(estimate)
    return f"{metric_text(estimate.value)} ({interval})" if interval else metric_text(estimate.value)


def epsilon_text(epsilon: float | None) -> str:
    """Two decimals, rounded up: 7.991 is shown as 8.00; below a tenth two digits that count, rounded up as well."""
    if epsilon is None:
        return "–"
    if 0 < epsilon < 0.1:
        unit = 10.0 ** (math.floor(math.log10(epsilon)) - 1)
        return f"{math.ceil(round(epsilon / unit, 6)) * unit:.2g}"
    # what float arithmetic adds to a number that has two decimals already must not push it up by a whole one
    return f"{math.ceil(round(epsilon * 100, 6)) / 100:.2f}"


def delta_text(delta: float) -> str:
    """`0.00001`, or with a power of ten where that would be hard to count."""
    return (
        f"{delta:.10f}".rstrip("0")
        if delta >= 1e-6 and f"{delta:.0e}" == f"{delta:.2e}".replace(".00", "")
        else f"{delta:.2g}"
    )


def duration_text(seconds: float) -> str:
    """`3 h 12 min`, `2 min 31 s`, `4.2 s`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def bytes_text(count: int) -> str:
    """`812 B`, `3.4 kB`, `1.2 GB`, in powers of a thousand."""
    if count < 1000:
        return f"{count} B"
    size = float(count)
    for unit in ("kB", "MB", "GB"):
        size /= 1000
        if size < 999.5:
            return f"{size:.0f} {unit}" if size >= 99.95 else f"{size:.1f} {unit}"
    return f"{size / 1000:.1f} TB"


def count_text(count: int, noun: str, plural: str | None = None) -> str:
    """`1 site`, `12,000 sites`."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def listed(names: list[str]) -> str:
    """`image, text and audio`."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def best_guess(epsilon: float, *, delta: float) -> float:
    """Chance to be right, at most, for someone who knows all but one record and starts from even odds.

    Source: the trade-off between false and missed alarms under (epsilon, delta)-DP, Kairouz et al. 2015,
    arXiv:1311.0776, theorem 2.1: the sum of the two error rates is at least 2 (1 - delta) / (1 + exp(epsilon)).
    """
    return 1 - (1 - delta) / (1 + math.exp(min(epsilon, 700.0)))
