"""Audio encoder `conformer`: attention for what is far apart in a recording, convolution for what is near.

in        float [B, F, T] from preprocess/audio.py
out       embeddings [B, D]
relies on Linear, Conv1d, GroupNorm and LayerNorm, each called once on all frames of each sample
"""

import math

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from shared.model.attention import attended
from shared.model.encoders.projection import sample_norm
from shared.model.registry import EncoderPart, EncoderPlace, encoder_registry
from shared.preprocess.audio import AudioOptions, AudioPreprocessor
from shared.settings import Settings


class ConformerOptions(Settings):
    """Size of the conformer."""

    token_width: int = Field(default=32, ge=2, le=1024)
    layers: int = Field(default=1, ge=1, le=12)
    heads: int = Field(default=2, ge=1, le=16, description="must divide token_width")
    hidden: int = Field(default=64, ge=1, le=4096, description="width inside a feed-forward part")
    kernel: int = Field(default=7, ge=1, le=63, description="steps that a convolution looks at; odd")
    groups: int = Field(default=4, ge=1, le=64, description="of GroupNorm; must divide token_width")
    frames_per_step: int = Field(default=4, ge=1, le=64, description="frames that the first layer makes one step")
    normalise: bool = Field(default=True, description="the embedding to mean 0 and deviation 1, by itself")

    @model_validator(mode="after")
    def _sizes_fit(self) -> "ConformerOptions":
        if self.token_width % self.heads or self.token_width % self.groups:
            raise ValueError(
                f"heads {self.heads} and groups {self.groups}: allowed: divisors of token_width, {self.token_width}"
            )
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel is {self.kernel}; allowed: an odd number, so that a step stands in its middle")
        return self


class FeedForward(nn.Module):
    """Each step by itself: norm, a wider layer, Swish, a narrower one."""

    def __init__(self, width: int, *, hidden: int) -> None:
        super().__init__()
        self.norm, self.widen, self.narrow = nn.LayerNorm(width), nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, steps: Float[Tensor, "B N W"]) -> Float[Tensor, "B N W"]:
        """What is added to the steps."""
        thought: Tensor = self.narrow(nn.functional.silu(self.widen(self.norm(steps))))
        return thought


class StepsConvolution(nn.Module):
    """Each step with its neighbours, channel by channel, between two layers that mix the channels."""

    def __init__(self, width: int, *, kernel: int, groups: int) -> None:
        super().__init__()
        self.norm, self.widen = nn.LayerNorm(width), nn.Linear(width, 2 * width)
        self.depth = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=width)
        self.depth_norm, self.narrow = nn.GroupNorm(groups, width), nn.Linear(width, width)

    def forward(self, steps: Float[Tensor, "B N W"]) -> Float[Tensor, "B N W"]:
        """What is added to the steps."""
        let_through = nn.functional.glu(self.widen(self.norm(steps)), dim=2).transpose(1, 2)
        found = nn.functional.silu(self.depth_norm(self.depth(let_through))).transpose(1, 2)
        mixed: Tensor = self.narrow(found)
        return mixed


class ConformerBlock(nn.Module):
    """Half a feed-forward part, attention, convolution, the other half, and a norm.

    Source: Gulati et al. 2020, arXiv:2005.08100, section 2.4.
    """

    def __init__(self, options: ConformerOptions) -> None:
        super().__init__()
        width = options.token_width
        self.heads = options.heads
        self.first = FeedForward(width, hidden=options.hidden)
        self.attention_norm = nn.LayerNorm(width)
        self.query_key_value, self.mix = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.near = StepsConvolution(width, kernel=options.kernel, groups=options.groups)
        self.second = FeedForward(width, hidden=options.hidden)
        self.norm = nn.LayerNorm(width)

    def forward(self, steps: Float[Tensor, "B N W"]) -> Float[Tensor, "B N W"]:
        """The steps after they have looked far and near."""
        there = steps.new_ones(steps.shape[:2], dtype=torch.bool)
        steps = steps + 0.5 * self.first(steps)
        steps = steps + self.mix(attended(self.query_key_value(self.attention_norm(steps)), there, heads=self.heads))
        steps = steps + self.near(steps)
        normed: Tensor = self.norm(steps + 0.5 * self.second(steps))
        return normed


class Conformer(nn.Module):
    """A strided convolution that makes a few frames one step, blocks, and the mean over the steps."""

    def __init__(self, inputs: int, *, width: int, options: ConformerOptions) -> None:
        super().__init__()
        stride = options.frames_per_step
        self.token = nn.Conv1d(inputs, options.token_width, 2 * stride - 1, stride=stride, padding=stride - 1)
        self.blocks = nn.ModuleList(ConformerBlock(options) for _ in range(options.layers))
        self.linear = nn.Linear(options.token_width, width)
        self.norm = sample_norm(width, on=options.normalise)

    def forward(self, frames: Float[Tensor, "B F T"]) -> Float[Tensor, "B D"]:
        """The embedding of each recording."""
        steps = self.token(frames).transpose(1, 2)
        steps = steps + waves(steps.shape[1], width=steps.shape[2]).to(steps)
        for block in self.blocks:
            steps = block(steps)
        embeddings: Tensor = self.norm(self.linear(steps.mean(dim=1)))
        return embeddings


def waves(count: int, *, width: int) -> Float[Tensor, "N W"]:
    """A vector for each place, without weights: sines and cosines of rising length.

    Source: Vaswani et al. 2017, arXiv:1706.03762, section 3.5.
    """
    lengths = torch.exp(torch.arange(0, width, 2) * (-math.log(10_000.0) / width))
    angles = torch.arange(count)[:, None] * lengths
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)[:, :width]


@encoder_registry.register("conformer", options=ConformerOptions, takes="audio")
def conformer(place: EncoderPlace, options: ConformerOptions) -> EncoderPart:
    """A small conformer over log-mel frames, trained from its first weights.

    Source: Gulati et al. 2020, arXiv:2005.08100, section 2. Ours differs: GroupNorm over a recording's own steps in the
    place of BatchNorm, places as waves added once and not relative to each other, no dropout inside.
    """
    sounds = AudioPreprocessor(place.preprocess(AudioOptions))
    return EncoderPart(
        preprocessor=sounds, module=lambda: Conformer(sounds.shape[0], width=place.width, options=options)
    )
