"""Convolutions: pictures, frames of sound and windows of sensors through strided layers.

in        float [B, C, *places]: one place axis for signals, two for pictures and sounds
out       embeddings [B, D]
relies on GroupNorm, which looks at one sample at a time
"""

import math

from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from shared.model.encoders.projection import sample_norm
from shared.settings import Settings


class ChannelsOptions(Settings):
    """What all convolutional networks have."""

    channels: tuple[int, ...] = Field(default=(16, 32, 32), min_length=1, max_length=6, description="of each layer")
    groups: int = Field(default=4, ge=1, le=64, description="of GroupNorm; each needs two channels or more")
    normalise: bool = Field(default=True, description="the embedding to mean 0 and deviation 1, by itself")

    @model_validator(mode="after")
    def _groups_fit(self) -> "ChannelsOptions":
        wrong = [count for count in self.channels if count < 2 * self.groups or count % self.groups]
        if wrong:
            raise ValueError(f"channels {wrong} with groups {self.groups}; allowed: multiples of it, from twice it on")
        return self


class StagesOptions(ChannelsOptions):
    """Size of a network over pictures; each entry of `channels` is a stage of several layers that halves the sides."""

    channels: tuple[int, ...] = Field(default=(8, 16, 32), min_length=1, max_length=6, description="of each stage")
    grid: int = Field(default=2, ge=1, le=16, description="places a side that are kept apart before the last layer")


class ConvolutionOptions(ChannelsOptions):
    """Size of a small convolutional network; each entry of `channels` is a layer that halves the sides."""

    kernel: int = Field(default=3, ge=1, le=63, description="places a side that a layer looks at")


class Convolutions(nn.Module):
    """Strided convolutions with GroupNorm and ReLU, means over a grid of places, one linear layer.

    Source: the choice of GroupNorm under DP-SGD, De et al. 2022, arXiv:2204.13650.
    """

    def __init__(self, inputs: int, *, width: int, grid: tuple[int, ...], options: ConvolutionOptions) -> None:
        super().__init__()
        convolution, pool = (nn.Conv1d, nn.AdaptiveAvgPool1d) if len(grid) == 1 else (nn.Conv2d, nn.AdaptiveAvgPool2d)
        self.layers = nn.Sequential()
        before, padding = inputs, options.kernel // 2
        for place, after in enumerate(options.channels):
            layer = convolution(before, after, options.kernel, stride=2, padding=padding)
            self.layers.add_module(f"conv{place}", layer)
            self.layers.add_module(f"norm{place}", nn.GroupNorm(options.groups, after))
            self.layers.add_module(f"relu{place}", nn.ReLU())
            before = after
        self.pool = pool(grid)
        self.linear = nn.Linear(before * math.prod(grid), width)
        self.norm = sample_norm(width, on=options.normalise)

    def forward(self, values: Float[Tensor, "B C *places"]) -> Float[Tensor, "B D"]:
        """The embedding of each sample."""
        embeddings: Tensor = self.norm(self.linear(self.pool(self.layers(values)).flatten(1)))
        return embeddings
