"""Image enhancement: noise, contrast, histogram and edges of one picture, each step only where the run asks for it.

in        a Pillow picture in mode RGB or L, reduced to a working size by image.py
out       a picture of the same size and mode
relies on public settings and on the picture itself; no step looks at another picture
"""

from typing import Literal

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from pydantic import Field, field_validator

from shared.preprocess.image_scikit import adaptively_equalised
from shared.settings import Settings


class EnhanceOptions(Settings):
    """Which steps a picture passes, in the order in which they stand here."""

    denoise: Literal["none", "median", "gaussian"] = Field(default="none", description="how single noisy pixels go")
    denoise_size: int = Field(default=3, ge=3, le=15, description="median only: side of the window in pixels, odd")
    denoise_sigma: float = Field(default=1.0, gt=0, le=16, description="gaussian only: deviation in pixels")
    contrast: Literal["none", "auto", "factor"] = Field(
        default="none", description="auto: stretched to the full range; factor: multiplied around the mean grey"
    )
    contrast_cutoff: float = Field(default=1.0, ge=0, lt=50, description="auto only: per cent cut off at either end")
    contrast_factor: float = Field(default=1.5, gt=0, le=10, description="factor only: below 1 flattens")
    equalise: Literal["none", "global", "adaptive"] = Field(
        default="none", description="histogram of brightness made even: over the whole picture, or by tiles (CLAHE)"
    )
    equalise_tiles: int = Field(default=8, ge=1, le=32, description="adaptive only: tiles a side")
    equalise_limit: float = Field(default=0.01, gt=0, le=1, description="adaptive only: most of a tile in one level")
    sharpen: float = Field(default=0.0, ge=0, le=5, description="share of the unsharp mask that is added; 0: none")
    sharpen_radius: float = Field(default=2.0, gt=0, le=16, description="deviation of the unsharp mask in pixels")

    @field_validator("denoise_size")
    @classmethod
    def _has_a_middle(cls, size: int) -> int:
        if size % 2 == 0:
            raise ValueError("an even window has no middle; allowed: 3, 5, 7, 9, 11, 13, 15")
        return size

    @property
    def enhances(self) -> bool:
        """Whether any step changes pictures."""
        return (self.denoise, self.contrast, self.equalise) != ("none", "none", "none") or self.sharpen > 0


def enhanced(picture: Image.Image, *, options: EnhanceOptions) -> Image.Image:
    """The picture after the steps that are asked for; size and mode stay.

    Contrast and histogram change brightness only, so that colours keep their hue. A picture of one colour stays as it
    is through all steps.

    Source: unsharp mask and stretching as in Pillow; contrast-limited adaptive histogram equalisation: Zuiderveld
    1994, Graphics Gems IV, as in scikit-image.
    """
    if options.denoise == "median":
        picture = picture.filter(ImageFilter.MedianFilter(options.denoise_size))
    elif options.denoise == "gaussian":
        picture = picture.filter(ImageFilter.GaussianBlur(options.denoise_sigma))
    if options.contrast == "auto":
        picture = ImageOps.autocontrast(picture, cutoff=options.contrast_cutoff, preserve_tone=True)
    elif options.contrast == "factor":
        picture = ImageEnhance.Contrast(picture).enhance(options.contrast_factor)
    if options.equalise != "none":
        picture = _equalised(picture, options=options)
    if options.sharpen:
        mask = ImageFilter.UnsharpMask(radius=options.sharpen_radius, percent=round(100 * options.sharpen), threshold=0)
        picture = picture.filter(mask)
    return picture


def _equalised(picture: Image.Image, *, options: EnhanceOptions) -> Image.Image:
    if picture.mode != "L":
        brightness, *colours = picture.convert("YCbCr").split()
        even = _equalised(brightness, options=options)
        return Image.merge("YCbCr", (even, *colours)).convert(picture.mode)
    lowest, highest = picture.getextrema()
    if lowest == highest:
        return picture
    if options.equalise == "global":
        return ImageOps.equalize(picture)
    grey = np.asarray(picture)
    return Image.fromarray(adaptively_equalised(grey, tiles=options.equalise_tiles, limit=options.equalise_limit))
