"""Heads: the fused vector of a sample becomes the numbers that the task asks for.

in        fused [B, D] from fusion/
out       [B, K] numbers, which tasks.py puts on their scale and judges
relies on nothing but Linear layers
"""

from typing import Literal

from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from shared.errors import ModelError
from shared.model.registry import HeadPlace, head_registry
from shared.settings import Settings

ACTIVATIONS: dict[str, type[nn.Module]] = {"none": nn.Identity, "relu": nn.ReLU, "gelu": nn.GELU, "tanh": nn.Tanh}
Activation = Literal["none", "relu", "gelu", "tanh"]


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
