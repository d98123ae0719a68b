"""Projection: a vector of fixed numbers becomes an embedding by one small trained layer.

in        vectors [B, F]: features, statistics, or what a frozen network gave
out       embeddings [B, D]
relies on nothing but a Linear layer; the only trained part of encoders that are frozen or made by hand
"""

from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from shared.errors import ModelError
from shared.model.heads import ACTIVATIONS, Activation
from shared.settings import Settings


class ProjectionOptions(Settings):
    """How a vector becomes an embedding."""

    normalise_input: bool = Field(default=False, description="the vector to mean 0 and deviation 1 first, by itself")
    scale: float = Field(default=1.0, gt=0, le=1000, description="the vector times this: its share of the clip norm")
    from_zero: bool = Field(default=False, description="the last layer starts at 0, as logistic regression does")
    hidden: int = Field(default=0, ge=0, le=4096, description="width of a layer in between; 0: none")
    activation: Activation = Field(default="relu", description="of the layer in between")
    normalise: bool = Field(default=False, description="the embedding to mean 0 and deviation 1, by itself")


class FixedVectorOptions(ProjectionOptions):
    """How a vector that nobody trains becomes an embedding: a frozen network's, or statistics.

    Normalised by default: rows of equal length have gradients of like size, of which clipping takes little away, and
    what all rows share does not drown what tells them apart.
    """

    normalise_input: bool = Field(default=True, description="the vector to mean 0 and deviation 1 first, by itself")


class Projection(nn.Module):
    """One linear layer (two, if asked) between per-sample normalisations that have no weights."""

    def __init__(self, inputs: int, *, width: int, options: ProjectionOptions) -> None:
        super().__init__()
        self.input_norm = sample_norm(inputs, on=options.normalise_input)
        self.scale = options.scale
        self.hidden = nn.Linear(inputs, options.hidden) if options.hidden else None
        self.activation = ACTIVATIONS[options.activation]()
        self.linear = nn.Linear(options.hidden or inputs, width)
        if options.from_zero:
            nn.init.zeros_(self.linear.weight)
            nn.init.zeros_(self.linear.bias)
        self.norm = sample_norm(width, on=options.normalise)

    def forward(self, vectors: Float[Tensor, "B F"]) -> Float[Tensor, "B D"]:
        """The embedding of each vector."""
        vectors = self.scale * self.input_norm(vectors)
        if self.hidden is not None:
            vectors = self.activation(self.hidden(vectors))
        embeddings: Tensor = self.norm(self.linear(vectors))
        return embeddings


def sample_norm(width: int, *, on: bool) -> nn.Module:
    """Each vector to mean 0 and deviation 1 by itself, without weights; or nothing.

    Raises:
        ModelError: the vector has one number, which this would always make 0.
    """
    if on and width < 2:
        raise ModelError("normalise is true for a vector of width 1; allowed: false, or a width of 2 and more")
    return nn.LayerNorm(width, elementwise_affine=False) if on else nn.Identity()
