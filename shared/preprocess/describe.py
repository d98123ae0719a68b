"""Descriptions: what can be said of a picture, a sound or a signal by rule, without any network.

in        one value
out       a short text, from a small vocabulary
relies on fixed thresholds: nothing is learned, and equal values get equal words
"""

import numpy as np
import numpy.typing as npt
from PIL import Image

from shared.media import Waveform
from shared.preprocess import RawValue, wrong_kind

COLOURS: dict[str, tuple[int, int, int]] = {
    "black": (0, 0, 0),
    "white": (255, 255, 255),
    "grey": (128, 128, 128),
    "red": (220, 30, 30),
    "orange": (245, 140, 20),
    "yellow": (250, 230, 50),
    "green": (40, 160, 60),
    "blue": (40, 80, 210),
    "purple": (130, 50, 160),
    "pink": (250, 150, 190),
    "brown": (130, 80, 40),
}
"""the eleven basic colour terms of Berlin and Kay 1969, section 1.3, each by one example"""
_SIDE = 32
_MOST_COLOURS = 3
_SHARE_TO_NAME = 0.08
_SHARES = ((0.5, "mostly"), (0.2, "partly"), (0.0, "slightly"))
_LEVELS_DB = ((-20.0, "loud"), (-40.0, "medium"), (-60.0, "soft"))
_PITCHES_HZ = ((500.0, "very low"), (1200.0, "low"), (2500.0, "middle"), (5000.0, "high"))
_SIZES = ((0.03, "still"), (0.3, "weak"), (3.0, "moderate"), (30.0, "strong"))
_PACES = ((0.02, "slow"), (0.1, "even"), (0.25, "fast"))


def describe_picture(value: RawValue) -> str:
    """Its light, its colours by how much of it they fill, where they lie, and how much is going on."""
    if not isinstance(value, Image.Image):
        raise wrong_kind(value, wanted="an image")
    pixels = np.asarray(value.convert("RGB").resize((_SIDE, _SIDE), Image.Resampling.BOX), dtype=np.float32)
    names = list(COLOURS)
    examples = np.array(list(COLOURS.values()), dtype=np.float32)
    nearest = ((pixels[:, :, None] - examples) ** 2).sum(axis=3).argmin(axis=2)
    shares = np.bincount(nearest.ravel(), minlength=len(names)) / nearest.size
    order = [place for place in np.argsort(-shares, kind="stable")[:_MOST_COLOURS] if shares[place] >= _SHARE_TO_NAME]
    said = [
        f"{_word_above(float(shares[place]), _SHARES, last='slightly')} {names[place]} {_where(nearest == place)}"
        for place in order
    ]
    grey = pixels.mean(axis=2)
    light = "dark" if grey.mean() < 85 else "bright" if grey.mean() > 170 else "half bright"
    edges = np.abs(np.diff(grey, axis=0)).mean() + np.abs(np.diff(grey, axis=1)).mean()
    busy = "plain" if edges < 10 else "busy" if edges > 40 else "simple"
    return f"a {light} {busy} picture, {', '.join(said)}"


def describe_sound(value: RawValue) -> str:
    """How long, loud, high, clear and steady it is."""
    if not isinstance(value, Waveform):
        raise wrong_kind(value, wanted="a waveform")
    samples = np.asarray(value.samples, dtype=np.float64).mean(axis=0)
    seconds = len(samples) / value.sample_rate_hz
    size = float(np.sqrt(np.mean(samples**2))) if len(samples) else 0.0
    if size < 1e-5:
        return f"{_long(seconds)} silence"
    loud = _word_above(20 * np.log10(size), _LEVELS_DB, last="faint")
    power = np.abs(np.fft.rfft(samples)) ** 2
    hz = np.fft.rfftfreq(len(samples), 1 / value.sample_rate_hz)
    pitch = _word_below(float((hz * power).sum() / power.sum()), _PITCHES_HZ, last="very high")
    flat = float(np.exp(np.mean(np.log(power + 1e-12))) / (power.mean() + 1e-12))
    clear = "tonal" if flat < 0.01 else "noisy" if flat > 0.2 else "mixed"
    parts = [np.sqrt(np.mean(part**2)) for part in np.array_split(samples, 8) if len(part)]
    steady = "steady" if np.std(parts) < 0.3 * np.mean(parts) else "changing"
    third = max(1, len(parts) // 3)
    course = float(np.mean(parts[-third:]) / max(np.mean(parts[:third]), 1e-9))
    end = "growing" if course > 1.5 else "fading" if course < 0.67 else "even"
    return f"a {_long(seconds)} {loud} {clear} sound, {pitch} in pitch, {steady}, {end}"


def describe_signal(value: RawValue) -> str:
    """Of each channel its level, strength, pace and course; channels are called by their number."""
    if not isinstance(value, np.ndarray) or value.ndim != 2:
        raise wrong_kind(value, wanted="an array of [time, channels]")
    return "; ".join(f"{place + 1} {_course(value[:, place])}" for place in range(value.shape[1]))


def _course(values: npt.NDArray[np.generic]) -> str:
    numbers = np.asarray(values, dtype=np.float64)
    mean, size = float(numbers.mean()), float(numbers.std())
    level = "near zero" if abs(mean) < 0.1 * size + 0.03 else "positive" if mean > 0 else "negative"
    strength = _word_below(size, _SIZES, last="very strong")
    if len(numbers) < 2 or size < 1e-9:
        return f"{level} {strength}"
    crossings = float(np.mean(np.diff(np.signbit(numbers - mean)) != 0))
    pace = _word_below(crossings, _PACES, last="very fast")
    slope = float(np.corrcoef(np.arange(len(numbers)), numbers)[0, 1])
    way = "rising" if slope > 0.5 else "falling" if slope < -0.5 else "level"
    return f"{level} {strength} {pace} {way}"


def _where(is_there: npt.NDArray[np.bool_]) -> str:
    rows, columns = np.nonzero(is_there)
    up, left = rows.mean() / _SIDE - 0.5, columns.mean() / _SIDE - 0.5
    if max(abs(up), abs(left)) < 0.12:
        return "in the middle" if np.abs(rows / _SIDE - 0.5).mean() < 0.2 else "all over"
    if abs(up) > abs(left):
        return "above" if up < 0 else "below"
    return "on the left" if left < 0 else "on the right"


def _long(seconds: float) -> str:
    return "short" if seconds < 1 else "long" if seconds > 5 else "medium long"


def _word_above(number: float, words: tuple[tuple[float, str], ...], *, last: str) -> str:
    return next((word for least, word in words if number >= least), last)


def _word_below(number: float, words: tuple[tuple[float, str], ...], *, last: str) -> str:
    return next((word for most, word in words if number < most), last)
