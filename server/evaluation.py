"""Evaluation: what a model reaches on held-out data, overall, with fewer modalities, and group by group.

in        a model and the Samples of one part of the server's held-out folder
out       Scores every round (score) and an Evaluation with intervals at the end (evaluate), for records.py
relies on the held-out data being the server's own: nothing here is protected by noise, and nothing comes from a site
"""

import itertools
from collections.abc import Iterator
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from server.records import Evaluation, Scores
from server.scoring import Resampling, scores_of
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
    return scores_of(outputs, samples, resampling=Resampling(run=run, in_full=False))


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
        model: its forward takes (inputs, present) and gives outputs [N, K] as its task has them.
        bootstrap_samples: resamples for the 95 % intervals (see bootstrap.py); 0 leaves the intervals out.
        subsets: also as if the samples had only some of their modalities: every subset of up to 4 modalities; of more,
            each alone, all but one, and all.
        seed: of the resamples.

    Raises:
        RunError: there are no samples.
    """
    resampling = Resampling(run=run, resamples=bootstrap_samples, seed=seed)
    outputs = predict(model, samples)
    overall = scores_of(outputs, samples, resampling=resampling)
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
                by_modalities["+".join(names)] = scores_of(predict(model, hidden), hidden, resampling=resampling)
    by_group: dict[str, dict[str, Scores]] = {}
    for column, values in samples.groups.items():
        by_group[column] = {
            value or NO_VALUE: scores_of(outputs[rows], samples.subset(rows), resampling=resampling)
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


def _rows_by_value(values: tuple[str, ...]) -> list[tuple[str, Int[Tensor, "B"]]]:
    return [
        (value, torch.tensor([row for row, other in enumerate(values) if other == value]))
        for value in sorted(set(values))
    ]
