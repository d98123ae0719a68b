"""Heads and tasks: the fused vector of a sample becomes what the task asks for, and has a loss.

in        fused [B, D] from fusion.py
out       [B, K] logits or [B, 1] ratings, and the loss of each sample
relies on nothing but Linear layers, and on public constants for the scale of ratings
"""

from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from jaxtyping import Float, Num
from pydantic import Field
from torch import Tensor, nn

from shared.config import DataSchema, Settings
from shared.errors import ModelError
from shared.model.registry import HeadPlace, head_registry

ACTIVATIONS: dict[str, type[nn.Module]] = {"none": nn.Identity, "relu": nn.ReLU, "gelu": nn.GELU, "tanh": nn.Tanh}
Activation = Literal["none", "relu", "gelu", "tanh"]


@runtime_checkable
class Task(Protocol):
    """What the model is asked for: how many numbers, on which scale, and what a wrong one costs."""

    @property
    def num_outputs(self) -> int:
        """Numbers a head must give for each sample."""

    def scaled(self, outputs: Float[Tensor, "B K"]) -> Float[Tensor, "B K"]:
        """A head's numbers on the scale of the task."""

    def loss(self, outputs: Float[Tensor, "B K"], targets: Num[Tensor, "B"]) -> Float[Tensor, "B"]:
        """What each sample's scaled outputs cost."""


@dataclass(frozen=True)
class SingleLabel:
    """One of K classes: logits, cross-entropy."""

    num_outputs: int

    def scaled(self, outputs: Float[Tensor, "B K"]) -> Float[Tensor, "B K"]:
        """Logits as they are."""
        return outputs

    def loss(self, outputs: Float[Tensor, "B K"], targets: Num[Tensor, "B"]) -> Float[Tensor, "B"]:
        """Cross-entropy of each sample, in nats."""
        return nn.functional.cross_entropy(outputs, targets.long(), reduction="none")


@dataclass(frozen=True)
class Rating:
    """A number in a public range: squared error.

    A head's 0 is the middle of the range and its 1 half the range further; the loss is in the same measure, so that
    gradients, and the clip norm that suits them, do not depend on the unit of the ratings.
    """

    lowest: float
    highest: float
    num_outputs: int = 1

    def scaled(self, outputs: Float[Tensor, "B 1"]) -> Float[Tensor, "B 1"]:
        """Ratings in the unit of the data; they may pass the range."""
        return (self.lowest + self.highest) / 2 + outputs * (self.highest - self.lowest) / 2

    def loss(self, outputs: Float[Tensor, "B 1"], targets: Num[Tensor, "B"]) -> Float[Tensor, "B"]:
        """Squared error of each sample, in halves of the range."""
        return ((outputs[:, 0] - targets) / ((self.highest - self.lowest) / 2)).square()


def task_of(data: DataSchema) -> Task:
    """The task that the data is labelled for."""
    if data.rating_range is not None:
        return Rating(lowest=data.rating_range[0], highest=data.rating_range[1])
    return SingleLabel(num_outputs=len(data.labels))


class LinearOptions(Settings):
    """How the fused vector meets the linear layer."""

    activation: Activation = Field(default="none", description="applied to the fused vector first")
    normalise: bool = Field(default=False, description="fused vector to mean 0 and deviation 1 first, by itself")


@head_registry.register("linear", options=LinearOptions)
class LinearHead(nn.Module):
    """One linear layer, its bias 0 at the start: no class is favoured before training."""

    def __init__(self, place: HeadPlace, options: LinearOptions) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(place.inputs, elementwise_affine=False) if options.normalise else nn.Identity()
        self.activation = ACTIVATIONS[options.activation]()
        self.linear = nn.Linear(place.inputs, place.outputs)
        nn.init.zeros_(self.linear.bias)

    def forward(self, fused: Float[Tensor, "B D"]) -> Float[Tensor, "B K"]:
        """The outputs of each sample."""
        outputs: Tensor = self.linear(self.activation(self.norm(fused)))
        return outputs


class MlpOptions(Settings):
    """Size of the hidden layer."""

    hidden: int = Field(default=32, ge=1, le=4096)
    activation: Activation = "relu"


@head_registry.register("mlp", options=MlpOptions)
class MlpHead(nn.Module):
    """One hidden layer, then a linear one whose bias is 0 at the start."""

    def __init__(self, place: HeadPlace, options: MlpOptions) -> None:
        super().__init__()
        self.hidden = nn.Linear(place.inputs, options.hidden)
        self.activation = ACTIVATIONS[options.activation]()
        self.linear = nn.Linear(options.hidden, place.outputs)
        nn.init.zeros_(self.linear.bias)

    def forward(self, fused: Float[Tensor, "B D"]) -> Float[Tensor, "B K"]:
        """The outputs of each sample."""
        outputs: Tensor = self.linear(self.activation(self.hidden(fused)))
        return outputs


class IdentityOptions(Settings):
    """None."""


@head_registry.register("identity", options=IdentityOptions)
class IdentityHead(nn.Module):
    """The fused vector is the answer: with linear encoders and fusion `sum`, plain logistic regression.

    The fewest parameters a model can have, and so the least noise: what to try first under a small epsilon.

    Raises:
        ModelError: the embedding is not as wide as the answer.
    """

    def __init__(self, place: HeadPlace, options: IdentityOptions) -> None:
        super().__init__()
        del options
        if place.inputs != place.outputs:
            raise ModelError(
                f"head 'identity': model.embedding_width is {place.inputs}; allowed: {place.outputs}, the outputs of "
                "the task"
            )

    def forward(self, fused: Float[Tensor, "B K"]) -> Float[Tensor, "B K"]:
        """The fused vectors as they are."""
        return fused
