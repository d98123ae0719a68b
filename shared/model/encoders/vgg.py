"""Image encoder `vgg`: stages of plain convolutions, each followed by the largest of every four places.

in        float [B, C, S, S] from preprocess/image.py
out       embeddings [B, D]
relies on GroupNorm, which looks at one sample at a time
"""

from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from shared.errors import ModelError
from shared.model.encoders.convolution import StagesOptions
from shared.model.encoders.projection import sample_norm
from shared.model.registry import EncoderPart, EncoderPlace, encoder_registry
from shared.preprocess.image import ImageOptions, ImagePreprocessor


class VggOptions(StagesOptions):
    """Size of the plain network."""

    layers: int = Field(default=2, ge=1, le=4, description="convolutions a stage")


class Vgg(nn.Module):
    """Stages of convolutions of 3 x 3, means over a grid of places, one linear layer."""

    def __init__(self, inputs: int, *, width: int, options: VggOptions) -> None:
        super().__init__()
        self.layers, before = nn.Sequential(), inputs
        for stage, after in enumerate(options.channels):
            for place in range(options.layers):
                name = f"{stage}-{place}"
                self.layers.add_module(f"conv{name}", nn.Conv2d(before, after, 3, padding=1))
                self.layers.add_module(f"norm{name}", nn.GroupNorm(options.groups, after))
                self.layers.add_module(f"relu{name}", nn.ReLU())
                before = after
            self.layers.add_module(f"pool{stage}", nn.MaxPool2d(2))
        self.pool = nn.AdaptiveAvgPool2d((options.grid, options.grid))
        self.linear = nn.Linear(before * options.grid**2, width)
        self.norm = sample_norm(width, on=options.normalise)

    def forward(self, pictures: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D"]:
        """The embedding of each picture."""
        embeddings: Tensor = self.norm(self.linear(self.pool(self.layers(pictures)).flatten(1)))
        return embeddings


@encoder_registry.register("vgg", options=VggOptions, takes="image")
def vgg(place: EncoderPlace, options: VggOptions) -> EncoderPart:
    """A small network of plain convolutions, trained from its first weights.

    Source: Simonyan and Zisserman 2014, arXiv:1409.1556, section 2. Ours differs: GroupNorm after each convolution, a
    sixteenth of the channels, and a grid of means with one linear layer in the place of three.

    Raises:
        ModelError: the picture is too small to be halved so often.
    """
    pictures = ImagePreprocessor(place.preprocess(ImageOptions))
    stages = len(options.channels)
    if pictures.shape[1] < 2**stages:
        raise ModelError(
            f"encoder 'vgg': {stages} stages halve a picture of {pictures.shape[1]} pixels to nothing; allowed: "
            f"preprocess.size of {2**stages} or more, or fewer channels"
        )
    return EncoderPart(preprocessor=pictures, module=lambda: Vgg(pictures.shape[0], width=place.width, options=options))
