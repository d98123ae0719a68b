"""Evaluation: what a model reaches on held-out data, overall, with fewer modalities, and group by group.

in        a model and the Samples of one part of the server's held-out folder
out       Scores every round (score) and an Evaluation with intervals at the end (evaluate), for records.py
relies on the held-out data being the server's own: nothing here is protected by noise, and nothing comes from a site
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from server.bootstrap import Interval, classification_intervals, rating_intervals
from server.metrics import class_metrics, classification_metrics, confusion_counts, rating_metrics
from server.records import ClassScores, Estimate, Evaluation, Scores
from shared.batch import Samples, only
from shared.config import RunConfig
from shared.errors import RunError

BATCH_ROWS = 256
MOST_FOR_ALL_SUBSETS = 4
"""modalities up to which every subset is evaluated; five would already be 31"""
NO_VALUE = "(no value)"


def score(model: nn.Module, samples: Samples, *, run: RunConfig) -> Scores:
    """Overall metrics without intervals, classes or calibration error: cheap enough for every round.

    Raises:
        RunError: there are no samples.
    """
    outputs = predict(model, samples)
    metrics = _metrics(outputs, samples.targets, run=run, calibration=False)
    return Scores(num_samples=len(samples), metrics={name: Estimate(value=value) for name, value in metrics.items()})


def evaluate(
    model: nn.Module,
    samples: Samples,
    *,
    run: RunConfig,
    part: Literal["validation", "test"],
    bootstrap_samples: int,
    subsets: bool,
    seed: int,
) -> Evaluation:
    """Everything that the report shows about one part of the held-out data.

    Args:
        model: its forward takes (inputs, present) and gives logits [N, K] or ratings [N, 1].
        bootstrap_samples: resamples for the 95 % intervals (see bootstrap.py); 0 leaves the intervals out.
        subsets: also as if the samples had only some of their modalities: every subset of up to 4 modalities; of more,
            each alone, all but one, and all.
        seed: of the resamples.

    Raises:
        RunError: there are no samples.
    """
    resampling = _Resampling(run=run, resamples=bootstrap_samples, seed=seed)
    outputs = predict(model, samples)
    overall = _scores(outputs, samples, resampling=resampling)
    by_modalities: dict[str, Scores] = {}
    if subsets:
        for names in modality_subsets(run.modalities):
            limited, usable = only(samples, names, of=run.modalities)
            rows = usable.nonzero()[:, 0]
            if len(names) == len(run.modalities):
                by_modalities["+".join(names)] = overall
            elif len(rows):
                hidden = Samples(
                    inputs=limited.inputs,
                    present=limited.present,
                    targets=limited.targets,
                    subjects=samples.subjects,
                    groups={},
                ).subset(rows)
                by_modalities["+".join(names)] = _scores(predict(model, hidden), hidden, resampling=resampling)
    by_group: dict[str, dict[str, Scores]] = {}
    for column, values in samples.groups.items():
        by_group[column] = {
            value or NO_VALUE: _scores(outputs[rows], samples.subset(rows), resampling=resampling)
            for value, rows in _rows_by_value(values)
        }
    return Evaluation(part=part, overall=overall, by_modalities=by_modalities, by_group=by_group)


def predict(model: nn.Module, samples: Samples) -> Float[Tensor, "N K"]:
    """The model's outputs for all samples, on the CPU; the model's training mode is what it was before.

    Raises:
        RunError: there are no samples.
    """
    if not len(samples):
        raise RunError(
            "the held-out data has no row with any modality of the run; give the server held-out rows that have one"
        )
    parameter = next(model.parameters(), None)
    device = torch.device("cpu") if parameter is None else parameter.device
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            outputs = []
            for start in range(0, len(samples), BATCH_ROWS):
                batch = samples.take(torch.arange(start, min(start + BATCH_ROWS, len(samples))))
                inputs = {name: values.to(device) for name, values in batch.inputs.items()}
                outputs.append(model(inputs, batch.present.to(device)).float().cpu())
    finally:
        model.train(was_training)
    return torch.cat(outputs)


def modality_subsets(modalities: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Non-empty subsets, smallest first: all of them up to 4 modalities; of more, each alone, all but one, and all."""
    most = len(modalities)
    sizes = range(1, most + 1) if most <= MOST_FOR_ALL_SUBSETS else (1, most - 1, most)
    return itertools.chain.from_iterable(itertools.combinations(modalities, size) for size in sizes)


@dataclass(frozen=True)
class _Resampling:
    """What every set of scores of one evaluation shares."""

    run: RunConfig
    resamples: int
    seed: int


def _scores(outputs: Float[Tensor, "N K"], samples: Samples, *, resampling: _Resampling) -> Scores:
    run, subjects = resampling.run, samples.subjects
    metrics = _metrics(outputs, samples.targets, run=run, calibration=True)
    if run.data.task == "rating":
        intervals = rating_intervals(
            outputs, samples.targets, subjects=subjects, resamples=resampling.resamples, seed=resampling.seed
        )
        return Scores(num_samples=len(samples), metrics=_estimates(metrics, intervals))
    intervals, class_intervals = classification_intervals(
        outputs, samples.targets, subjects=subjects, resamples=resampling.resamples, seed=resampling.seed
    )
    values, support = class_metrics(outputs, samples.targets)
    nothing: list[Interval | None] = [None] * len(run.data.labels)
    classes = tuple(
        ClassScores(
            label=label,
            support=int(support[index]),
            precision=_estimate(values[0, index], class_intervals.get("precision", nothing)[index]),
            recall=_estimate(values[1, index], class_intervals.get("recall", nothing)[index]),
            f1=_estimate(values[2, index], class_intervals.get("f1", nothing)[index]),
        )
        for index, label in enumerate(run.data.labels)
    )
    return Scores(
        num_samples=len(samples),
        metrics=_estimates(metrics, intervals),
        classes=classes,
        confusion=confusion_counts(outputs, samples.targets),
    )


def _metrics(outputs: Float[Tensor, "N K"], targets: Tensor, *, run: RunConfig, calibration: bool) -> dict[str, float]:
    if run.data.task == "rating":
        return rating_metrics(outputs, targets)
    return classification_metrics(outputs, targets, calibration=calibration)


def _estimates(metrics: dict[str, float], intervals: dict[str, Interval]) -> dict[str, Estimate]:
    return {name: _estimate(value, intervals.get(name)) for name, value in metrics.items()}


def _estimate(value: float, interval: Interval | None) -> Estimate:
    if interval is None:
        return Estimate(value=float(value))
    # resampled rows repeat, which moves a binned calibration error upwards, past its own value where the error is small
    return Estimate(value=float(value), low=min(interval[0], float(value)), high=max(interval[1], float(value)))


def _rows_by_value(values: tuple[str, ...]) -> list[tuple[str, Int[Tensor, "B"]]]:
    return [
        (value, torch.tensor([row for row, other in enumerate(values) if other == value]))
        for value in sorted(set(values))
    ]
