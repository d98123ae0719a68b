"""Transforms of signals: one window's amplitudes by frequency and energies by wavelet scale.

in        windows [B, C, L] from signal.py
out       fixed numbers [B, F] that signal.py brings to a common scale
relies on no statistics of the windows. The only door to PyWavelets.
"""

import importlib
from typing import Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from shared.errors import ModelError

Wavelet: TypeAlias = Literal["haar", "db2", "db4", "sym4", "coif1"]
_SMALL = 1e-3
"""sizes enter as log(size + this), so that silence is a number"""
_FILTER_LENGTHS: dict[Wavelet, int] = {"haar": 2, "db2": 4, "db4": 8, "sym4": 8, "coif1": 6}


def num_spectrum(channels: int, *, length: int, highest: float) -> int:
    """How many numbers `spectrum` gives."""
    return channels * (1 + _num_frequencies(length, highest=highest))


def spectrum(windows: Float[Tensor, "B C L"], *, highest: float) -> Float[Tensor, "B F"]:
    """Each channel's mean, and the logarithm of its amplitude at every frequency up to `highest` cycles a time step."""
    mean = windows.mean(dim=2, keepdim=True)
    amplitude = torch.fft.rfft(windows - mean, dim=2).abs() / windows.shape[2] ** 0.5
    kept = amplitude[:, :, 1 : 1 + _num_frequencies(windows.shape[2], highest=highest)]
    return torch.cat([mean, (kept + _SMALL).log()], dim=2).flatten(1)


def num_wavelet(channels: int, *, levels: int) -> int:
    """How many numbers `wavelet_energies` gives."""
    return channels * (2 + levels)


def most_levels(length: int, *, wavelet: Wavelet) -> int:
    """How often a window of this length can be halved before it is shorter than the wavelet's filter."""
    return max(0, (length // (_FILTER_LENGTHS[wavelet] - 1)).bit_length() - 1)


def check_levels(length: int, *, wavelet: Wavelet, levels: int) -> None:
    """Whether a window is long enough.

    Raises:
        ModelError: it is not; the text says how many levels it allows.
    """
    most = most_levels(length, wavelet=wavelet)
    if levels > most:
        raise ModelError(
            f"preprocess.levels is {levels}; allowed for {length} time steps and {wavelet}: at most {most}; take a "
            "shorter wavelet or a longer window"
        )


def wavelet_energies(windows: Float[Tensor, "B C L"], *, wavelet: Wavelet, levels: int) -> Float[Tensor, "B F"]:
    """Each channel's mean, and the log root mean square of its parts by scale: what is slowest first, fastest last.

    The parts are the coefficients of an orthogonal transform of the channel without its mean, continued periodically:
    where the length can be halved `levels` times, their squares add up to those of the channel.

    Source: Mallat 1989, IEEE PAMI 11(7), 674-693, section III; as in PyWavelets.
    """
    mean = windows.mean(dim=2, keepdim=True)
    pywt = importlib.import_module("pywt")
    parts = pywt.wavedec((windows - mean).numpy(), wavelet, mode="periodization", level=levels, axis=2)
    squares = [torch.from_numpy(part).square().sum(dim=2) / windows.shape[2] for part in parts]
    return torch.cat([mean, (torch.stack(squares, dim=2).sqrt() + _SMALL).log()], dim=2).flatten(1)


def _num_frequencies(length: int, *, highest: float) -> int:
    return min(length // 2, int(highest * length + 1e-6))
