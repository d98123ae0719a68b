"""Stand-in: a model and rows for checks of noise and draws, which are the same whatever model is trained.

in        a Rehearsal, how many weights, whose rows
out       a Rehearsal of the stand-in, under the run's own plan and by the real train_round
relies on noise and draws of train_round knowing nothing of the model but the shapes of its weights

A small model would have to be trained hundreds of times until its noise could be judged, and any model hundreds of
steps until its batches could.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from client.gradient import choose_engine
from client.preflight.rehearsal import Rehearsal
from shared.batch import Batch, Samples


def stand_in(rehearsal: Rehearsal, *, num_weights: int, owners: Sequence[int] = (0, 1, 2)) -> Rehearsal:
    """The rehearsal with a model of so many weights, one of them 0-d, and a row for each of the owners."""
    training = rehearsal.run.training.model_copy(update={"gradient_engine": "functional", "microbatch_size": 4096})
    model = StandIn(num_weights)
    return replace(
        rehearsal,
        run=rehearsal.run.model_copy(update={"training": training}),
        model=model,
        names=tuple(name for name, _ in model.named_parameters()),
        samples=watched_samples(owners),
        engine=choose_engine("functional", model),
    )


class StandIn(nn.Module):
    """A scale without dimensions and a vector: the smallest model that has a loss for each sample."""

    def __init__(self, num_weights: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.vector = nn.Parameter(torch.zeros(num_weights - 1))

    def forward(self, inputs: Mapping[str, Tensor], present: Tensor) -> Float[Tensor, "B 1"]:
        """One number a sample."""
        outputs: Tensor = (inputs["value"] * self.scale + self.vector.sum()) * present
        return outputs

    def loss(self, outputs: Float[Tensor, "B 1"], targets: Float[Tensor, "B"]) -> Float[Tensor, "B"]:
        """Squared error of each sample."""
        return (outputs[:, 0] - targets).square()


@dataclass(frozen=True)
class WatchedSamples(Samples):
    """Samples that note which rows are taken."""

    taken: list[Tensor] = field(default_factory=list)

    def take(self, rows: Int[Tensor, "B"]) -> Batch:
        """The named rows, which are noted."""
        self.taken.append(rows)
        return super().take(rows)


def watched_samples(owners: Sequence[int]) -> WatchedSamples:
    """A row for each of the owners, some of whom may have several."""
    num = len(owners)
    return WatchedSamples(
        inputs={"value": torch.linspace(1.0, 2.0, max(num, 1))[:num, None]},
        present=torch.ones(num, 1, dtype=torch.bool),
        targets=torch.zeros(num),
        subjects=tuple(str(owner) for owner in owners),
        groups={},
    )
