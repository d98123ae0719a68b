"""Image segmentation: what stands out in one picture, found from its own brightness.

in        a Pillow picture in mode RGB or L
out       a mask of its size (mode L, 255: foreground), its bounding box, or the picture with its background blanked
relies on public settings and on the picture itself; nothing is learned
"""

from typing import Literal

import numpy as np
from PIL import Image
from pydantic import Field

from shared.preprocess.image_scikit import edge_mask, otsu_mask
from shared.settings import Settings


class SegmentOptions(Settings):
    """What counts as foreground, and what is done with it."""

    segment: Literal["none", "otsu", "edge"] = Field(
        default="none", description="otsu: by brightness; edge: what closed edges (Canny) surround"
    )
    segment_as: Literal["mask", "channel", "crop"] = Field(
        default="mask",
        description="mask: the background becomes `fill`; channel: the mask is one more channel; crop: to its box",
    )
    segment_side: Literal["auto", "light", "dark"] = Field(
        default="auto", description="otsu only: which side is foreground; auto: the one that is rarer on the border"
    )
    segment_sigma: float = Field(default=1.0, gt=0, le=16, description="edge only: smoothing before, in pixels")
    segment_margin: float = Field(default=0.05, ge=0, le=1, description="crop only: added all round, share of the box")

    @property
    def adds_channel(self) -> bool:
        """Whether a finished picture has the mask as a further channel."""
        return self.segment != "none" and self.segment_as == "channel"


def foreground(picture: Image.Image, *, options: SegmentOptions) -> Image.Image:
    """The mask of the picture's foreground; where nothing stands out, all of the picture is foreground.

    Source: threshold: Otsu 1979, IEEE Transactions on Systems, Man, and Cybernetics 9(1), 62-66; edges: Canny 1986,
    IEEE PAMI 8(6), 679-698; both as in scikit-image. Edges are closed over gaps of two pixels and filled.
    """
    grey = np.asarray(picture.convert("L"))
    mask = np.zeros(grey.shape, dtype=np.bool_)
    if grey.min() != grey.max():
        mask = (
            otsu_mask(grey, side=options.segment_side)
            if options.segment == "otsu"
            else edge_mask(grey, sigma=options.segment_sigma)
        )
    if not mask.any():
        mask[:] = True
    return Image.fromarray(mask.astype(np.uint8) * np.uint8(255))


def cropped(picture: Image.Image, *, mask: Image.Image, options: SegmentOptions) -> Image.Image:
    """The part of the picture that the mask's bounding box and a margin around it cover."""
    left, top, right, bottom = mask.getbbox() or (0, 0, *picture.size)
    wide, high = round(options.segment_margin * (right - left)), round(options.segment_margin * (bottom - top))
    return picture.crop(
        (max(0, left - wide), max(0, top - high), min(picture.width, right + wide), min(picture.height, bottom + high))
    )


def blanked(picture: Image.Image, *, mask: Image.Image, fill: int) -> Image.Image:
    """The picture with one grey wherever the mask is 0."""
    background = Image.new("L", picture.size, fill).convert(picture.mode)
    return Image.composite(picture, background, mask)
