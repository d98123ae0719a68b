"""Encoders `vit` and `ast`: pictures, and frames of sound as pictures, cut into patches that look at each other.

in        float [B, C, S, S] from preprocess/image.py, or [B, F, T] from preprocess/audio.py
out       embeddings [B, D]
relies on attention.py; places have an Embedding and no parameter of their own, so that each sample has its gradient
"""

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from shared.errors import ModelError
from shared.model.attention import TransformerBlock
from shared.model.encoders.projection import sample_norm
from shared.model.encoders.text import token_embedding
from shared.model.registry import EncoderPart, EncoderPlace, encoder_registry
from shared.preprocess.audio import AudioOptions, AudioPreprocessor
from shared.preprocess.image import ImageOptions, ImagePreprocessor
from shared.settings import Settings


class PatchOptions(Settings):
    """Size of a transformer over patches."""

    token_width: int = Field(default=32, ge=2, le=1024)
    layers: int = Field(default=2, ge=1, le=12)
    heads: int = Field(default=2, ge=1, le=16, description="must divide token_width")
    hidden: int = Field(default=64, ge=1, le=4096, description="width inside a layer")
    normalise: bool = Field(default=True, description="the embedding to mean 0 and deviation 1, by itself")


class VitOptions(PatchOptions):
    """Size of the transformer over a picture's patches."""

    patch: int = Field(default=4, ge=1, le=64, description="pixels a side of a patch; must divide preprocess.size")


class AstOptions(PatchOptions):
    """Size of the transformer over patches of bands and frames."""

    patch_bands: int = Field(default=8, ge=1, le=256, description="bands of a patch; the last that fill none are cut")
    patch_frames: int = Field(default=8, ge=1, le=256, description="frames of a patch; the last that fill none are cut")


class PatchTransformer(nn.Module):
    """Patches through one linear layer, places added, a pre-norm transformer, and the mean of the tokens."""

    def __init__(
        self, inputs: int, *, sides: tuple[int, int], patch: tuple[int, int], width: int, options: PatchOptions
    ) -> None:
        super().__init__()
        count = (sides[0] // patch[0]) * (sides[1] // patch[1])
        # a convolution whose steps are as long as its kernel is that linear layer
        self.token = nn.Conv2d(inputs, options.token_width, patch, stride=patch)
        self.place = token_embedding(count, width=options.token_width)
        self.layers = nn.ModuleList(
            TransformerBlock(options.token_width, heads=options.heads, hidden=options.hidden)
            for _ in range(options.layers)
        )
        self.token_norm = nn.LayerNorm(options.token_width)
        self.linear = nn.Linear(options.token_width, width)
        self.norm = sample_norm(width, on=options.normalise)

    def forward(self, pictures: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D"]:
        """The embedding of each picture."""
        tokens = self.token(pictures).flatten(2).transpose(1, 2)
        batch, count = tokens.shape[:2]
        # counted per sample, so that the place embedding has a gradient for each
        tokens = tokens + self.place(torch.arange(count, device=tokens.device).expand(batch, count))
        there = tokens.new_ones(batch, count, dtype=torch.bool)
        for layer in self.layers:
            tokens = layer(tokens, there)
        embeddings: Tensor = self.norm(self.linear(self.token_norm(tokens).mean(dim=1)))
        return embeddings


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
        ModelError: the heads do not divide the width, or the patches the picture.
    """
    pictures = ImagePreprocessor(place.preprocess(ImageOptions))
    channels, *sides = pictures.shape
    if sides[0] % options.patch:
        raise ModelError(
            f"encoder 'vit': patch is {options.patch}; allowed: a divisor of preprocess.size, which is {sides[0]}"
        )
    _check_heads(options, encoder="vit")
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
        ModelError: the heads do not divide the width, or a patch is larger than the picture.
    """
    sounds = AudioPreprocessor(place.preprocess(AudioOptions))
    bands, frames = sounds.shape
    if options.patch_bands > bands or options.patch_frames > frames:
        raise ModelError(
            f"encoder 'ast': a patch has {options.patch_bands} bands and {options.patch_frames} frames; allowed: at "
            f"most {bands} and {frames}, which a recording has"
        )
    _check_heads(options, encoder="ast")
    patch = (options.patch_bands, options.patch_frames)
    return EncoderPart(
        preprocessor=sounds,
        module=lambda: SpectrogramTransformer(sides=(bands, frames), patch=patch, width=place.width, options=options),
    )


def _check_heads(options: PatchOptions, *, encoder: str) -> None:
    if options.token_width % options.heads:
        raise ModelError(
            f"encoder {encoder!r}: heads is {options.heads}; allowed: a divisor of token_width, which is "
            f"{options.token_width}"
        )
