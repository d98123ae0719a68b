"""Signal preprocessing: any recording of a sensor becomes a window of equal length, or fixed numbers that describe it.

in        float32 [T, C] from media.py: time steps by channels
out       float32 [C, L] windows, or [F] statistics of them, of about unit scale
relies on public constants for normalisation; those of the statistics come from generated signals, never from a site's;
          signal_filter.py and signal_transform.py for what a run asks for
"""

import functools
from typing import Literal, TypeAlias

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from shared.preprocess import RawValue, digest_of, in_pieces, wrong_kind
from shared.preprocess.features import FeaturesOptions, Scaling
from shared.preprocess.signal_filter import FilterOptions, filtered
from shared.preprocess.signal_transform import (
    Wavelet,
    check_levels,
    num_spectrum,
    num_wavelet,
    spectrum,
    wavelet_energies,
)

Features: TypeAlias = Literal["statistics", "spectrum", "wavelet", "all"]
_SMALL = 1e-3
_WINDOWS = {"hann": torch.hann_window, "hamming": torch.hamming_window, "blackman": torch.blackman_window}


class SignalOptions(FilterOptions):
    """How recordings become windows of equal length."""

    length: int = Field(default=128, ge=4, le=65_536, description="time steps; longer is cut, shorter padded with 0")
    part: Literal["start", "centre", "end"] = Field(default="start", description="which steps of a longer recording")
    window: Literal["none", "hann", "hamming", "blackman"] = Field(
        default="none", description="towards both ends each channel fades to its mean, so that no step is left there"
    )
    scale: float = Field(default=1.0, gt=0, description="divided by: a typical size of the values, in their unit")
    znorm: bool = Field(default=False, description="each channel of each window to mean 0 and deviation 1")
    clip: float = Field(default=0.0, ge=0, description="largest size of a value afterwards; 0: no limit")


class StatisticsOptions(SignalOptions):
    """How windows become the numbers that describe them."""

    features: Features = Field(
        default="statistics",
        description="statistics; spectrum: amplitude at each frequency; wavelet: energy at each scale; all: all three",
    )
    wavelet: Wavelet = Field(default="db2", description="wavelet and all only")
    levels: int = Field(default=4, ge=1, le=16, description="wavelet and all only: scales, each twice the one before")
    bands: int = Field(default=8, ge=1, le=64, description="frequency bands, equally wide, without the mean")
    highest: float = Field(default=0.5, gt=0, le=0.5, description="upper end of the bands, in cycles a time step")
    center: tuple[float, ...] = Field(default=(), description="subtracted from the numbers; empty: see below")
    spread: tuple[float, ...] = Field(default=(), description="divided by; both empty: constants of generated signals")
    clip_statistics: float = Field(default=4.0, ge=0, description="largest size of a number; 0: no limit")


class SignalPreprocessor:
    """Windows [C, L] of signals in units of the run's public `scale`."""

    def __init__(self, options: SignalOptions, *, channels: int) -> None:
        self.options = options
        self.channels = channels
        self.shape: tuple[int, ...] = (channels, options.length)
        self.digest = digest_of("signal", version=1, settings=options, more={"channels": channels})

    def read(self, value: RawValue) -> Float[Tensor, "C L"]:
        """One window: `length` steps of the filtered recording, zeros where there are fewer."""
        if not isinstance(value, np.ndarray) or value.ndim != 2 or value.shape[1] != self.channels:
            raise wrong_kind(value, wanted=f"an array of [time, {self.channels}]")
        options = self.options
        recording = filtered(value.T, options=options)
        more = max(0, recording.shape[1] - options.length)
        first = {"start": 0, "centre": more // 2, "end": more}[options.part]
        steps = torch.from_numpy(recording[:, first : first + options.length].astype(np.float32)) / options.scale
        if options.znorm:
            steps = (steps - steps.mean(dim=1, keepdim=True)) / _deviation(steps)[:, None].clamp(min=1e-6)
        if options.window != "none":
            wide = steps.double()
            mean = wide.mean(dim=1, keepdim=True)
            steps = (mean + (wide - mean) * _WINDOWS[options.window](steps.shape[1], periodic=False)).float()
        if options.clip:
            steps = steps.clamp(-options.clip, options.clip)
        return torch.nn.functional.pad(steps, (0, options.length - steps.shape[1])).contiguous()

    def finish(self, values: Float[Tensor, "B C L"]) -> Float[Tensor, "B *F"]:
        """The windows as they are."""
        return values


class StatisticsPreprocessor(SignalPreprocessor):
    """The numbers that describe a window, each brought to a common scale by public constants.

    Without constants in the run, each number is put in relation to what it is for generated signals of many levels and
    colours (`reference_windows`): a fixed ruler that knows nothing of anybody's data.
    """

    def __init__(self, options: StatisticsOptions, *, channels: int) -> None:
        super().__init__(options, channels=channels)
        self._statistics = options
        if options.features in ("wavelet", "all"):
            check_levels(options.length, wavelet=options.wavelet, levels=options.levels)
        center, spread = options.center, options.spread
        if not center and not spread:
            center, spread = _reference(channels, options)
        width = num_features(channels, options=options)
        fixed = FeaturesOptions(center=center, spread=spread, clip=options.clip_statistics)
        self._scaling = Scaling(fixed, width=width)
        self.shape = (width,)
        more = {"channels": channels, "constants": fixed.model_dump_json()}
        self.digest = digest_of("signal-statistics", version=1, settings=options, more=more)

    def finish(self, values: Float[Tensor, "B C L"]) -> Float[Tensor, "B *F"]:
        """The numbers of each window."""
        return in_pieces(values, run=self._describe, shape=self.shape, rows=4096)

    def _describe(self, values: Float[Tensor, "B C L"]) -> Float[Tensor, "B F"]:
        return self._scaling(features(values, options=self._statistics))


def num_features(channels: int, *, options: StatisticsOptions) -> int:
    """How many numbers describe a window."""
    counts: dict[Features, int] = {
        "statistics": num_statistics(channels, bands=options.bands),
        "spectrum": num_spectrum(channels, length=options.length, highest=options.highest),
        "wavelet": num_wavelet(channels, levels=options.levels),
    }
    return sum(counts.values()) if options.features == "all" else counts[options.features]


def features(windows: Float[Tensor, "B C L"], *, options: StatisticsOptions) -> Float[Tensor, "B F"]:
    """The numbers that the run asks for; `all` are the statistics, then the spectrum, then the wavelet energies."""
    kinds = ("statistics", "spectrum", "wavelet") if options.features == "all" else (options.features,)
    numbers = {
        "statistics": lambda: statistics(windows, bands=options.bands, highest=options.highest),
        "spectrum": lambda: spectrum(windows, highest=options.highest),
        "wavelet": lambda: wavelet_energies(windows, wavelet=options.wavelet, levels=options.levels),
    }
    return torch.cat([numbers[kind]() for kind in kinds], dim=1)


def num_statistics(channels: int, *, bands: int) -> int:
    """How many numbers describe a window."""
    return channels * (7 + bands) + channels * (channels - 1) // 2


def statistics(windows: Float[Tensor, "B C L"], *, bands: int, highest: float = 0.5) -> Float[Tensor, "B F"]:
    """Fixed numbers in time and frequency that describe each window.

    For each channel: mean, log deviation, log mean size, lowest, median and highest value, log deviation of the
    differences, and the log mean amplitude in each frequency band; for each pair of channels the mean of their product
    over the product of their sizes, which says how they move and lie together. Sizes enter by their logarithm,
    so that a quiet signal is told apart from a still one.
    """
    lowest, median, largest = windows.amin(dim=2), windows.median(dim=2).values, windows.amax(dim=2)
    deviation, size = _deviation(windows), windows.abs().mean(dim=2)
    change = _deviation(windows.diff(dim=2))
    energy = windows.square().mean(dim=2)
    time = [windows.mean(dim=2), _log(deviation), _log(size), lowest, median, largest, _log(change)]
    products = windows @ windows.transpose(1, 2) / windows.shape[2]
    first, second = torch.triu_indices(windows.shape[1], windows.shape[1], offset=1)
    cosine = products[:, first, second] / (energy[:, first] * energy[:, second] + _SMALL**2).sqrt()
    numbers = [*time, _bands(windows, bands=bands, highest=highest).flatten(1), cosine]
    return torch.cat(numbers, dim=1)


def reference_windows(*, channels: int, length: int, count: int = 512) -> Float[Tensor, "B C L"]:
    """Generated signals of many levels, colours and rhythms, always the same ones: a ruler for statistics.

    Each channel is an offset, plus noise whose power falls with frequency by a random slope, plus one rhythm; sizes
    are spread over three decades around 1.
    """
    draw = np.random.default_rng(20_240_229)
    frequency = np.fft.rfftfreq(length)[1:]
    slope = draw.uniform(0.0, 2.0, (count, channels, 1))
    waves = draw.normal(size=(count, channels, len(frequency), 2)) @ np.array([1.0, 1.0j])
    noise = np.fft.irfft(np.concatenate([np.zeros((count, channels, 1)), waves * frequency ** (-slope / 2)], 2), length)
    noise /= noise.std(axis=2, keepdims=True) + 1e-12
    cycles = draw.uniform(1.0, max(1.5, length / 8), (count, 1, 1)) / length
    rhythm = np.sin(2 * np.pi * (cycles * np.arange(length) + draw.uniform(0, 1, (count, channels, 1))))
    level = 10.0 ** draw.uniform(-2.5, 0.5, (count, 1, 1)) * 10.0 ** draw.normal(0, 0.2, (count, channels, 1))
    mixed = noise + rhythm * draw.uniform(0, 2, (count, 1, 1))
    return torch.from_numpy((draw.normal(0, 0.5, (count, channels, 1)) + level * mixed).astype(np.float32))


@functools.lru_cache(maxsize=16)
def _reference(channels: int, options: StatisticsOptions) -> tuple[tuple[float, ...], tuple[float, ...]]:
    numbers = features(reference_windows(channels=channels, length=options.length), options=options).double()
    # Three digits: the same constants on machines whose last bits differ.
    center, spread = (numbers.median(dim=0).values, numbers.std(dim=0).clamp(min=0.01))
    return tuple(round(float(x), 3) for x in center), tuple(round(float(x), 3) for x in spread)


def _deviation(windows: Float[Tensor, "*B L"]) -> Float[Tensor, "*B"]:
    # Not Tensor.std, which warns of a batch without samples.
    return (windows - windows.mean(dim=-1, keepdim=True)).square().mean(dim=-1).sqrt()


def _log(size: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
    return (size + _SMALL).log()


def _bands(windows: Float[Tensor, "B C L"], *, bands: int, highest: float) -> Float[Tensor, "B C N"]:
    centred = windows - windows.mean(dim=2, keepdim=True)
    amplitude = torch.fft.rfft(centred, dim=2).abs()[:, :, 1:] / windows.shape[2] ** 0.5
    frequency = torch.fft.rfftfreq(windows.shape[2])[1:]
    band = (frequency / highest * bands - 1e-6).floor().clamp(min=0).long()
    # An average by matrix: a band that holds no frequency of a short window is 0, never NaN.
    member = torch.nn.functional.one_hot(band.clamp(max=bands), bands + 1)[:, :bands].float()
    return _log(amplitude @ (member / member.sum(dim=0).clamp(min=1)))
