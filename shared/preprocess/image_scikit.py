"""Steps on one grey picture that Pillow lacks. The only door to scikit-image.

in        uint8 [H, W] of one picture, not all of one grey
out       the picture with an even histogram, or the mask of its foreground
relies on scikit-image, which is imported only where a run asks for such a step
"""

import importlib
from typing import Literal

import numpy as np
from jaxtyping import Bool, UInt8

_EDGE_SHARES = (0.1, 0.2)
"""Canny's two thresholds, as shares of the full range of brightness: scikit-image's own"""
_FRAME = 4
"""pixels put around a picture before its edges are looked for"""


def adaptively_equalised(grey: UInt8[np.ndarray, "H W"], *, tiles: int, limit: float) -> UInt8[np.ndarray, "H W"]:
    """The picture with its histogram made even tile by tile; `limit` is the largest share of a tile in one level.

    Source: contrast-limited adaptive histogram equalisation: Zuiderveld 1994, Graphics Gems IV.
    """
    tile = [max(1, -(-side // tiles)) for side in grey.shape]
    exposure = importlib.import_module("skimage.exposure")
    even = exposure.equalize_adapthist(grey, kernel_size=tile, clip_limit=limit)
    return np.asarray(np.rint(even * 255).clip(0, 255), dtype=np.uint8)


def otsu_mask(grey: UInt8[np.ndarray, "H W"], *, side: Literal["auto", "light", "dark"]) -> Bool[np.ndarray, "H W"]:
    """What is lighter, or darker, than the grey that parts the picture's two groups of greys best.

    Source: Otsu 1979, IEEE Transactions on Systems, Man, and Cybernetics 9(1), 62-66.
    """
    filters = importlib.import_module("skimage.filters")
    light = np.asarray(grey > filters.threshold_otsu(grey))
    if side == "auto":
        border = np.concatenate([light[0], light[-1], light[:, 0], light[:, -1]])
        side = "dark" if border.mean() > 0.5 else "light"
    return light if side == "light" else ~light


def edge_mask(grey: UInt8[np.ndarray, "H W"], *, sigma: float) -> Bool[np.ndarray, "H W"]:
    """What edges surround, closed over gaps of two pixels; `sigma` smooths before, in pixels.

    Source: Canny 1986, IEEE Transactions on Pattern Analysis and Machine Intelligence 8(6), 679-698.
    """
    feature = importlib.import_module("skimage.feature")
    morphology = importlib.import_module("skimage.morphology")
    measure = importlib.import_module("scipy.ndimage")
    low, high = _EDGE_SHARES
    # a frame in the usual grey of the border, so that an object at the rim has an edge there to be closed along
    usual = float(np.median(np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]]))) / 255
    wide = np.pad(grey.astype(np.float64) / 255, _FRAME, constant_values=usual)
    edges = feature.canny(wide, sigma=sigma, low_threshold=low, high_threshold=high)
    closed = morphology.closing(edges, morphology.disk(2))
    return np.asarray(measure.binary_fill_holes(closed), dtype=np.bool_)[_FRAME:-_FRAME, _FRAME:-_FRAME]
