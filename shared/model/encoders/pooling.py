"""Pooling over time: the embeddings of a clip's frames become one.

in        embeddings [B, T, W] of T frames
out       embeddings [B, D]
relies on LinearLstm and TransformerBlock, whose per-sample gradients every engine computes exactly
"""

from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from shared.model.attention import TransformerBlock
from shared.model.encoders.projection import sample_norm
from shared.model.encoders.recurrent import LinearLstm
from shared.model.encoders.text import token_embedding
from shared.settings import Settings


class PoolingOptions(Settings):
    """How frames become one embedding."""

    pool: Literal["mean", "lstm", "transformer"] = "mean"
    frame_width: int = Field(default=0, ge=0, le=4096, description="of a frame's embedding; 0: that of the clip's")
    hidden: int = Field(default=32, ge=1, le=4096, description="lstm: of the state; transformer: inside a layer")
    layers: int = Field(default=1, ge=1, le=12, description="transformer only")
    heads: int = Field(default=2, ge=1, le=16, description="transformer only: must divide the frames' width")
    normalise: bool = Field(default=True, description="the clip's embedding to mean 0 and deviation 1, by itself")

    @model_validator(mode="after")
    def _fits_pool(self) -> "PoolingOptions":
        if self.pool == "mean" and self.frame_width:
            raise ValueError(
                f"frame_width is {self.frame_width}; allowed with pool = 'mean': 0, as a mean is as wide as the frames"
            )
        return self


class MeanPooling(nn.Module):
    """The mean over the frames, which has no weights and is blind to order."""

    def __init__(self, *, width: int, options: PoolingOptions) -> None:
        super().__init__()
        self.norm = sample_norm(width, on=options.normalise)

    def forward(self, frames: Float[Tensor, "B T D"]) -> Float[Tensor, "B D"]:
        """The embedding of each clip."""
        embeddings: Tensor = self.norm(frames.mean(dim=1))
        return embeddings


class TimePooling(nn.Module):
    """What of an encoder of clips learns from the order of frames, in every mode."""


class LstmPooling(TimePooling):
    """A recurrent network over the frames, the mean of its states, and one linear layer."""

    def __init__(self, inputs: int, *, width: int, options: PoolingOptions) -> None:
        super().__init__()
        self.lstm = LinearLstm(inputs, hidden=options.hidden)
        self.linear = nn.Linear(options.hidden, width)
        self.norm = sample_norm(width, on=options.normalise)

    def forward(self, frames: Float[Tensor, "B T W"]) -> Float[Tensor, "B D"]:
        """The embedding of each clip."""
        embeddings: Tensor = self.norm(self.linear(self.lstm(frames)))
        return embeddings


class TransformerPooling(TimePooling):
    """A pre-norm transformer over the frames with a vector for each place, the mean of its tokens, one linear layer."""

    def __init__(self, inputs: int, *, frames: int, width: int, options: PoolingOptions) -> None:
        super().__init__()
        self.place = token_embedding(frames, width=inputs)
        self.layers = nn.ModuleList(
            TransformerBlock(inputs, heads=options.heads, hidden=options.hidden) for _ in range(options.layers)
        )
        self.token_norm = nn.LayerNorm(inputs)
        self.linear = nn.Linear(inputs, width)
        self.norm = sample_norm(width, on=options.normalise)

    def forward(self, frames: Float[Tensor, "B T W"]) -> Float[Tensor, "B D"]:
        """The embedding of each clip."""
        batch, count = frames.shape[:2]
        # counted per sample, so that the place embedding has a gradient for each
        tokens = frames + self.place(torch.arange(count, device=frames.device).expand(batch, count))
        there = tokens.new_ones(batch, count, dtype=torch.bool)
        for layer in self.layers:
            tokens = layer(tokens, there)
        embeddings: Tensor = self.norm(self.linear(self.token_norm(tokens).mean(dim=1)))
        return embeddings


def build_pooling(inputs: int, *, frames: int, width: int, options: PoolingOptions) -> nn.Module:
    """From [B, frames, inputs] to [B, width]; the mean wants the two to be the same."""
    if options.pool == "lstm":
        return LstmPooling(inputs, width=width, options=options)
    if options.pool == "transformer":
        return TransformerPooling(inputs, frames=frames, width=width, options=options)
    return MeanPooling(width=width, options=options)
