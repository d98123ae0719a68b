"""Image preprocessing: any picture becomes a square of the run's size.

in        a Pillow image from media.py
out       uint8 [C, S, S] from read, float32 [C, S, S] around zero from finish
relies on public constants of the run for normalisation; no statistics of the pictures
"""

from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps
from pydantic import Field
from torch import Tensor

from shared.preprocess import RawValue, digest_of, wrong_kind
from shared.preprocess.image_enhance import EnhanceOptions, enhanced
from shared.preprocess.image_segment import SegmentOptions, blanked, cropped, foreground

WORKING_SIZES = 2
"""a picture is enhanced and segmented with its longer side reduced to at most so many times the run's size: details
that the run's size cannot show cost no time, and options in pixels mean the same for a photograph of any camera"""


class ImageOptions(SegmentOptions, EnhanceOptions):
    """How pictures become equal squares, and what is done to each before."""

    size: int = Field(default=32, ge=8, le=1024, description="side of the square, in pixels")
    mode: Literal["RGB", "L"] = Field(default="RGB", description="L: one channel of grey")
    fit: Literal["pad", "crop", "stretch"] = Field(default="pad", description="how a picture that is not square fits")
    fill: int = Field(default=0, ge=0, le=255, description="grey of the padding")
    center: float = Field(default=127.5, description="pixel value that becomes 0")
    spread: float = Field(default=127.5, gt=0, description="pixel values that make 1")


class ImagePreprocessor:
    """Pictures as float squares (value - center) / spread, in [-1, 1] with the default constants."""

    def __init__(self, options: ImageOptions) -> None:
        self.options = options
        self.colours = 3 if options.mode == "RGB" else 1
        self.shape = (self.colours + options.adds_channel, options.size, options.size)
        self.digest = digest_of("image", version=1, settings=options)

    def read(self, value: RawValue) -> UInt8[Tensor, "C S S"]:
        """The picture in the run's size and mode, one byte a pixel and channel; a mask is the last channel."""
        if not isinstance(value, Image.Image):
            raise wrong_kind(value, wanted="an image")
        options, mask = self.options, None
        picture = value.convert(options.mode)
        if options.enhances or options.segment != "none":
            picture = enhanced(_reduced(picture, side=WORKING_SIZES * options.size), options=options)
        if options.segment != "none":
            mask = foreground(picture, options=options)
            if options.segment_as == "crop":
                picture = cropped(picture, mask=mask, options=options)
            elif options.segment_as == "mask":
                picture = blanked(picture, mask=mask, fill=options.fill)
        square = self._square(picture, fill=(options.fill,) * self.colours)
        if mask is not None and options.adds_channel:
            square = torch.cat([square, self._square(mask, fill=(0,))])
        return square

    def _square(self, picture: Image.Image, *, fill: tuple[int, ...]) -> UInt8[Tensor, "C S S"]:
        size, method = (self.options.size, self.options.size), Image.Resampling.BICUBIC
        if self.options.fit == "stretch":
            picture = picture.resize(size, method)
        elif self.options.fit == "crop":
            picture = ImageOps.fit(picture, size, method)
        else:
            picture = ImageOps.pad(picture, size, method, color=fill if len(fill) == 3 else fill[0])
        pixels = np.array(picture, dtype=np.uint8).reshape(self.options.size, self.options.size, len(fill))
        return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()

    def finish(self, values: UInt8[Tensor, "B C S S"]) -> Float[Tensor, "B C S S"]:
        """Pixels as floats around zero."""
        return (values.float() - self.options.center) / self.options.spread


def _reduced(picture: Image.Image, *, side: int) -> Image.Image:
    share = side / max(picture.size)
    if share >= 1:
        return picture
    width, height = (max(1, round(share * length)) for length in picture.size)
    return picture.resize((width, height), Image.Resampling.BICUBIC)
