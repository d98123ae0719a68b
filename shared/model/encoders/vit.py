"""Encoders `vit` and `ast`: pictures, and frames of sound as pictures, cut into patches that look at each other.

in        float [B, C, S, S] from preprocess/image.py, or [B, F, T] from preprocess/audio.py
out       embeddings [B, D]
relies on transformer.py for what is done with the patches
"""

from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from shared.errors import ModelError
from shared.model.encoders.transformer import TokenTransformer, TransformerOptions
from shared.model.registry import EncoderPart, EncoderPlace, encoder_registry
from shared.preprocess.audio import AudioOptions, AudioPreprocessor
from shared.preprocess.image import ImageOptions, ImagePreprocessor


class PatchOptions(TransformerOptions):
    """Size of a transformer over patches."""

    layers: int = Field(default=2, ge=1, le=12)


class VitOptions(PatchOptions):
    """Size of the transformer over a picture's patches."""

    patch: int = Field(default=4, ge=1, le=64, description="pixels a side of a patch; must divide preprocess.size")


class AstOptions(PatchOptions):
    """Size of the transformer over patches of bands and frames."""

    patch_bands: int = Field(default=8, ge=1, le=256, description="bands of a patch; the last that fill none are cut")
    patch_frames: int = Field(default=8, ge=1, le=256, description="frames of a patch; the last that fill none are cut")


class PatchTransformer(TokenTransformer):
    """Patches, each through one linear layer, as the tokens of a transformer."""

    token: nn.Conv2d

    def __init__(
        self, inputs: int, *, sides: tuple[int, int], patch: tuple[int, int], width: int, options: PatchOptions
    ) -> None:
        # a convolution whose steps are as long as its kernel is that linear layer
        token = nn.Conv2d(inputs, options.token_width, patch, stride=patch)
        count = (sides[0] // patch[0]) * (sides[1] // patch[1])
        super().__init__(token, places=count, token_width=options.token_width, width=width, options=options)

    def forward(self, pictures: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D"]:
        """The embedding of each picture."""
        return self.embedded(self.token(pictures).flatten(2).transpose(1, 2))


class SpectrogramTransformer(nn.Module):
    """Frames as a picture of one channel, cut into patches."""

    def __init__(self, *, sides: tuple[int, int], patch: tuple[int, int], width: int, options: PatchOptions) -> None:
        super().__init__()
        self.patches = PatchTransformer(1, sides=sides, patch=patch, width=width, options=options)

    def forward(self, frames: Float[Tensor, "B F T"]) -> Float[Tensor, "B D"]:
        """The embedding of each recording."""
        embeddings: Tensor = self.patches(frames[:, None])
        return embeddings


@encoder_registry.register("vit", options=VitOptions, takes="image")
def vit(place: EncoderPlace, options: VitOptions) -> EncoderPart:
    """A small vision transformer, trained from its first weights.

    Source: Dosovitskiy et al. 2020, arXiv:2010.11929, section 3.1. Ours differs: the mean of the tokens in the place of
    a class token (their appendix D.3), whose weights would belong to no layer.

    Raises:
        ModelError: the patches do not divide the picture.
    """
    pictures = ImagePreprocessor(place.preprocess(ImageOptions))
    channels, *sides = pictures.shape
    if sides[0] % options.patch:
        raise ModelError(
            f"encoder 'vit': patch is {options.patch}; allowed: a divisor of preprocess.size, which is {sides[0]}"
        )
    patch = (options.patch, options.patch)
    return EncoderPart(
        preprocessor=pictures,
        module=lambda: PatchTransformer(
            channels, sides=(sides[0], sides[1]), patch=patch, width=place.width, options=options
        ),
    )


@encoder_registry.register("ast", options=AstOptions, takes="audio")
def ast(place: EncoderPlace, options: AstOptions) -> EncoderPart:
    """A small transformer over patches of the log-mel picture, trained from its first weights.

    Source: Gong et al. 2021, arXiv:2104.01778, section 2.1. Ours differs: patches that do not overlap, the mean of the
    tokens in the place of a class token, and no weights from pictures.

    Raises:
        ModelError: a patch is larger than the picture.
    """
    sounds = AudioPreprocessor(place.preprocess(AudioOptions))
    bands, frames = sounds.shape
    if options.patch_bands > bands or options.patch_frames > frames:
        raise ModelError(
            f"encoder 'ast': a patch has {options.patch_bands} bands and {options.patch_frames} frames; allowed: at "
            f"most {bands} and {frames}, which a recording has"
        )
    patch = (options.patch_bands, options.patch_frames)
    return EncoderPart(
        preprocessor=sounds,
        module=lambda: SpectrogramTransformer(sides=(bands, frames), patch=patch, width=place.width, options=options),
    )
