"""Audio preprocessing: any recording becomes a picture of its frequencies over time. The only door to torchaudio.

in        Waveform from media.py: float32 [C, N] at the file's own rate
out       float32 [F, T]: log-mel bands or cepstral coefficients (MFCC), T frames for every recording
relies on public constants for normalisation; no statistics of the recordings; audio_clean.py for what a run asks for
"""

import functools
import importlib
import importlib.util
import math
import sys
from collections.abc import Callable
from fractions import Fraction
from types import ModuleType
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from shared.media import Waveform
from shared.preprocess import RawValue, digest_of, wrong_kind
from shared.preprocess.audio_clean import AudioCleaningOptions, denoised, levelled, trimmed

_LOG_FLOOR = 1e-6
_LOWEST_HZ = 20.0
_EXTENSION = "torchaudio._extension.utils"


class AudioOptions(AudioCleaningOptions):
    """How recordings become frames of equal number and width."""

    sample_rate_hz: int = Field(default=16_000, ge=4_000, le=48_000)
    seconds: float = Field(default=2.0, ge=0.05, le=60, description="longer is cut, shorter is padded with silence")
    features: Literal["log-mel", "mfcc"] = "log-mel"
    bands: int = Field(default=40, ge=8, le=256, description="mel bands")
    coefficients: int = Field(default=20, ge=2, le=128, description="mfcc only: how many are kept, at most `bands`")
    window_ms: float = Field(default=32.0, gt=1, le=500)
    hop_ms: float = Field(default=20.0, gt=1, le=500)
    deltas: int = Field(
        default=0, ge=0, le=2, description="further rows: each row's slope over time, and for 2 that of the slope too"
    )
    delta_frames: int = Field(default=5, ge=3, le=25, description="frames that a slope is taken over, odd")
    center: float = Field(default=-5.0, description="log power of a band that becomes 0")
    spread: float = Field(default=4.0, gt=0, description="log power that makes 1")

    @field_validator("delta_frames")
    @classmethod
    def _has_a_middle(cls, frames: int) -> int:
        if frames % 2 == 0:
            raise ValueError("a slope over an even number of frames has no middle; allowed: odd numbers from 3 to 25")
        return frames

    @model_validator(mode="after")
    def _has_frames(self) -> "AudioOptions":
        if self.hop_ms > 1000 * self.seconds:
            raise ValueError(f"hop_ms is {self.hop_ms}; allowed: at most the {self.seconds} seconds of a recording")
        return self


class MfccOptions(AudioOptions):
    """Recordings as cepstral coefficients, for encoders that read them frame by frame."""

    features: Literal["log-mel", "mfcc"] = "mfcc"


class AudioPreprocessor:
    """Recordings as [F, T] of about unit scale: (log power - center) / spread, or its cosine transform."""

    def __init__(self, options: AudioOptions) -> None:
        self.options = options
        self.num_samples = round(options.seconds * options.sample_rate_hz)
        self.hop = max(1, round(options.hop_ms * options.sample_rate_hz / 1000))
        mfcc = options.features == "mfcc"
        self.rows = min(options.coefficients, options.bands) if mfcc else options.bands
        self.shape = (self.rows * (1 + options.deltas), self.num_samples // self.hop + 1)
        self.digest = digest_of("audio", version=1, settings=options)

    def read(self, value: RawValue) -> Float[Tensor, "F T"]:
        """The recording's frames: mixed to mono, resampled, cleaned, cut or padded at its end, transformed."""
        if not isinstance(value, Waveform):
            raise wrong_kind(value, wanted="a waveform")
        rate_hz = self.options.sample_rate_hz
        samples = torch.as_tensor(value.samples, dtype=torch.float32).mean(dim=0)
        samples = resampled(samples, sample_rate_hz=value.sample_rate_hz, to_hz=rate_hz)
        # of the whole recording: what is noise or silence is told best from all of it
        samples = denoised(samples, options=self.options, sample_rate_hz=rate_hz)
        samples = trimmed(samples, options=self.options, sample_rate_hz=rate_hz)
        samples = torch.nn.functional.pad(samples, (0, max(0, self.num_samples - len(samples))))[: self.num_samples]
        samples = levelled(samples, options=self.options, sample_rate_hz=rate_hz)
        with torch.no_grad():
            frames: Tensor = with_deltas(
                self._features(samples), times=self.options.deltas, over=self.options.delta_frames
            )
        return frames

    def finish(self, values: Float[Tensor, "B F T"]) -> Float[Tensor, "B F T"]:
        """The frames as they are."""
        return values

    def _features(self, samples: Float[Tensor, "N"]) -> Float[Tensor, "F T"]:
        options = self.options
        window = max(2, round(options.window_ms * options.sample_rate_hz / 1000))
        narrowest_hz = _narrowest_band_hz(options.sample_rate_hz, bands=options.bands)
        # So fine that no band is without a frequency, whatever their number.
        fft = 2 ** math.ceil(math.log2(max(window, options.sample_rate_hz / narrowest_hz)))
        power = _mel(options.sample_rate_hz, fft=fft, window=window, hop=self.hop, bands=options.bands)(samples)
        bands: Tensor = ((power + _LOG_FLOOR).log() - options.center) / options.spread
        if options.features == "log-mel":
            return bands
        # The first coefficient sums all bands; divided by their root it is on the scale of the others.
        cosines = load_torchaudio().functional.create_dct(self.rows, options.bands, "ortho")
        scale = torch.ones(self.rows, 1)
        scale[0] = options.bands**-0.5
        return torch.as_tensor(cosines.T @ bands) * scale


class AudioStatisticsPreprocessor:
    """Recordings as three numbers a band: its mean, its deviation and how much it changes from frame to frame.

    Made by hand and not trained: under strong noise, few numbers and one layer beat a network.
    """

    def __init__(self, options: AudioOptions) -> None:
        self.frames = AudioPreprocessor(options)
        self.shape = (3 * self.frames.shape[0],)
        self.digest = digest_of("audio-statistics", version=1, settings=options)

    def read(self, value: RawValue) -> Float[Tensor, "F T"]:
        """The recording's frames."""
        return self.frames.read(value)

    def finish(self, values: Float[Tensor, "B F T"]) -> Float[Tensor, "B N"]:
        """The numbers of each recording."""
        mean = values.mean(dim=2)
        deviation = (values - mean[:, :, None]).square().mean(dim=2).sqrt()
        change = values.diff(dim=2).square().mean(dim=2).sqrt()
        return torch.cat([mean, deviation, change], dim=1)


def with_deltas(frames: Float[Tensor, "F T"], *, times: int, over: int) -> Float[Tensor, "R T"]:
    """The rows, below them their slopes by least squares over `over` frames, and below those the slopes' own.

    The first and last frame stand for what lies beyond them.

    Source: Furui 1986, IEEE Transactions on Acoustics, Speech and Signal Processing 34(1), 52-59; as in torchaudio.
    """
    rows = [frames]
    for _ in range(times):
        rows.append(torch.as_tensor(load_torchaudio().functional.compute_deltas(rows[-1], win_length=over)))
    return torch.cat(rows)


def resampled(samples: Float[Tensor, "N"], *, sample_rate_hz: int, to_hz: int) -> Float[Tensor, "R"]:
    """The samples at another rate, low-pass filtered first where that is lower.

    Rates whose ratio is not one of small numbers (44,099 to 16,000 Hz) are taken to the nearest that is, less than one
    part in 100,000 off: the exact filter would fill the memory.
    """
    ratio = Fraction(sample_rate_hz, to_hz).limit_denominator(500)
    if ratio in (0, 1):
        return samples
    at_rate: Tensor = _resampler(ratio.numerator, ratio.denominator)(samples)
    return at_rate


@functools.lru_cache(maxsize=16)
def _resampler(sample_rate: int, to: int) -> Callable[[Tensor], Tensor]:
    transform: Callable[[Tensor], Tensor] = load_torchaudio().transforms.Resample(sample_rate, to)
    return transform


@functools.lru_cache(maxsize=8)
def _mel(sample_rate_hz: int, *, fft: int, window: int, hop: int, bands: int) -> Callable[[Tensor], Tensor]:
    mel = load_torchaudio().transforms.MelSpectrogram
    transform: Callable[[Tensor], Tensor] = mel(
        sample_rate=sample_rate_hz,
        n_fft=fft,
        win_length=window,
        hop_length=hop,
        n_mels=bands,
        f_min=_LOWEST_HZ,
        pad_mode="constant",
    )
    return transform


def _narrowest_band_hz(sample_rate_hz: int, *, bands: int) -> float:
    # Half the width of the lowest band: torchaudio spaces them evenly in mel = 2595 log10(1 + hz / 700).
    share = (1 + sample_rate_hz / 2 / 700) / (1 + _LOWEST_HZ / 700)
    return (700.0 + _LOWEST_HZ) * math.expm1(math.log(share) / (bands + 1))


def load_torchaudio() -> ModuleType:
    """torchaudio, usable beside a torch of another build; call this before transformers is first imported.

    The published wheel of torchaudio carries a library that links to CUDA. Beside a torch without CUDA its import
    fails, and with it that of transformers, which imports torchaudio wherever it finds it. The transforms need no
    such library, so here it is declared absent, as it is on platforms for which torchaudio ships none.
    """
    module = sys.modules.get("torchaudio")
    if module is not None and hasattr(module, "transforms"):
        return module
    try:
        return importlib.import_module("torchaudio")
    except (OSError, RuntimeError):  # another CUDA than torch's is told by a RuntimeError
        _forget_torchaudio()
    root = importlib.util.find_spec("torchaudio")
    if root is None or root.submodule_search_locations is None:
        raise ImportError("torchaudio is not installed")
    path = f"{root.submodule_search_locations[0]}/_extension/utils.py"
    spec = importlib.util.spec_from_file_location(_EXTENSION, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path}: not a module; torchaudio 2.11 is expected")
    utilities = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(utilities)
    vars(utilities)["_load_lib"] = lambda _library: False
    sys.modules[_EXTENSION] = utilities
    return importlib.import_module("torchaudio")


def _forget_torchaudio() -> None:
    for name in [name for name in sys.modules if name == "torchaudio" or name.startswith("torchaudio.")]:
        del sys.modules[name]
