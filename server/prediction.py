"""Prediction: what a trained model says of samples, how sure it is, and how much of that each modality brought.

in        a TrainedModel, and samples as given.py reads them
out       Prediction, one a sample, for the terminal, a file or service/
relies on tasks.py for what the model's numbers mean; probabilities are the model's own, softmax or sigmoid of logits

A contribution is a Shapley value: the change in the score of the answer that a modality brings, averaged over all
orders in which the sample's own modalities could come in. Scores of a class or of labels are log-probabilities in nats,
those of a rating are in its own unit. They add up to the score less that of the same answer when nothing is present;
an absent modality has none. contributions.py asks the same of a metric on a whole held-out part.

Source: Shapley 1953; for the modalities of a model: Hu et al. 2022, arXiv:2205.00302, section 3.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from server.given import Named, Readers, read_folder, read_sample
from server.shapley import shapley_values
from server.trained import TrainedModel
from shared.batch import Batch
from shared.errors import ModelError, RunError
from shared.model.tasks import Several
from shared.schema import TaskSchema
from shared.settings import Settings

if TYPE_CHECKING:
    from rich.table import Table

MOST_MODALITIES = 8
"""up to which contributions are computed: there are 255 subsets of eight"""
MOST_SHOWN = 50
"""rows of a table on the terminal"""
MOST_LABELS = 3
"""columns of probabilities on the terminal"""


class Answer(Settings):
    """What the model says to one task."""

    labels: tuple[str, ...] = ()
    """the most probable one; of a multi-label task all those of at least one half"""
    rating: float | None = None
    probabilities: dict[str, float] = Field(default={})
    """label -> probability; they add up to 1 where labels exclude each other"""
    contributions: dict[str, float] = Field(default={})
    """modality of the sample -> its Shapley value; none where the model has more modalities than are computed"""


class Prediction(Settings):
    """What the model says of one sample."""

    sample: str
    modalities: tuple[str, ...]
    """that the sample has, of those that the model knows"""
    answers: dict[str, Answer]
    """task -> answer; a data set with one task calls it label, labels or rating"""


class Predictor:
    """A trained model, ready for samples."""

    def __init__(self, trained: TrainedModel) -> None:
        """Builds the run's preprocessors.

        Raises:
            ModelError: the run matches pairs and gives no answers.
        """
        if trained.run.data.task == "matching":
            raise ModelError(
                f"{trained.folder}: the model matches values and has no labels; use: motet recommend {trained.folder}"
            )
        self.trained, self.readers = trained, Readers(trained.run)
        self._parts = trained.run.data.parts

    def of_folder(self, folder: Path) -> Iterator[Prediction]:
        """Predictions for the rows of a data folder, in their order; faults as `given.read_folder` raises them."""
        for named in read_folder(folder, readers=self.readers):
            yield from self.of_batch(named)

    def of_values(self, values: Mapping[str, Path | str]) -> Prediction:
        """The prediction for one sample; faults as `given.read_sample` raises them."""
        (prediction,) = self.of_batch(read_sample(values, readers=self.readers))
        return prediction

    def of_batch(self, named: Named) -> list[Prediction]:
        """Predictions for prepared samples, each of which has at least one modality."""
        modalities, batch = self.trained.run.modalities, named.batch
        whole = self._by_task(self._outputs(batch, batch.present))
        answers: list[dict[str, Answer]] = [{} for _ in named.names]
        by_subset = self._outputs_by_subset(batch) if len(modalities) <= MOST_MODALITIES else None
        for task, outputs in whole.items():
            part = self._parts[task]
            probabilities = _probabilities(outputs, part=part)
            shares = None
            if by_subset is not None:
                scores = torch.stack([_score(each[task], answer=outputs, part=part) for each in by_subset])
                shares = shapley_values(scores, num_players=len(modalities))
            for row in range(len(named.names)):
                contributions = (
                    {
                        name: float(shares[place, row])
                        for place, name in enumerate(modalities)
                        if batch.present[row, place]
                    }
                    if shares is not None
                    else {}
                )
                answers[row][task] = _answer(outputs[row], probabilities[row], part=part, contributions=contributions)
        return [
            Prediction(
                sample=name,
                modalities=tuple(m for place, m in enumerate(modalities) if batch.present[row, place]),
                answers=answers[row],
            )
            for row, name in enumerate(named.names)
        ]

    def _outputs(self, batch: Batch, present: Bool[Tensor, "B M"]) -> Float[Tensor, "B K"]:
        with torch.no_grad():
            outputs: Tensor = self.trained.model(batch.inputs, present)
        return outputs.double()

    def _by_task(self, outputs: Float[Tensor, "B K"]) -> dict[str, Tensor]:
        task = self.trained.model.task
        if isinstance(task, Several):
            return task.outputs_of(outputs)
        ((column, _),) = self._parts.items()
        return {column: outputs}

    def _outputs_by_subset(self, batch: Batch) -> list[dict[str, Tensor]]:
        """Outputs with each subset of the modalities, none at all included, in the order of the subset's bits."""
        found = []
        for bits in range(2 ** len(self.trained.run.modalities)):
            kept = torch.tensor([bool(bits >> place & 1) for place in range(len(self.trained.run.modalities))])
            found.append(self._by_task(self._outputs(batch, batch.present & kept)))
        return found


def _probabilities(outputs: Float[Tensor, "B K"], *, part: TaskSchema) -> Float[Tensor, "B L"]:
    if part.kind == "single-label":
        return outputs.softmax(dim=1)
    return outputs.sigmoid() if part.kind == "multi-label" else outputs[:, :0]


def _score(outputs: Float[Tensor, "B K"], *, answer: Float[Tensor, "B K"], part: TaskSchema) -> Float[Tensor, "B"]:
    """How much the outputs speak for the answer that is given with all modalities."""
    if part.kind == "rating":
        return outputs[:, 0]
    if part.kind == "single-label":
        best = answer.argmax(dim=1, keepdim=True)
        return outputs.log_softmax(dim=1).gather(1, best)[:, 0]
    signs = torch.where(answer >= 0, 1.0, -1.0)
    return torch.nn.functional.logsigmoid(signs * outputs).sum(dim=1)


def _answer(
    outputs: Float[Tensor, "K"],
    probabilities: Float[Tensor, "L"],
    *,
    part: TaskSchema,
    contributions: Mapping[str, float],
) -> Answer:
    told = {label: float(value) for label, value in zip(part.labels, probabilities, strict=True)}
    if part.kind == "rating":
        return Answer(rating=float(outputs[0]), contributions=dict(contributions))
    if part.kind == "single-label":
        labels: tuple[str, ...] = (part.labels[int(outputs.argmax())],)
    else:
        labels = tuple(label for label, value in told.items() if value >= 0.5)
    return Answer(labels=labels, probabilities=told, contributions=dict(contributions))


def prediction_table(predictions: Sequence[Prediction]) -> "Table":
    """The first predictions as a table for the terminal, a line for each task of each sample.

    Raises:
        RunError: there is none.
    """
    from rich.markup import escape
    from rich.table import Table

    if not predictions:
        raise RunError("there are no predictions to show")
    several = len(predictions[0].answers) > 1
    modalities = list(dict.fromkeys(name for each in predictions[:MOST_SHOWN] for name in each.modalities))
    caption = "By modality: how much each speaks for the answer (Shapley values in nats; of a rating in its unit)."
    if len(predictions) > MOST_SHOWN:
        caption += f"\nThe first {MOST_SHOWN} of {len(predictions)} samples; all of them with --json or --out FILE."
    table = Table(caption=caption, caption_justify="left")
    for heading in ("sample", *(("task",) if several else ()), "answer", "probabilities"):
        table.add_column(heading)
    for name in modalities:
        table.add_column(escape(name), justify="right")
    for each in predictions[:MOST_SHOWN]:
        for task, answer in each.answers.items():
            cells = [each.sample, *((task,) if several else ()), _said(answer), _likely(answer)]
            shares = [f"{answer.contributions[m]:+.2f}" if m in answer.contributions else "" for m in modalities]
            table.add_row(*map(escape, cells), *shares)
    return table


def _said(answer: Answer) -> str:
    if answer.rating is not None:
        return f"{answer.rating:.3g}"
    return ", ".join(answer.labels) or "none"


def _likely(answer: Answer) -> str:
    ranked = sorted(answer.probabilities.items(), key=lambda pair: -pair[1])
    return "  ".join(f"{label} {value:.2f}" for label, value in ranked[:MOST_LABELS])
