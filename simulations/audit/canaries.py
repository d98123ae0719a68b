"""Canaries: made-up units, each put into the training data or left out by a coin, that an attack then looks for.

in        one site's samples; the model that is trained
out       samples with canaries in them, a model that knows its gradient canaries, coins and scores
relies on nothing: how canaries are treated is what is being tested
"""

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor, nn

from shared.batch import Samples
from shared.schema import DataSchema, TaskSchema

MARK = "canary number"
"""input that tells a canary's number, -1 in a real row; no modality can be called so, for the blanks"""
STRENGTH = 50.0
"""length of a canary's gradient before it is clipped, in clip norms"""

Coins = Bool[np.ndarray, "U"]
Scores = Float[np.ndarray, "U"]


class CanaryModel(nn.Module):
    """A model and beside it one further weight for each canary: the canary's gradient is that weight's direction.

    Real rows have the gradient that they have in the model alone, and none for the further weights; so an update
    shows each canary in a number of its own, with the noise and nothing else. This is the strongest canary there is
    for a mechanism that clips and adds spherical noise (Nasr et al. 2023, arXiv:2302.07956, section 4).
    """

    def __init__(self, model: nn.Module, *, num_canaries: int, gradient_norm: float) -> None:
        super().__init__()
        self.model, self.gradient_norm = model, gradient_norm
        # a layer, so that every engine knows it
        self.canaries = nn.Embedding(num_canaries, 1)
        nn.init.zeros_(self.canaries.weight)

    def forward(self, inputs: dict[str, Tensor], present: Tensor) -> Tensor:
        """The model's outputs, and two columns more: a canary's own weight, and whether the row is a canary."""
        mark = inputs[MARK]
        outputs = self.model({name: values for name, values in inputs.items() if name != MARK}, present)
        own = self.gradient_norm * self.canaries(mark.clamp(min=0))
        return torch.cat([outputs, own, (mark >= 0)[:, None].to(outputs.dtype)], dim=1)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """A real row's own loss; a canary's weight times the norm of its gradient."""
        ordinary: Tensor = self.model.loss(outputs[:, :-2], targets)  # type: ignore[operator]
        return torch.where(outputs[:, -1] > 0.5, outputs[:, -2], ordinary)


def with_gradient_canaries(samples: Samples, *, included: Coins) -> Samples:
    """The samples with a row for each canary whose coin says so, and the input that tells them apart."""
    numbers = torch.from_numpy(np.flatnonzero(included))
    # what stands in a canary's row is not looked at; a real row is sure to be something that the model takes
    copies = samples.subset(torch.zeros(len(numbers), dtype=torch.int64))
    both = joined(samples, copies, subjects=[f"canary {number}" for number in numbers.tolist()])
    marks = torch.cat([torch.full((len(samples),), -1), numbers])
    return Samples(
        inputs={**both.inputs, MARK: marks},
        present=both.present,
        targets=both.targets,
        subjects=both.subjects,
        groups=both.groups,
    )


def mislabelled(strangers: Samples, *, data: DataSchema, num: int, generator: np.random.Generator) -> Samples:
    """Records that nobody else has, with wrong labels: what a model can only get right by heart.

    A class becomes one of the others, a rating the end of the range that is further away; of many labels each is the
    opposite. Of several tasks that is so of each that has an answer. Of a matching, which has no labels, each has
    another one's second modality. At most all strangers.

    Source: Steinke, Nasr, Jagielski 2023, arXiv:2305.08846, section 6 (mislabelled canaries in input space).
    """
    if data.pair is not None:
        return _mismatched(strangers, second=data.pair[1], num=num, generator=generator)
    chosen = torch.from_numpy(np.sort(generator.permutation(len(strangers))[:num]))
    records = strangers.subset(chosen)
    table = records.targets[:, None] if records.targets.ndim == 1 else records.targets
    wrong, column = [], 0
    for part in data.parts.values():
        wrong.append(_wrong_answers(table[:, column : column + part.num_targets], part=part, generator=generator))
        column += part.num_targets
    targets = torch.cat(wrong, dim=1).reshape(records.targets.shape)
    return Samples(
        inputs=records.inputs,
        present=records.present,
        targets=targets,
        subjects=tuple(f"canary {number}" for number in range(len(records))),
        groups=records.groups,
    )


def _mismatched(strangers: Samples, *, second: str, num: int, generator: np.random.Generator) -> Samples:
    """Pairs of which neither half belongs to the other, of records that have every modality."""
    whole = strangers.present.all(dim=1).nonzero()[:, 0]
    chosen = whole[torch.from_numpy(np.sort(generator.permutation(len(whole))[:num]))]
    records = strangers.subset(chosen)
    # half of them further on: rows of one item lie next to each other
    swapped = {second: records.inputs[second].roll(max(1, len(records) // 2), dims=0)}
    return Samples(
        inputs={**records.inputs, **swapped},
        present=records.present,
        targets=records.targets,
        subjects=tuple(f"canary {number}" for number in range(len(records))),
        groups=records.groups,
    )


def _wrong_answers(answers: Num[Tensor, "B T"], *, part: TaskSchema, generator: np.random.Generator) -> Tensor:
    """None of them right; what is no answer stays none."""
    if part.rating_range is not None:
        low, high = part.rating_range
        wrong = torch.where(answers < (low + high) / 2, high, low).to(answers.dtype)
    elif part.kind == "multi-label":
        wrong = 1 - answers
    else:
        shift = torch.from_numpy(generator.integers(1, len(part.labels), size=len(answers)))[:, None]
        wrong = ((answers + shift) % len(part.labels)).to(answers.dtype)
    return torch.where(answers.isnan(), answers, wrong)


def joined(samples: Samples, more: Samples, *, subjects: list[str] | None = None) -> Samples:
    """Both, one after the other; the later rows are about `subjects`, where given."""
    return Samples(
        inputs={name: torch.cat([values, more.inputs[name]]) for name, values in samples.inputs.items()},
        present=torch.cat([samples.present, more.present]),
        targets=torch.cat([samples.targets, more.targets]),
        subjects=(*samples.subjects, *(more.subjects if subjects is None else subjects)),
        groups={column: (*values, *more.groups[column]) for column, values in samples.groups.items()},
    )


def rows_where(included: Coins) -> Int[Tensor, "R"]:
    """Numbers of the rows whose coin says so."""
    return torch.from_numpy(np.flatnonzero(included))
