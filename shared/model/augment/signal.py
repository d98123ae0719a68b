"""Signal augmentation: windows of sensors stronger or weaker, noisier, later, with parts that failed.

in        float [B, C, L] and a key for each sample
out       float [B, C, L]
relies on sample_draws.py
"""

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from shared.model.augment.base import Augmentation, stretch
from shared.settings import Settings


class SignalOptions(Settings):
    """How far a window may be changed; 0 leaves it."""

    gain: float = Field(default=0.0, ge=0, le=1, description="0.1: all channels times 0.9 to 1.1")
    noise: float = Field(default=0.0, ge=0, le=10, description="deviation of Gaussian noise, in units of the input")
    shift: float = Field(default=0.0, ge=0, le=0.5, description="share of the window, either way; its ends are held")
    time_mask: float = Field(default=0.0, ge=0, le=1, description="longest stretch that is 0, as a share of the time")
    drop_channel: float = Field(default=0.0, ge=0, lt=1, description="chance of each channel to be 0, as if it failed")


class SignalAugmentation(Augmentation):
    """Gain, shift, noise and failures, drawn for each sample.

    Source: Um et al. 2017, arXiv:1706.00527 (jittering, scaling, cropping of wearable sensors' data).
    """

    def __init__(self, options: SignalOptions, *, modality: str) -> None:
        super().__init__(modality=modality)
        self.options = options

    def changed(self, values: Float[Tensor, "B C L"], keys: Int[Tensor, "B"]) -> Float[Tensor, "B C L"]:
        """The windows, each changed by its key."""
        options, (_, channels, length) = self.options, values.shape
        if options.shift:
            steps = self.spread_around(keys, 0.0, options.shift * length, what="shift").round().long()
            place = (torch.arange(length, device=values.device) - steps[:, None]).clamp(0, length - 1)
            values = values.gather(2, place[:, None, :].expand_as(values))
        if options.gain:
            values = values * self.spread_around(keys, 1.0, options.gain, what="gain")[:, None, None]
        if options.noise:
            values = values + self.noise(values, keys, std=options.noise)
        if options.time_mask:
            both = self.chances(keys, what="time mask", num=2)
            values = values * (1 - stretch(both[:, 0], both[:, 1], places=length, most=options.time_mask))[:, None, :]
        if options.drop_channel:
            kept = self.chances(keys, what="channels", num=channels) >= options.drop_channel
            values = values * kept[:, :, None]
        return values
