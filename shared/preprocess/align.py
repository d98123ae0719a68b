"""Alignment: recordings, clips and signals of one row are cut and padded to the same seconds of one clock.

in        raw values of a row, its Clock, and what the run asks (`model.align`)
out       raw values that all begin at one moment and last `window_s`; a modality without any of that time is not there
relies on the times in the manifest: files say how long they last and not when they began

What is at a share of the window in one modality is at the same share of the others' tensors.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64
from PIL import Image

from shared.clock import Clock
from shared.config import AlignSettings, RunConfig
from shared.errors import ModelError
from shared.media import Clip, TimedSignal, Waveform
from shared.preprocess import RawValue
from shared.schema import Kind
from shared.settings import Option

_BLANK = -1


@dataclass(frozen=True)
class Cut:
    """What of one file the model sees, in seconds after its first sample."""

    first_s: float
    """where the window begins; before the file does, if negative"""
    from_s: float
    """what is seen begins; not before the window or the file"""
    to_s: float
    """what is seen ends"""


def cuts_of(durations_s: Mapping[str, float], *, clock: Clock, align: AlignSettings) -> dict[str, Cut]:
    """What is seen of each of a row's timed values; those with nothing of that time are left out.

    Args:
        durations_s: modality -> how long its file lasts, for those that the row has.
        clock: of the row.
        align: what the run asks.
    """
    spans = {name: (clock.starts_s.get(name, 0.0), length_s) for name, length_s in durations_s.items()}
    if not spans:
        return {}
    starts = [start for start, _ in spans.values()]
    shared_only = align.how == "intersection"
    first = clock.start_s if clock.start_s is not None else (max(starts) if shared_only else min(starts))
    low, high = first, first + align.window_s
    if clock.end_s is not None:
        high = min(high, clock.end_s)
    if shared_only:
        low, high = max(low, *starts), min(high, *(start + length for start, length in spans.values()))
    cuts = {}
    for name, (start, length) in spans.items():
        begins, ends = max(low, start), min(high, start + length)
        if begins < ends:
            cuts[name] = Cut(first_s=first - start, from_s=begins - start, to_s=ends - start)
    return cuts


def duration_s(value: RawValue | TimedSignal, *, rate_hz: float) -> float:
    """How long a value lasts.

    Args:
        value: a recording, a clip or a signal.
        rate_hz: time steps a second of a signal that does not bring its times.
    """
    if isinstance(value, Waveform):
        return float(value.samples.shape[1] / value.sample_rate_hz)
    if isinstance(value, Clip):
        return value.duration_s
    times = _times_of(value, rate_hz=rate_hz)
    return float(times[-1]) + (float(times[-1]) / (len(times) - 1) if len(times) > 1 else 1 / rate_hz)


def aligned(value: RawValue | TimedSignal, *, cut: Cut, align: AlignSettings, rate_hz: float) -> RawValue:
    """The value as if it had been taken from the window's first moment to its last.

    Outside of what is seen a recording is silent; of a signal or a clip the nearest value is held, or it is 0 or black.
    Signals are interpolated linearly to `align.rate_hz`, without a filter: a rate far below the file's own folds fast
    changes down.
    """
    if isinstance(value, Waveform):
        return _sound(value, cut=cut, align=align)
    if isinstance(value, Clip):
        return _clip(value, cut=cut, align=align)
    return _signal(value, cut=cut, align=align, rate_hz=rate_hz)


def _sound(value: Waveform, *, cut: Cut, align: AlignSettings) -> Waveform:
    rate, there = value.sample_rate_hz, value.samples.shape[1]
    samples = np.zeros((value.samples.shape[0], max(1, round(align.window_s * rate))), dtype=np.float32)
    begin, end = min(there, round(cut.from_s * rate)), min(there, round(cut.to_s * rate))
    place = max(0, begin - round(cut.first_s * rate))
    count = max(0, min(end - begin, samples.shape[1] - place))
    samples[:, place : place + count] = value.samples[:, begin : begin + count]
    return Waveform(samples=samples, sample_rate_hz=rate)


def _signal(
    value: RawValue | TimedSignal, *, cut: Cut, align: AlignSettings, rate_hz: float
) -> Float32[np.ndarray, "T C"]:
    own = _times_of(value, rate_hz=rate_hz)
    values = value.values if isinstance(value, TimedSignal) else np.asarray(value)
    times = cut.first_s + np.arange(num_steps(align), dtype=np.float64) / align.rate_hz
    outside = (times < cut.from_s - 1e-9) | (times >= cut.to_s)
    at = times.clip(cut.from_s, cut.to_s)
    steps = np.stack([np.interp(at, own, column) for column in values.T], axis=1).astype(np.float32)
    if align.outside == "zero":
        steps[outside] = 0.0
    return steps


def _clip(value: Clip, *, cut: Cut, align: AlignSettings) -> Clip:
    first, last = value.number_at(cut.from_s), value.number_at(cut.to_s - 1e-5)
    sources = list(range(first, max(first, last) + 1))
    times = [cut.from_s - cut.first_s, *(value.times_s[number] - cut.first_s for number in sources[1:])]
    ends_s = cut.to_s - cut.first_s
    if align.outside == "zero" and times[0] > 0:
        sources, times = [_BLANK, *sources], [0.0, *times]
    if align.outside == "zero" and ends_s < align.window_s - 1e-5:
        sources, times = [*sources, _BLANK], [*times, ends_s]
    times[0] = 0.0

    def read(numbers: Collection[int]) -> Iterator[tuple[int, Image.Image]]:
        wanted = {sources[number]: number for number in numbers if sources[number] != _BLANK}
        for number in sorted(set(numbers)):
            if sources[number] == _BLANK:
                yield number, Image.new("RGB", (32, 32))
        for source, picture in value.read(wanted.keys()):
            yield wanted[source], picture

    return Clip(times_s=np.array(times, dtype=np.float64), duration_s=align.window_s, read=read)


def _times_of(value: RawValue | TimedSignal, *, rate_hz: float) -> Float64[np.ndarray, "T"]:
    """When each step of a signal was taken, from its first on."""
    if isinstance(value, TimedSignal) and value.times_s is not None:
        return value.times_s
    values = value.values if isinstance(value, TimedSignal) else np.asarray(value)
    return np.arange(len(values), dtype=np.float64) / rate_hz


def num_steps(align: AlignSettings) -> int:
    """Time steps of an aligned signal."""
    return max(1, round(align.window_s * align.rate_hz))


def own_rate_hz(run: RunConfig, modality: str) -> float:
    """Time steps a second of a modality's signals as they lie in files that bring no times; 1 where nobody says."""
    told = run.model.encoders[modality].preprocess.get("rate_hz", 1.0)
    return float(told) if isinstance(told, int | float) and told > 0 else 1.0


def aligned_table(
    table: Mapping[str, Option], *, kind: Kind, align: AlignSettings, modality: str
) -> Mapping[str, Option]:
    """A modality's preprocessing options with those that alignment decides.

    Raises:
        ModelError: the run sets one of them itself, or does not say how fast its signals were sampled.
    """
    decided: dict[Kind, dict[str, Option]] = {
        "audio": {"seconds": align.window_s},
        "signal": {"length": num_steps(align)},
        "video": {},
    }
    if kind not in decided:
        return table
    refused = {"audio": ("seconds", "trim"), "signal": ("length", "part"), "video": ("pick",)}[kind]
    set_here = [name for name in refused if name in table and table[name] != "none"]
    of = f"preprocess of modality {modality!r}"
    if set_here:
        raise ModelError(
            f"{of}: {set_here} beside model.align, which decides when a value begins and ends; allowed: leave them away"
        )
    if kind == "signal" and "rate_hz" not in table:
        raise ModelError(
            f"{of}: model.align needs rate_hz, the time steps a second of its files, for those without a column time_s"
        )
    if kind == "signal":
        # filters come after alignment, and find the clock's rate
        decided["signal"]["rate_hz"] = align.rate_hz
    return {**table, **decided[kind]}
