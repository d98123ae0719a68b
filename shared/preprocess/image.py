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
from shared.settings import Settings


class ImageOptions(Settings):
    """How pictures become equal squares."""

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
        self.shape = (3 if options.mode == "RGB" else 1, options.size, options.size)
        self.digest = digest_of("image", version=1, settings=options)

    def read(self, value: RawValue) -> UInt8[Tensor, "C S S"]:
        """The picture in the run's size and mode, one byte a pixel and channel."""
        if not isinstance(value, Image.Image):
            raise wrong_kind(value, wanted="an image")
        size, method = (self.options.size, self.options.size), Image.Resampling.BICUBIC
        picture = value.convert(self.options.mode)
        if self.options.fit == "stretch":
            picture = picture.resize(size, method)
        elif self.options.fit == "crop":
            picture = ImageOps.fit(picture, size, method)
        else:
            fill = (self.options.fill,) * self.shape[0]
            picture = ImageOps.pad(picture, size, method, color=fill if self.shape[0] == 3 else fill[0])
        pixels = np.array(picture, dtype=np.uint8).reshape(self.options.size, self.options.size, self.shape[0])
        return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()

    def finish(self, values: UInt8[Tensor, "B C S S"]) -> Float[Tensor, "B C S S"]:
        """Pixels as floats around zero."""
        return (values.float() - self.options.center) / self.options.spread
