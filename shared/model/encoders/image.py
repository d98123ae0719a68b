"""Image encoders: pictures become embeddings.

in        float [B, C, S, S] from preprocess/image.py, or frozen features [B, 1280] from preprocess/frozen.py
out       embeddings [B, D]
relies on GroupNorm, which looks at one sample at a time
"""

from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from shared.config import Settings
from shared.model.encoders.projection import FrozenOptions, Projection, sample_norm
from shared.model.registry import EncoderPart, EncoderPlace, encoder_registry
from shared.preprocess.frozen import FrozenImageOptions, FrozenImagePreprocessor
from shared.preprocess.image import ImageOptions, ImagePreprocessor
from shared.preprocess.pretrained import efficientnet_checkpoint


class ConvolutionOptions(Settings):
    """Size of a small convolutional network; each entry of `channels` is a layer that halves the sides."""

    channels: tuple[int, ...] = Field(default=(16, 32, 32), min_length=1, max_length=6, description="of each layer")
    groups: int = Field(default=4, ge=1, le=64, description="of GroupNorm; must divide every entry of channels")
    grid: int = Field(default=2, ge=1, le=16, description="places a side that are kept apart before the last layer")
    normalise: bool = Field(default=True, description="the embedding to mean 0 and deviation 1, by itself")


class Convolutions(nn.Module):
    """Strided 3 x 3 convolutions with GroupNorm and ReLU, means over a grid of places, one linear layer.

    Source: the choice of GroupNorm under DP-SGD, De et al. 2022, arXiv:2204.13650, section 3.1.
    """

    def __init__(self, inputs: int, *, width: int, grid: tuple[int, int], options: ConvolutionOptions) -> None:
        super().__init__()
        channels = (inputs, *options.channels)
        self.layers = nn.Sequential()
        for place, (before, after) in enumerate(zip(channels, options.channels, strict=False)):
            self.layers.add_module(f"conv{place}", nn.Conv2d(before, after, 3, stride=2, padding=1))
            self.layers.add_module(f"norm{place}", nn.GroupNorm(options.groups, after))
            self.layers.add_module(f"relu{place}", nn.ReLU())
        self.pool = nn.AdaptiveAvgPool2d(grid)
        self.linear = nn.Linear(channels[-1] * grid[0] * grid[1], width)
        self.norm = sample_norm(width, on=options.normalise)

    def forward(self, pictures: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D"]:
        """The embedding of each picture."""
        embeddings: Tensor = self.norm(self.linear(self.pool(self.layers(pictures)).flatten(1)))
        return embeddings


@encoder_registry.register("cnn", options=ConvolutionOptions, takes="image")
def cnn(place: EncoderPlace, options: ConvolutionOptions) -> EncoderPart:
    """A small convolutional network, trained from its first weights."""
    pictures = ImagePreprocessor(place.preprocess(ImageOptions))
    grid = (options.grid, options.grid)
    return EncoderPart(
        preprocessor=pictures,
        module=lambda: Convolutions(pictures.shape[0], width=place.width, grid=grid, options=options),
    )


@encoder_registry.register("frozen-efficientnet-lite0", options=FrozenOptions, takes="image")
def frozen_efficientnet(place: EncoderPlace, options: FrozenOptions) -> EncoderPart:
    """EfficientNet-Lite0 as it was trained on ImageNet, and one trained layer."""
    pictures = FrozenImagePreprocessor(place.preprocess(FrozenImageOptions), checkpoint=efficientnet_checkpoint())
    return EncoderPart(
        preprocessor=pictures, module=lambda: Projection(pictures.shape[0], width=place.width, options=options)
    )
