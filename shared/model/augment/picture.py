"""Picture augmentation: turned, scaled, shifted, mirrored, and changed in light and colour.

in        float [B, C, S, S] around zero and a key for each sample
out       float [B, C, S, S]
relies on preprocess/image.py for which number is black
"""

import math

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from shared.model.augment.base import Augmentation
from shared.settings import Settings


class PictureOptions(Settings):
    """How far a picture may be changed; 0 leaves it."""

    rotate: float = Field(default=0.0, ge=0, le=180, description="degrees, either way")
    scale: float = Field(default=0.0, ge=0, le=0.9, description="0.2: 0.8 to 1.2 times as large")
    shift: float = Field(default=0.0, ge=0, le=0.5, description="share of the side, either way: a crop after padding")
    flip: float = Field(default=0.0, ge=0, le=1, description="chance of left and right changing places")
    flip_upright: float = Field(default=0.0, ge=0, le=1, description="chance of top and bottom changing places")
    brightness: float = Field(default=0.0, ge=0, le=1, description="0.2: light times 0.8 to 1.2")
    contrast: float = Field(default=0.0, ge=0, le=1, description="about the picture's own mean")
    saturation: float = Field(default=0.0, ge=0, le=1, description="colours only: about the pixel's own grey")
    noise: float = Field(default=0.0, ge=0, le=10, description="deviation of Gaussian noise, in units of the input")


class PictureAugmentation(Augmentation):
    """One affine map of the picture's places and one of its light, drawn for each sample.

    What comes from outside the picture is its nearest edge. Source: Krizhevsky et al. 2012, NeurIPS, section 4.1, and
    under per-sample clipping De et al. 2022, arXiv:2204.13650 (augmentation multiplicity).
    """

    def __init__(
        self,
        options: PictureOptions,
        *,
        modality: str,
        center: float,
        spread: float,
        channels: int = 3,
        colours: int | None = None,
    ) -> None:
        """Takes the scale of the numbers.

        Args:
            options: how far a picture may be changed.
            modality: whose.
            center: pixel value that is 0.
            spread: pixel values that make 1.
            channels: of one picture.
            colours: those of them that are light, the first ones; what is behind them is moved and else left.
        """
        super().__init__(modality=modality)
        self.options, self.black, self.channels = options, -center / spread, channels
        self.colours = channels if colours is None else colours
        moves = (options.rotate, options.scale, options.shift, options.flip, options.flip_upright)
        self.moves = any(moves)

    def changed(self, values: Float[Tensor, "B C S S"], keys: Int[Tensor, "B"]) -> Float[Tensor, "B C S S"]:
        """The pictures, each changed by its key."""
        if self.moves:
            values = self._moved(values, keys)
        if self.colours == self.channels:
            return self._lit(values, keys)
        is_light = torch.arange(values.shape[1], device=values.device) % self.channels < self.colours
        return torch.where(is_light[:, None, None], self._lit(values, keys), values)

    def _lit(self, values: Float[Tensor, "B C S S"], keys: Int[Tensor, "B"]) -> Float[Tensor, "B C S S"]:
        """The pictures in another light."""
        options = self.options
        if options.brightness:
            factor = self.spread_around(keys, 1.0, options.brightness, what="brightness")
            values = self.black + (values - self.black) * factor[:, None, None, None]
        if options.contrast:
            factor = self.spread_around(keys, 1.0, options.contrast, what="contrast")
            mean = values.mean(dim=(1, 2, 3), keepdim=True)
            values = mean + (values - mean) * factor[:, None, None, None]
        if options.saturation:
            factor = self.spread_around(keys, 1.0, options.saturation, what="saturation")
            grey = self.greys(values)
            values = grey + (values - grey) * factor[:, None, None, None]
        return values + self.noise(values, keys, std=options.noise) if options.noise else values

    def greys(self, values: Float[Tensor, "B C S S"]) -> Float[Tensor, "B #C S S"]:
        """What is left of the pictures without colours."""
        return values.mean(dim=1, keepdim=True)

    def _moved(self, values: Tensor, keys: Tensor) -> Tensor:
        options = self.options
        turn = self.spread_around(keys, 0.0, options.rotate * math.pi / 180, what="rotate")
        size = self.spread_around(keys, 1.0, options.scale, what="scale")
        across = self.spread_around(keys, 0.0, 2 * options.shift, what="shift across")
        along = self.spread_around(keys, 0.0, 2 * options.shift, what="shift along")
        mirror = 1 - 2 * (self.chances(keys, what="flip")[:, 0] < options.flip).to(turn.dtype)
        upright = 1 - 2 * (self.chances(keys, what="flip upright")[:, 0] < options.flip_upright).to(turn.dtype)
        # the map goes from a place in the new picture to one in the old
        rows = [
            torch.stack([mirror * turn.cos() / size, -mirror * turn.sin() / size, across], dim=1),
            torch.stack([upright * turn.sin() / size, upright * turn.cos() / size, along], dim=1),
        ]
        affine = torch.stack(rows, dim=1).to(values.dtype)
        # not affine_grid, which torch.func takes apart row by row and warns of
        grid = (_places(values) @ affine.transpose(1, 2)).reshape(len(values), *values.shape[2:], 2)
        return torch.nn.functional.grid_sample(values, grid, padding_mode="border", align_corners=False)


def _places(values: Float[Tensor, "B C S S"]) -> Float[Tensor, "S_S 3"]:
    """Across, along and 1 of the middle of each pixel, row by row; the picture goes from -1 to 1."""
    along, across = (
        (2 * torch.arange(side, dtype=values.dtype, device=values.device) + 1) / side - 1 for side in values.shape[2:]
    )
    there = torch.stack(torch.meshgrid(across, along, indexing="xy"), dim=-1).flatten(0, 1)
    return torch.cat([there, torch.ones_like(there[:, :1])], dim=1)
