"""Transformer: what the encoders of words, of patches and of frames share behind their first layer.

in        tokens [B, N, W], and there [B, N] where some samples have fewer
out       embeddings [B, D]
relies on TransformerBlock, and on places having an Embedding and no parameter of their own, so that each sample has
          its gradient
"""

import torch
from jaxtyping import Bool, Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from shared.model.attention import TransformerBlock, masked_mean
from shared.model.encoders.projection import sample_norm
from shared.settings import Settings


class LayersOptions(Settings):
    """What all transformers have."""

    layers: int = Field(default=1, ge=1, le=12)
    heads: int = Field(default=2, ge=1, le=16, description="must divide the tokens' width")
    hidden: int = Field(default=64, ge=1, le=4096, description="width inside a layer")
    normalise: bool = Field(default=True, description="the embedding to mean 0 and deviation 1, by itself")


class TransformerOptions(LayersOptions):
    """Size of a small transformer whose tokens are made by a layer of its own."""

    token_width: int = Field(default=32, ge=2, le=1024)

    @model_validator(mode="after")
    def _heads_fit(self) -> "TransformerOptions":
        if self.token_width % self.heads:
            raise ValueError(f"heads is {self.heads}; allowed: a divisor of token_width, which is {self.token_width}")
        return self


class TokenTransformer(nn.Module):
    """Tokens, a vector added for the place of each, through a pre-norm transformer; their mean, and one linear layer.

    Args:
        token: the layer that makes the tokens, which whoever inherits this calls in `forward`.
        places: most tokens of a sample.
        token_width: of a token, W; `options.heads` must divide it.
        width: of the embedding, D.
    """

    def __init__(self, token: nn.Module, *, places: int, token_width: int, width: int, options: LayersOptions) -> None:
        super().__init__()
        self.token = token
        self.place = token_embedding(places, width=token_width)
        self.layers = nn.ModuleList(
            TransformerBlock(token_width, heads=options.heads, hidden=options.hidden) for _ in range(options.layers)
        )
        self.token_norm = nn.LayerNorm(token_width)
        self.linear = nn.Linear(token_width, width)
        self.norm = sample_norm(width, on=options.normalise)

    def embedded(
        self, tokens: Float[Tensor, "B N W"], *, there: Bool[Tensor, "B N"] | None = None
    ) -> Float[Tensor, "B D"]:
        """The embedding of each sample from the tokens that are there; from all of them where nothing is said."""
        if there is None:
            there = tokens.new_ones(tokens.shape[:2], dtype=torch.bool)
        # counted per sample, so that the place embedding has a gradient for each
        tokens = tokens + self.place(torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape[:2]))
        for layer in self.layers:
            tokens = layer(tokens, there)
        embeddings: Tensor = self.norm(self.linear(masked_mean(self.token_norm(tokens), there)))
        return embeddings


def token_embedding(num_ids: int, *, width: int) -> nn.Embedding:
    """A table of vectors of about length 1, so that few steps can turn them."""
    table = nn.Embedding(num_ids, width)
    nn.init.normal_(table.weight, std=width**-0.5)
    return table
