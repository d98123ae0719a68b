"""Audio cleaning: noise, silence and loudness of one recording, each only where the run asks for it.

in        mono samples [N] at the run's rate, of the whole recording
out       samples [N'] for audio.py to cut and transform
relies on the recording itself and on public constants. The only door to noisereduce.
"""

import functools
import importlib
import math
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from shared.preprocess.signal_filter import sections_applied
from shared.settings import Settings

_FRAME_S = 0.02
_STILL = 1e-9
"""mean square below which a recording counts as silence: -90 dB of full scale"""
_FLOOR_SHARE = 0.25
"""of the decibels between a recording's quiet frames and its loudest, the share that counts as silence"""
_ADAPTS_OVER_S = 2.0
_BLOCK_S, _BLOCKS_PER_S = 0.4, 10


class AudioCleaningOptions(Settings):
    """What is done to a recording before it is cut and transformed."""

    denoise: Literal["none", "stationary", "adaptive"] = Field(
        default="none",
        description="spectral gate; stationary: against noise that stays the same; adaptive: against slow changes too",
    )
    denoise_strength: float = Field(default=1.0, gt=0, le=1, description="share of the noise that is taken away")
    trim: Literal["none", "ends", "pauses"] = Field(
        default="none", description="ends: silence before and after goes; pauses: that between as well"
    )
    trim_below_db: float = Field(default=40.0, ge=3, le=90, description="quieter than the loudest frame: silence")
    trim_margin_ms: float = Field(default=100.0, ge=0, le=2000, description="kept around what is not silent")
    level: Literal["none", "rms", "peak", "lufs"] = Field(
        default="none",
        description="every recording made equally loud: root mean square .1; largest value .9; as `loudness_lufs` says",
    )
    loudness_lufs: float = Field(default=-23.0, ge=-60, le=-6, description="lufs only: loudness by ITU-R BS.1770-4")


def denoised(samples: Float[Tensor, "N"], *, options: AudioCleaningOptions, sample_rate_hz: int) -> Float[Tensor, "N"]:
    """The recording through a spectral gate: what does not stand out of its frequency's usual level becomes quieter.

    What is usual is learned from this recording alone: over all of it (stationary), or over two seconds around each
    frame (adaptive). Silence stays silence; the result does not depend on how loud the recording is.

    Source: Sainburg, Thielk and Gentner 2020, PLoS Computational Biology 16(10) e1008228, as TorchGate of the package
    noisereduce, which keeps everything in memory; its other form writes long recordings to a temporary file.
    """
    peak = float(samples.abs().max()) if len(samples) else 0.0
    if options.denoise == "none" or peak**2 < _STILL:
        return samples
    size = 2 ** round(math.log2(0.064 * sample_rate_hz))
    hop = size // 4
    # at least two windows, and whole hops: the gate drops what is left over
    wanted = max(2 * size, -(-len(samples) // hop) * hop)
    padded = torch.nn.functional.pad(samples / peak, (0, wanted - len(samples)))
    gate = _gate(sample_rate_hz, size, options.denoise == "adaptive", options.denoise_strength)
    with torch.no_grad():
        # a stretch of pure silence has no level to stand out of: 0 / 0
        return gate(padded[None])[0, : len(samples)].nan_to_num(0.0, 0.0, 0.0) * peak


def trimmed(samples: Float[Tensor, "N"], *, options: AudioCleaningOptions, sample_rate_hz: int) -> Float[Tensor, "M"]:
    """What is not silent, by its energy: frames of 20 ms within `trim_below_db` of the loudest and above the floor.

    The floor lies a quarter of the way, in decibels, from the level of the quietest tenth of frames to the loudest, so
    that steady noise under speech counts as silence. A recording without silence, or silent throughout, stays whole.
    torchaudio's detector, which cuts at the front only, is not used.
    """
    frame = max(1, round(_FRAME_S * sample_rate_hz))
    num_frames = -(-len(samples) // frame)
    if options.trim == "none" or num_frames < 3:
        return samples
    frames = torch.nn.functional.pad(samples, (0, num_frames * frame - len(samples))).reshape(num_frames, frame)
    energy = frames.double().square().mean(dim=1)
    level_db = 10 * energy.clamp(min=_STILL).log10()
    loudest_db, quiet_db = float(level_db.max()), float(level_db.quantile(0.1))
    sounds = level_db >= max(loudest_db - options.trim_below_db, quiet_db + _FLOOR_SHARE * (loudest_db - quiet_db))
    margin = round(options.trim_margin_ms / 1000 / _FRAME_S)
    around = torch.nn.functional.max_pool1d(sounds.float()[None, None], 2 * margin + 1, stride=1, padding=margin)[0, 0]
    places = around.nonzero()[:, 0]
    if options.trim == "ends":
        return samples[int(places[0]) * frame : (int(places[-1]) + 1) * frame]
    return samples[(around > 0).repeat_interleave(frame)[: len(samples)]]


def levelled(samples: Float[Tensor, "N"], *, options: AudioCleaningOptions, sample_rate_hz: int) -> Float[Tensor, "N"]:
    """The recording made as loud as all others are; what is nearly silent is raised by a bounded factor only."""
    if options.level == "rms":
        return samples * (0.1 / samples.square().mean().sqrt().clamp(min=1e-5))
    if options.level == "peak":
        return samples * (0.9 / samples.abs().max().clamp(min=1e-4))
    if options.level == "lufs":
        loudness = integrated_loudness(samples, sample_rate_hz=sample_rate_hz)
        return samples * 10 ** ((options.loudness_lufs - max(loudness, -70.0)) / 20)
    return samples


def integrated_loudness(samples: Float[Tensor, "N"], *, sample_rate_hz: int) -> float:
    """Loudness in LUFS of a mono recording, gated; -inf where nothing passes the gate of -70 LUFS.

    A recording shorter than one block of 400 ms counts as followed by silence.

    Source: ITU-R BS.1770-4, annex 1, with the weighting filters as torchaudio designs them for any rate; its own
    function runs them sample by sample in Python and takes half a second for each second of sound.
    """
    block = round(_BLOCK_S * sample_rate_hz)
    padded = torch.nn.functional.pad(samples, (0, max(0, block - len(samples)))).double().numpy()
    weighted = sections_applied(padded[None], sections=_k_weighting(sample_rate_hz))[0]
    energy = np.square(torch.from_numpy(weighted).unfold(0, block, max(1, sample_rate_hz // _BLOCKS_PER_S)).numpy())
    power = energy.mean(axis=1)
    loud = power[power > 10 ** ((-70 + 0.691) / 10)]
    loud = loud[loud > 0.1 * loud.mean()] if len(loud) else loud
    return float(-0.691 + 10 * np.log10(loud.mean())) if len(loud) else -math.inf


@functools.lru_cache(maxsize=8)
def _k_weighting(sample_rate_hz: int) -> tuple[tuple[float, ...], ...]:
    # a shelf of 4 dB from 1500 Hz and a high-pass at 38 Hz, in the forms of Bristow-Johnson's audio cookbook
    angle = 2 * math.pi * min(1500.0, 0.45 * sample_rate_hz) / sample_rate_hz
    cosine, alpha, gain = math.cos(angle), math.sin(angle) / math.sqrt(2), 10 ** (4 / 40)
    root = 2 * math.sqrt(gain) * alpha
    shelf = (
        gain * ((gain + 1) + (gain - 1) * cosine + root),
        -2 * gain * ((gain - 1) + (gain + 1) * cosine),
        gain * ((gain + 1) + (gain - 1) * cosine - root),
        (gain + 1) - (gain - 1) * cosine + root,
        2 * ((gain - 1) - (gain + 1) * cosine),
        (gain + 1) - (gain - 1) * cosine - root,
    )
    angle = 2 * math.pi * 38.0 / sample_rate_hz
    cosine, alpha = math.cos(angle), math.sin(angle) / (2 * 0.5)
    high_pass = ((1 + cosine) / 2, -(1 + cosine), (1 + cosine) / 2, 1 + alpha, -2 * cosine, 1 - alpha)
    return tuple(tuple(number / section[3] for number in section) for section in (shelf, high_pass))


@functools.lru_cache(maxsize=8)
def _gate(sample_rate_hz: int, size: int, adaptive: bool, strength: float) -> Callable[[Tensor], Tensor]:
    gates = importlib.import_module("noisereduce.torchgate")
    # two seconds, as in the package's other form: with its twenty frames here, a syllable would count as noise. Odd: an
    # even number makes torch copy its input, of which it warns
    frames = 2 * round(_ADAPTS_OVER_S * sample_rate_hz / (size // 4) / 2) + 1
    gate: Callable[[Tensor], Tensor] = gates.TorchGate(
        sr=sample_rate_hz, nonstationary=adaptive, n_fft=size, prop_decrease=strength, n_movemean_nonstationary=frames
    )
    return gate
