"""Tasks: what a model is asked for: how many numbers, on which scale, and what a wrong one costs each sample.

in        a head's numbers [B, K] and targets as targets.py has them
out       the answer on its scale, the loss of each sample
relies on public constants alone: no statistics of a batch, so that every sample keeps a gradient of its own
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Num
from torch import Tensor, nn

from shared.config import LossSettings, RunConfig
from shared.errors import ModelError
from shared.model.matching import matching_of
from shared.schema import DataSchema, TaskSchema


@runtime_checkable
class Task(Protocol):
    """What the model is asked for."""

    @property
    def num_outputs(self) -> int:
        """Numbers that a head, or all heads together, must give for each sample."""

    def scaled(self, outputs: Float[Tensor, "B K"]) -> Float[Tensor, "B K"]:
        """A head's numbers on the scale of the task."""

    def log_probabilities(self, outputs: Float[Tensor, "*B K"]) -> Float[Tensor, "*B K"]:
        """A head's numbers as logits that can be averaged over heads: normalised where classes exclude each other."""

    def loss(self, outputs: Float[Tensor, "B K"], targets: Num[Tensor, "B *T"]) -> Float[Tensor, "B"]:
        """What each sample's scaled outputs cost."""


@dataclass(frozen=True)
class SingleLabel:
    """One of K classes: logits, cross-entropy weighted by the true class."""

    num_outputs: int
    class_weights: tuple[float, ...] = ()
    """public, one for each class; none: all 1"""

    def scaled(self, outputs: Float[Tensor, "B K"]) -> Float[Tensor, "B K"]:
        """Logits as they are."""
        return outputs

    def log_probabilities(self, outputs: Float[Tensor, "*B K"]) -> Float[Tensor, "*B K"]:
        """Log-softmax."""
        return outputs.log_softmax(dim=-1)

    def loss(self, outputs: Float[Tensor, "B K"], targets: Num[Tensor, "B *T"]) -> Float[Tensor, "B"]:
        """Cross-entropy of each sample, in nats."""
        classes = targets.long()
        costs = nn.functional.cross_entropy(outputs, classes, reduction="none")
        # not torch's own weights: a mean over the batch would be divided by what the batch holds
        return costs * outputs.new_tensor(self.class_weights)[classes] if self.class_weights else costs


@dataclass(frozen=True)
class MultiLabel:
    """Any of K classes: a logit each, binary cross-entropies averaged over the classes."""

    num_outputs: int
    class_weights: tuple[float, ...] = ()
    """public: of a class where it is true; none: all 1"""

    def scaled(self, outputs: Float[Tensor, "B K"]) -> Float[Tensor, "B K"]:
        """Logits as they are."""
        return outputs

    def log_probabilities(self, outputs: Float[Tensor, "*B K"]) -> Float[Tensor, "*B K"]:
        """Logits as they are: classes do not exclude each other."""
        return outputs

    def loss(self, outputs: Float[Tensor, "B K"], targets: Num[Tensor, "B *T"]) -> Float[Tensor, "B"]:
        """Mean binary cross-entropy of each sample's classes, in nats."""
        weights = outputs.new_tensor(self.class_weights) if self.class_weights else None
        costs = nn.functional.binary_cross_entropy_with_logits(
            outputs, targets.to(outputs.dtype), pos_weight=weights, reduction="none"
        )
        return costs.mean(dim=1)


@dataclass(frozen=True)
class Rating:
    """A number in a public range: squared error, or Huber's.

    A head's 0 is the middle of the range and its 1 half the range further; the loss is in the same measure, so that
    gradients, and the clip norm that suits them, do not depend on the unit of the ratings.
    """

    lowest: float
    highest: float
    huber_delta: float | None = None
    """where the loss turns linear, in halves of the range; None: squared error all the way"""
    num_outputs: int = 1

    def scaled(self, outputs: Float[Tensor, "B 1"]) -> Float[Tensor, "B 1"]:
        """Ratings in the unit of the data; they may pass the range."""
        return (self.lowest + self.highest) / 2 + outputs * (self.highest - self.lowest) / 2

    def log_probabilities(self, outputs: Float[Tensor, "*B 1"]) -> Float[Tensor, "*B 1"]:
        """Numbers as they are."""
        return outputs

    def loss(self, outputs: Float[Tensor, "B 1"], targets: Num[Tensor, "B *T"]) -> Float[Tensor, "B"]:
        """Error of each sample, squared in halves of the range; beyond huber_delta as a tangent goes on.

        Source: Huber 1964, Annals of Mathematical Statistics 35(1), times 2, so that small errors cost the same
        either way.
        """
        away = (outputs[:, 0] - targets) / ((self.highest - self.lowest) / 2)
        if self.huber_delta is None:
            return away.square()
        return 2 * nn.functional.huber_loss(away, torch.zeros_like(away), reduction="none", delta=self.huber_delta)


@dataclass(frozen=True)
class Several:
    """Several tasks at once, their outputs and targets side by side; what a sample has no answer to costs nothing."""

    tasks: Mapping[str, SingleLabel | MultiLabel | Rating]
    num_targets: Mapping[str, int]
    """task -> columns of targets that are its own"""
    weights: Mapping[str, float]
    """task -> what its loss is multiplied with; public"""

    @property
    def num_outputs(self) -> int:
        """Of all tasks together."""
        return sum(task.num_outputs for task in self.tasks.values())

    def outputs_of(self, outputs: Float[Tensor, "*B K"]) -> dict[str, Tensor]:
        """Task -> its own outputs."""
        pieces = torch.split(outputs, [task.num_outputs for task in self.tasks.values()], dim=-1)
        return dict(zip(self.tasks, pieces, strict=True))

    def targets_of(self, targets: Float[Tensor, "B T"]) -> dict[str, Tensor]:
        """Task -> its own targets [B] or [B, K], NaN where a sample has none."""
        ends = list(accumulate(self.num_targets.values()))
        found = {}
        for (name, task), end in zip(self.tasks.items(), ends, strict=True):
            own = targets[:, end - self.num_targets[name] : end]
            found[name] = own if isinstance(task, MultiLabel) else own[:, 0]
        return found

    def scaled(self, outputs: Float[Tensor, "B K"]) -> Float[Tensor, "B K"]:
        """Each task's on its own scale."""
        pieces = self.outputs_of(outputs)
        return torch.cat([task.scaled(pieces[name]) for name, task in self.tasks.items()], dim=1)

    def log_probabilities(self, outputs: Float[Tensor, "*B K"]) -> Float[Tensor, "*B K"]:
        """Each task's by itself."""
        pieces = self.outputs_of(outputs)
        return torch.cat([task.log_probabilities(pieces[name]) for name, task in self.tasks.items()], dim=-1)

    def loss(self, outputs: Float[Tensor, "B K"], targets: Num[Tensor, "B *T"]) -> Float[Tensor, "B"]:
        """The weighted sum over the tasks that a sample has an answer to."""
        pieces, answers = self.outputs_of(outputs), self.targets_of(targets)
        total = outputs.new_zeros(len(outputs))
        for name, task in self.tasks.items():
            own = answers[name]
            absent = own.isnan()
            is_absent = absent if absent.ndim == 1 else absent.any(dim=1)
            # PRIVACY: a made-up answer in its place, so that no sample is left out of the pass and no NaN enters it;
            # what it costs is then taken away. test_a_task_without_an_answer_gets_no_gradient
            low = task.lowest if isinstance(task, Rating) else 0.0
            cost = task.loss(pieces[name], own.masked_fill(absent, low)).masked_fill(is_absent, 0.0)
            total = total + self.weights[name] * cost
        return total


def task_of(run: RunConfig) -> Task:
    """The task that the run's data is labelled for, with the run's losses.

    Raises:
        ModelError: the losses name labels or tasks that there are not, or a weight that is not above 0.
    """
    data, loss = run.data, run.model.loss
    _check(data, loss)
    if data.task == "several":
        return Several(
            tasks={name: _single(part, loss=loss, prefix=f"{name}.") for name, part in data.tasks.items()},
            num_targets={name: part.num_targets for name, part in data.tasks.items()},
            weights={name: loss.task_weights.get(name, 1.0) for name in data.tasks},
        )
    if data.task == "matching":
        return matching_of(run)
    (part,) = data.parts.values()
    return _single(part, loss=loss, prefix="")


def _single(part: TaskSchema, *, loss: LossSettings, prefix: str) -> SingleLabel | MultiLabel | Rating:
    if part.rating_range is not None:
        delta = loss.huber_delta if loss.rating == "huber" else None
        return Rating(lowest=part.rating_range[0], highest=part.rating_range[1], huber_delta=delta)
    weights = tuple(loss.class_weights.get(f"{prefix}{label}", 1.0) for label in part.labels)
    kind = MultiLabel if part.kind == "multi-label" else SingleLabel
    return kind(num_outputs=len(part.labels), class_weights=weights if set(weights) != {1.0} else ())


def _check(data: DataSchema, loss: LossSettings) -> None:
    prefix = data.task == "several"
    labels = [f"{name}.{label}" if prefix else label for name, part in data.parts.items() for label in part.labels]
    if loss.rating == "huber" and not any(part.kind == "rating" for part in data.parts.values()):
        raise ModelError(
            f'model.loss.rating is "huber", and task = "{data.task}" has no ratings; allowed: leave it out'
        )
    if loss.rating != "huber" and loss.huber_delta != LossSettings().huber_delta:
        raise ModelError('model.loss.huber_delta: has no effect; allowed with model.loss.rating = "huber" alone')
    for field, named, allowed in (
        ("class_weights", loss.class_weights, labels),
        ("task_weights", loss.task_weights, list(data.tasks)),
    ):
        unknown = sorted(set(named) - set(allowed))
        if unknown:
            raise ModelError(f"model.loss.{field}: {unknown} not in the data; allowed: {', '.join(allowed) or 'none'}")
        wrong = sorted(name for name, weight in named.items() if not 0 < weight <= 1e6)
        if wrong:
            raise ModelError(f"model.loss.{field}: {wrong} not above 0; allowed: up to 1e6")
