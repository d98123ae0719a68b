"""Scoring: what a model said of some rows, and the truth, become Scores, whatever the task.

in        outputs [N, K], targets and subjects of held-out rows, from evaluation.py
out       Scores, with intervals where resamples are asked for; of several tasks each task's own, and their mean
relies on metrics.py and label_metrics.py for every value, bootstrap.py for the intervals; matching is in retrieval.py
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from server.bootstrap import Interval, drawn, interval_of, intervals
from server.headline import MEAN_SCORE, headline_of, score_of
from server.label_metrics import label_metrics, label_scores
from server.metrics import class_metrics, classification_metrics, confusion_counts, rating_metrics
from server.records import ClassScores, Estimate, Scores
from shared.batch import Samples
from shared.config import RunConfig
from shared.model.tasks import Several, task_of
from shared.schema import TaskSchema


@dataclass(frozen=True)
class Resampling:
    """What every set of scores of one evaluation shares; no resamples: no intervals, no classes, no calibration."""

    run: RunConfig
    resamples: int = 0
    seed: int = 0
    in_full: bool = True
    """also scores by class, confusion, calibration error and, of resamples, correlations"""


@dataclass(frozen=True)
class _Rows:
    """The rows of one task that have an answer."""

    outputs: Float[Tensor, "B K"]
    targets: Tensor
    rows: Int[Tensor, "B"] | None
    """which of all rows they are; None: all"""


def scores_of(outputs: Float[Tensor, "N K"], samples: Samples, *, resampling: Resampling) -> Scores:
    """The scores of some rows.

    Of several tasks each is measured on the rows that have an answer to it, and left out where none has. Their mean
    score is the plain mean of the macro-F1 of each task with labels and the closeness of each rating; it is left out
    where a task has answers and no such score, because the model diverged.
    """
    return _measured(outputs, samples, resampling=resampling)[0]


def headline_draws(
    outputs: Float[Tensor, "N K"], samples: Samples, *, resampling: Resampling
) -> Float[np.ndarray, "R"] | None:
    """The number by which the task is judged, and behind it the same in every resample, NaN where it has none.

    None where it is not defined; itself alone where there is nobody to draw among.
    """
    main = headline_of(resampling.run.data).main
    scores, draws = _measured(outputs, samples, resampling=resampling)
    if main not in scores.metrics:
        return None
    return np.append(scores.metrics[main].value, draws.get(main, np.empty(0)))


def _measured(
    outputs: Float[Tensor, "N K"], samples: Samples, *, resampling: Resampling
) -> tuple[Scores, dict[str, NDArray[np.float64]]]:
    """The scores of some rows, and what the task is judged by in every resample."""
    run, task = resampling.run, task_of(resampling.run)
    if not isinstance(task, Several):
        (part,) = run.data.parts.values()
        rows = _Rows(outputs, samples.targets, None)
        return _one_task(rows, part, subjects=samples.subjects, resampling=resampling)
    pieces, answers = task.outputs_of(outputs), task.targets_of(samples.targets)
    tasks: dict[str, Scores] = {}
    draws: dict[str, NDArray[np.float64]] = {}
    for name, part in run.data.tasks.items():
        has_none = answers[name].isnan()
        there = (~(has_none if has_none.ndim == 1 else has_none.any(dim=1))).nonzero()[:, 0]
        if len(there):
            own = answers[name][there]
            rows = _Rows(pieces[name][there], own.long() if part.kind == "single-label" else own, there)
            scores, found = _one_task(rows, part, subjects=samples.subjects, resampling=resampling)
            tasks[name] = scores
            if score_of(part) in found:
                draws[name] = found[score_of(part)]
    values = [scores.metrics.get(score_of(run.data.tasks[name])) for name, scores in tasks.items()]
    known = [estimate.value for estimate in values if estimate is not None]
    if len(known) < len(values):
        return Scores(num_samples=len(samples), metrics={}, tasks=tasks), {}
    # the same people are in the same resample of every task
    means = {MEAN_SCORE: np.mean(list(draws.values()), axis=0)} if len(draws) == len(tasks) else {}
    mean = _estimate(sum(known) / len(known), interval_of(means[MEAN_SCORE]) if means else None)
    return Scores(num_samples=len(samples), metrics={MEAN_SCORE: mean}, tasks=tasks), means


def _one_task(
    given: _Rows, part: TaskSchema, *, subjects: tuple[str, ...], resampling: Resampling
) -> tuple[Scores, dict[str, NDArray[np.float64]]]:
    """The scores of one task, and its metrics in every resample."""
    own = subjects if given.rows is None else tuple(subjects[row] for row in given.rows.tolist())
    found = drawn(
        given.outputs,
        given.targets,
        kind=part.kind,
        subjects=subjects,
        resamples=resampling.resamples if len(set(own)) > 1 else 0,
        seed=resampling.seed,
        rows=given.rows,
        in_full=resampling.in_full,
    )
    values = _values(given, part, resampling=resampling)
    if part.rating_range is not None and resampling.run.data.task == "several":
        # a task among others is compared with them, and so needs a score that is higher where it is better
        if "mae" in values:
            values["closeness"] = float(closeness(np.array([values["mae"]]), rating_range=part.rating_range)[0])
        if "mae" in found:
            found["closeness"] = closeness(found["mae"], rating_range=part.rating_range)
    overall, by_class = intervals(found)
    metrics = {name: _estimate(value, overall.get(name)) for name, value in values.items()}
    classes = _classes(given, part, intervals=by_class) if part.labels and resampling.in_full else ()
    is_single = part.kind == "single-label" and resampling.in_full
    scores = Scores(
        num_samples=len(given.targets),
        metrics=metrics,
        classes=classes,
        confusion=confusion_counts(given.outputs, given.targets) if is_single else (),
    )
    return scores, found


def closeness(mae: Float[np.ndarray, "R"], *, rating_range: tuple[float, float]) -> NDArray[np.float64]:
    """1 less the mean absolute error as a share of the range, 0 at least: a score for comparison with an F1.

    Not from chance on: whoever always says the middle of the range is never further off than half of it, and reaches
    one half or more.
    """
    low, high = rating_range
    return np.maximum(0.0, 1.0 - mae / (high - low))


def _values(given: _Rows, part: TaskSchema, *, resampling: Resampling) -> dict[str, float]:
    if part.kind == "rating":
        return rating_metrics(given.outputs, given.targets)
    if part.kind == "multi-label":
        return label_metrics(given.outputs, given.targets)
    return classification_metrics(given.outputs, given.targets, calibration=resampling.in_full)


def _classes(
    given: _Rows, part: TaskSchema, *, intervals: Mapping[str, list[Interval | None]]
) -> tuple[ClassScores, ...]:
    measure = label_scores if part.kind == "multi-label" else class_metrics
    values, support = measure(given.outputs, given.targets)
    nothing: list[Interval | None] = [None] * len(part.labels)
    return tuple(
        ClassScores(
            label=label,
            support=int(support[index]),
            precision=_estimate(values[0, index], intervals.get("precision", nothing)[index]),
            recall=_estimate(values[1, index], intervals.get("recall", nothing)[index]),
            f1=_estimate(values[2, index], intervals.get("f1", nothing)[index]),
        )
        for index, label in enumerate(part.labels)
    )


def _estimate(value: float, interval: Interval | None) -> Estimate:
    if interval is None:
        return Estimate(value=float(value))
    # resampled rows repeat, which moves a binned calibration error upwards, past its own value where the error is small
    return Estimate(value=float(value), low=min(interval[0], float(value)), high=max(interval[1], float(value)))
