"""Filters: slow or fast parts of a recording go, without any delay. The only door to scipy.signal.

in        recordings [C, N] of channels by samples
out       the same shape, filtered
relies on public edges; each recording is filtered by itself, forth and back over all of its length
"""

import functools
import importlib
from types import ModuleType

import numpy as np
from jaxtyping import Float
from pydantic import Field, model_validator

from shared.settings import Settings


class FilterOptions(Settings):
    """Which frequencies of a signal pass."""

    rate_hz: float = Field(
        default=1.0, gt=0, description="time steps a second; with 1, edges are in cycles a time step"
    )
    high_pass: float = Field(default=0.0, ge=0, description="slower than this goes, in the unit of rate_hz; 0: nothing")
    low_pass: float = Field(default=0.0, ge=0, description="faster than this goes, in the unit of rate_hz; 0: nothing")
    filter_order: int = Field(default=4, ge=1, le=8, description="of the Butterworth filter; it runs forth and back")

    @model_validator(mode="after")
    def _edges_fit(self) -> "FilterOptions":
        for name, edge in (("high_pass", self.high_pass), ("low_pass", self.low_pass)):
            if edge >= self.rate_hz / 2:
                raise ValueError(f"{name} is {edge}; allowed: below {self.rate_hz / 2}, half of rate_hz")
        if self.low_pass and self.high_pass >= self.low_pass:
            raise ValueError(f"high_pass is {self.high_pass}; allowed with low_pass {self.low_pass}: less than that")
        return self


def filtered(recording: Float[np.ndarray, "C N"], *, options: FilterOptions) -> Float[np.ndarray, "C N"]:
    """The recording's frequencies between `high_pass` and `low_pass`; both together make a band-pass.

    Forth and back: no frequency is delayed, and at an edge half of the amplitude is left (6 dB), a quarter of the
    power. The ends are continued by their mirror image about the last value, so that they do not ring.

    Source: Butterworth 1930, Wireless Engineer 7, 536-541; second-order sections and initial states as in scipy.signal:
    Gustafsson 1996, IEEE Transactions on Signal Processing 44(4), 988-992, for the use forth and back.
    """
    if not (options.high_pass or options.low_pass) or recording.shape[1] == 0:
        return recording
    edges = (2 * options.high_pass / options.rate_hz, 2 * options.low_pass / options.rate_hz)
    sections = np.array(_butterworth(*edges, options.filter_order))
    padding = min(3 * (2 * len(sections) + 1), recording.shape[1] - 1)
    values = recording.astype(np.float64)
    # sized to 1 and back: scipy's sections overflow where values are near the largest number
    size = float(np.abs(values).max()) or 1.0
    done = _scipy_signal().sosfiltfilt(sections, values / size, axis=1, padlen=padding)
    largest = np.finfo(recording.dtype).max
    return np.asarray((done * size).clip(-largest, largest), dtype=recording.dtype)


def sections_applied(
    recording: Float[np.ndarray, "C N"], *, sections: tuple[tuple[float, ...], ...]
) -> Float[np.ndarray, "C N"]:
    """The recording through second-order sections (b0 b1 b2 a0 a1 a2), once and from rest."""
    return np.asarray(_scipy_signal().sosfilt(np.array(sections), recording, axis=1))


@functools.lru_cache(maxsize=16)
def _butterworth(high_pass: float, low_pass: float, order: int) -> tuple[tuple[float, ...], ...]:
    if high_pass and low_pass:
        sections = _scipy_signal().butter(order, (high_pass, low_pass), btype="bandpass", output="sos")
    elif high_pass:
        sections = _scipy_signal().butter(order, high_pass, btype="highpass", output="sos")
    else:
        sections = _scipy_signal().butter(order, low_pass, btype="lowpass", output="sos")
    return tuple(tuple(float(number) for number in section) for section in sections)


def _scipy_signal() -> ModuleType:
    # only where a run filters: its import takes longer than most runs' preprocessing
    return importlib.import_module("scipy.signal")
