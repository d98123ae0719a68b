"""Pooling over time: the embeddings of a clip's frames become one.

in        embeddings [B, T, W] of T frames
out       embeddings [B, D]
relies on LinearLstm and TokenTransformer, whose per-sample gradients every engine computes exactly
"""

from typing import Literal

from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from shared.model.encoders.projection import sample_norm
from shared.model.encoders.recurrent import LinearLstm
from shared.model.encoders.transformer import LayersOptions, TokenTransformer


class PoolingOptions(LayersOptions):
    """How frames become one embedding."""

    pool: Literal["mean", "lstm", "transformer"] = "mean"
    frame_width: int = Field(default=0, ge=0, le=4096, description="of a frame's embedding; 0: that of the clip's")
    hidden: int = Field(default=32, ge=1, le=4096, description="lstm: of the state; transformer: inside a layer")
    layers: int = Field(default=1, ge=1, le=12, description="transformer only")
    heads: int = Field(default=2, ge=1, le=16, description="transformer only: must divide the frames' width")

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


class TransformerPooling(TokenTransformer, TimePooling):
    """The frames as the tokens of a transformer."""

    def __init__(self, inputs: int, *, frames: int, width: int, options: PoolingOptions) -> None:
        super().__init__(nn.Identity(), places=frames, token_width=inputs, width=width, options=options)

    def forward(self, frames: Float[Tensor, "B T W"]) -> Float[Tensor, "B D"]:
        """The embedding of each clip."""
        return self.embedded(self.token(frames))


def build_pooling(inputs: int, *, frames: int, width: int, options: PoolingOptions) -> nn.Module:
    """From [B, frames, inputs] to [B, width]; the mean wants the two to be the same."""
    if options.pool == "lstm":
        return LstmPooling(inputs, width=width, options=options)
    if options.pool == "transformer":
        return TransformerPooling(inputs, frames=frames, width=width, options=options)
    return MeanPooling(width=width, options=options)
