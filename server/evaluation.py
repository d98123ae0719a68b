"""Evaluation: what a model reaches on held-out data, overall, with fewer modalities, and group by group.

in        a model and the Samples of one part of the server's held-out folder
out       Scores every round (score) and an Evaluation with intervals at the end (evaluate), for records.py
relies on the held-out data being the server's own: nothing here is protected by noise, and nothing comes from a site
"""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from server.contributions import contributions_to
from server.headline import headline_of
from server.records import Contributions, Evaluation, Scores
from server.retrieval import num_pairs, retrieval_scores
from server.scoring import Resampling, headline_draws, scores_of
from shared.batch import Samples, only
from shared.config import RunConfig
from shared.errors import RunError
from shared.model.multimodal import MultimodalModel

BATCH_ROWS = 256
MOST_FOR_ALL_SUBSETS = 4
"""modalities up to which every subset is evaluated; five would already be 31"""
NO_VALUE = "(no value)"
_EMBEDDINGS = "embeddings"
"""under which a model's own embeddings stand in the place of its inputs"""


def score(model: nn.Module, samples: Samples, *, run: RunConfig) -> Scores:
    """Overall metrics without intervals, classes or calibration error: cheap enough for every round.

    Raises:
        RunError: there are no samples.
    """
    outputs = predict(model, samples)
    if run.data.task == "matching":
        return retrieval_scores(outputs, samples, run=run)[0]
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
            each alone, all but one, and all; and what each modality brings. Matching needs both, and always has each
            direction in their place.
        seed: of the resamples.

    Raises:
        RunError: there are no samples.
    """
    resampling = Resampling(run=run, resamples=bootstrap_samples, seed=seed)
    outputs = predict(model, samples)
    if run.data.task == "matching":
        return _evaluate_matching(outputs, samples, part=part, resampling=resampling)
    overall = scores_of(outputs, samples, resampling=resampling)
    by_modalities: dict[str, Scores] = {}
    contributions: Contributions | None = None
    if subsets:
        shown = _Shown(model, samples, run=run)
        for names in modality_subsets(run.modalities):
            rows = only(samples, names, of=run.modalities)[1].nonzero()[:, 0]
            if len(names) == len(run.modalities):
                by_modalities["+".join(names)] = overall
            elif len(rows):
                seen = shown.outputs(names)[rows]
                by_modalities["+".join(names)] = scores_of(seen, samples.subset(rows), resampling=resampling)
        headline = headline_of(run.data)
        contributions = contributions_to(
            headline.main,
            measure=partial(shown.headline, resampling=replace(resampling, in_full=False)),
            modalities=run.modalities,
            is_error=headline.is_error,
            seed=seed,
        )
    by_group: dict[str, dict[str, Scores]] = {}
    for column, values in samples.groups.items():
        by_group[column] = {
            value or NO_VALUE: scores_of(outputs[rows], samples.subset(rows), resampling=resampling)
            for value, rows in _rows_by_value(values)
        }
    return Evaluation(
        part=part, overall=overall, by_modalities=by_modalities, by_group=by_group, contributions=contributions
    )


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


class _Shown:
    """What a model says of samples that show only some of their modalities."""

    def __init__(self, model: nn.Module, samples: Samples, *, run: RunConfig) -> None:
        self.model, self.samples, self.run = model, samples, run
        if type(model) is MultimodalModel and model.fusion.level != "language":
            # the encoders see every sample once, and not once for every subset
            self.model = _Behind(model)
            self.samples = replace(samples, inputs={_EMBEDDINGS: predict(_Before(model), samples)})

    def outputs(self, names: tuple[str, ...]) -> Float[Tensor, "N K"]:
        """For all samples, those too that have none of these modalities."""
        limited, _ = only(self.samples, names, of=self.run.modalities)
        return predict(self.model, replace(self.samples, present=limited.present))

    def headline(self, names: tuple[str, ...], *, resampling: Resampling) -> Float[np.ndarray, "R"] | None:
        """The metric by which the task is judged, over all samples, and in every resample of them."""
        return headline_draws(self.outputs(names), self.samples, resampling=resampling)


class _Before(nn.Module):
    """A model as far as its embeddings, [B, M * D]."""

    def __init__(self, model: MultimodalModel) -> None:
        super().__init__()
        self.model = model
        self.training = model.training

    def forward(self, inputs: Mapping[str, Tensor], present: Bool[Tensor, "B M"]) -> Float[Tensor, "B N"]:
        return self.model.embeddings(inputs, present).flatten(1)


class _Behind(nn.Module):
    """A model from its embeddings on."""

    def __init__(self, model: MultimodalModel) -> None:
        super().__init__()
        self.model = model
        self.training = model.training

    def forward(self, inputs: Mapping[str, Tensor], present: Bool[Tensor, "B M"]) -> Float[Tensor, "B K"]:
        embeddings = inputs[_EMBEDDINGS].reshape(len(present), present.shape[1], -1)
        return self.model.answers(embeddings.masked_fill(~present[:, :, None], 0.0), present)


def _evaluate_matching(
    outputs: Float[Tensor, "N K"],
    samples: Samples,
    *,
    part: Literal["validation", "test"],
    resampling: Resampling,
) -> Evaluation:
    """Retrieval in both directions; of a group, among its own rows, where there are two items to be told apart."""
    run = resampling.run
    measure = partial(retrieval_scores, run=run, resamples=resampling.resamples, seed=resampling.seed)
    overall, directions = measure(outputs, samples)
    by_group: dict[str, dict[str, Scores]] = {}
    for column, values in samples.groups.items():
        if column != run.data.item:
            pieces = [(value, rows, samples.subset(rows)) for value, rows in _rows_by_value(values)]
            by_group[column] = {
                value or NO_VALUE: measure(outputs[rows], piece)[0]
                for value, rows, piece in pieces
                if num_pairs(outputs[rows], piece, run=run) > 1
            }
    return Evaluation(
        part=part, overall=overall, by_modalities={**directions, "+".join(run.modalities): overall}, by_group=by_group
    )


def _rows_by_value(values: tuple[str, ...]) -> list[tuple[str, Int[Tensor, "B"]]]:
    return [
        (value, torch.tensor([row for row, other in enumerate(values) if other == value]))
        for value in sorted(set(values))
    ]
