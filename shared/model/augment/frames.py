"""Frame augmentation: sounds louder or softer, noisier, with an echo, and with stretches blanked.

in        float [B, F, T], log-mel bands or cepstral coefficients, and a key for each sample
out       float [B, F, T]
relies on preprocess/audio.py for the scale of the numbers

Sounds reach the model as frames of power. Echo and noise are added to that power, as they are when sounds that have
nothing to do with each other add up; phases are not there to interfere.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from shared.errors import ModelError
from shared.model.augment.base import Augmentation, stretch
from shared.settings import Settings

_NEPER_PER_DB = math.log(10) / 10
"""natural logarithm of power in a decibel"""


class FrameOptions(Settings):
    """How far a sound may be changed; 0 leaves it."""

    gain_db: float = Field(default=0.0, ge=0, le=40, description="louder or softer by up to so much")
    noise_db: float = Field(
        default=0.0, ge=-80, le=0, description="log-mel: loudest noise, relative to the loudest frame; 0: none"
    )
    echo_db: float = Field(
        default=0.0, ge=-60, le=0, description="log-mel: loudest echo, relative to the sound; 0: none"
    )
    echo_ms: float = Field(default=200.0, gt=0, le=2000, description="log-mel: longest way of the echo")
    time_masks: int = Field(default=0, ge=0, le=8, description="stretches of time that are blanked")
    time_mask: float = Field(default=0.2, gt=0, le=1, description="longest of them, as a share of the time")
    band_masks: int = Field(default=0, ge=0, le=8, description="log-mel: stretches of bands that are blanked")
    band_mask: float = Field(default=0.2, gt=0, le=1, description="widest of them, as a share of the bands")


@dataclass(frozen=True)
class FrameScale:
    """What the numbers of a frame mean: (log power - center) / spread, or their cosine transform."""

    center: float
    spread: float
    hop_ms: float
    is_log_mel: bool


class FrameAugmentation(Augmentation):
    """Gain, noise, echo and masks, drawn for each sample; what is masked is the sample's own mean.

    Source: Park et al. 2019, arXiv:1904.08779, section 2 (time and frequency masks; no warping).
    """

    def __init__(self, options: FrameOptions, *, modality: str, scale: FrameScale) -> None:
        super().__init__(modality=modality)
        self.options, self.scale = options, scale
        if not scale.is_log_mel and (options.noise_db or options.echo_db or options.band_masks):
            raise ModelError(
                f"augment of modality {modality!r}: noise_db, echo_db and band_masks want bands, and cepstral "
                'coefficients reach the model; allowed: gain_db and time_masks, or preprocess.features = "log-mel"'
            )

    def changed(self, values: Float[Tensor, "B F T"], keys: Int[Tensor, "B"]) -> Float[Tensor, "B F T"]:
        """The frames, each sound changed by its key."""
        options = self.options
        if options.echo_db:
            values = self._with_echo(values, keys)
        if options.noise_db:
            values = self._with_noise(values, keys)
        if options.gain_db:
            nepers = self.spread_around(keys, 0.0, options.gain_db * _NEPER_PER_DB / self.scale.spread, what="gain")
            # the first coefficient alone holds the level: the sum of all bands, divided by their number
            level = nepers[:, None, None] if self.scale.is_log_mel else _only_first(values) * nepers[:, None, None]
            values = values + level
        for number in range(options.time_masks):
            inside = self._stretch(keys, f"time {number}", places=values.shape[2], most=options.time_mask)
            values = values + inside[:, None, :] * (values.mean(dim=2, keepdim=True) - values)
        for number in range(options.band_masks):
            inside = self._stretch(keys, f"band {number}", places=values.shape[1], most=options.band_mask)
            values = values + inside[:, :, None] * (values.mean(dim=(1, 2), keepdim=True) - values)
        return values

    def _stretch(self, keys: Tensor, what: str, *, places: int, most: float) -> Tensor:
        both = self.chances(keys, what=what, num=2)
        return stretch(both[:, 0], both[:, 1], places=places, most=most)

    def _with_echo(self, values: Tensor, keys: Tensor) -> Tensor:
        """Power of an earlier frame added to that of each frame, softer by echo_db at the least."""
        frames = values.shape[2]
        longest = max(1, min(frames - 1, round(self.options.echo_ms / self.scale.hop_ms)))
        late = 1 + (self.chances(keys, what="echo late")[:, 0] * longest).floor().long()
        softer = self.options.echo_db - 20 * self.chances(keys, what="echo level")[:, 0]
        place = torch.arange(frames, device=values.device) - late[:, None]
        earlier = values.gather(2, place.clamp(min=0)[:, None, :].expand_as(values))
        echo = earlier + (softer * _NEPER_PER_DB / self.scale.spread)[:, None, None]
        # before the sound began there is nothing to come back
        return torch.where((place >= 0)[:, None, :], self._added(values, echo), values)

    def _with_noise(self, values: Tensor, keys: Tensor) -> Tensor:
        """Noise of one level in all bands, its power in each place exponentially distributed."""
        softer = self.options.noise_db - 20 * self.chances(keys, what="noise level")[:, 0]
        level = values.amax(dim=(1, 2)) + softer * _NEPER_PER_DB / self.scale.spread
        numbers = self.chances(keys, what="noise", num=values[0].numel()).view(values.shape)
        return self._added(values, level[:, None, None] + (-numbers.log()).log() / self.scale.spread)

    def _added(self, one: Tensor, other: Tensor) -> Tensor:
        """The sum of two powers, each as its logarithm over `spread`."""
        return torch.logaddexp(one * self.scale.spread, other * self.scale.spread) / self.scale.spread


def _only_first(values: Float[Tensor, "B F T"]) -> Float[Tensor, "1 F 1"]:
    first = torch.zeros(1, values.shape[1], 1, dtype=values.dtype, device=values.device)
    first[:, 0] = 1.0
    return first
