"""Image encoder `resnet`: convolutions whose outputs are added to what went in.

in        float [B, C, S, S] from preprocess/image.py
out       embeddings [B, D]
relies on GroupNorm, which looks at one sample at a time
"""

from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from shared.model.encoders.convolution import StagesOptions
from shared.model.encoders.projection import sample_norm
from shared.model.registry import EncoderPart, EncoderPlace, encoder_registry
from shared.preprocess.image import ImageOptions, ImagePreprocessor


class ResNetOptions(StagesOptions):
    """Size of the residual network."""

    blocks: int = Field(default=1, ge=1, le=8, description="of two convolutions each, a stage")


class ResidualBlock(nn.Module):
    """Two convolutions of 3 x 3, added to what went in, which a convolution of 1 x 1 fits where the shape changes."""

    def __init__(self, inputs: int, outputs: int, *, stride: int, groups: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.first_norm = nn.GroupNorm(groups, outputs)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.second_norm = nn.GroupNorm(groups, outputs)
        same = stride == 1 and inputs == outputs
        self.shortcut = None if same else nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)
        self.shortcut_norm = None if same else nn.GroupNorm(groups, outputs)

    def forward(self, values: Float[Tensor, "B C H W"]) -> Float[Tensor, "B E H2 W2"]:
        """The sum, never below 0."""
        found = self.second_norm(self.second(self.first_norm(self.first(values)).relu()))
        if self.shortcut is not None and self.shortcut_norm is not None:
            values = self.shortcut_norm(self.shortcut(values))
        added: Tensor = (found + values).relu()
        return added


class ResNet(nn.Module):
    """A first convolution, stages of residual blocks, means over a grid of places, one linear layer."""

    def __init__(self, inputs: int, *, width: int, options: ResNetOptions) -> None:
        super().__init__()
        before = options.channels[0]
        self.stem = nn.Conv2d(inputs, before, 3, padding=1, bias=False)
        self.stem_norm = nn.GroupNorm(options.groups, before)
        self.blocks = nn.Sequential()
        for stage, after in enumerate(options.channels):
            for place in range(options.blocks):
                block = ResidualBlock(before, after, stride=1 if place else 2, groups=options.groups)
                self.blocks.add_module(f"stage{stage}-{place}", block)
                before = after
        self.pool = nn.AdaptiveAvgPool2d((options.grid, options.grid))
        self.linear = nn.Linear(before * options.grid**2, width)
        self.norm = sample_norm(width, on=options.normalise)

    def forward(self, pictures: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D"]:
        """The embedding of each picture."""
        values = self.blocks(self.stem_norm(self.stem(pictures)).relu())
        embeddings: Tensor = self.norm(self.linear(self.pool(values).flatten(1)))
        return embeddings


@encoder_registry.register("resnet", options=ResNetOptions, takes="image")
def resnet(place: EncoderPlace, options: ResNetOptions) -> EncoderPart:
    """A small residual network, trained from its first weights.

    Source: He et al. 2015, arXiv:1512.03385, sections 3.2 and 4.2. Ours differs: GroupNorm (Wu and He 2018,
    arXiv:1803.08494) in the place of BatchNorm, as De et al. 2022, arXiv:2204.13650; the first stage halves the
    sides as well, and a grid of means is kept in the place of one.
    """
    pictures = ImagePreprocessor(place.preprocess(ImageOptions))
    return EncoderPart(
        preprocessor=pictures, module=lambda: ResNet(pictures.shape[0], width=place.width, options=options)
    )
