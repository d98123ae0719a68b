"""Clip: moving pictures and the times at which each was taken.

in        what video.py or animation.py found in a file, or pictures made by a program
out       Clip, read by preprocess/video.py and cut to a clock by preprocess/align.py
relies on times being judged where they are read: finite, never falling, from 0 on
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64
from PIL import Image

from shared.errors import MediaFault

MAX_FRAME_PIXELS = 1 << 25
MAX_FRAME_SIDE = 8_192
MAX_FRAMES = 100_000
MAX_VIDEO_S = 600
MAX_FRAME_RATE_HZ = 1_000
MAX_VIDEO_PIXELS = 1 << 34
"""over all frames, which bounds the time that a look at all of them takes: ten minutes of 30 frames at 720p fit"""
KEPT_BYTES = 1 << 26
"""a clip that fits is decoded once and kept while it is needed; of a longer one no more than a picture at a time"""


@dataclass(frozen=True)
class Clip:
    """Pictures in the order of their times; they are decoded when they are asked for."""

    times_s: Float64[np.ndarray, "T"]
    """of each picture, counted from the first one, which is at 0; never falling"""
    duration_s: float
    """until the last picture ends"""
    read: Callable[[Collection[int]], Iterator[tuple[int, Image.Image]]]
    """number and picture (mode RGB, upright) of those asked for, in their order"""

    def number_at(self, time_s: float) -> int:
        """The picture that is seen at a time: the last one that began; the first, before it."""
        # frame times are multiples of a file's clock, and sums of floats miss them by their last bits
        return max(0, int(np.searchsorted(self.times_s, time_s + 1e-6, side="right")) - 1)


def clip_of(pictures: Sequence[Image.Image], *, rate_hz: float) -> Clip:
    """A clip of pictures at hand, evenly spaced in time."""

    def read(numbers: Collection[int]) -> Iterator[tuple[int, Image.Image]]:
        for number in sorted(set(numbers)):
            yield number, pictures[number]

    times = np.arange(len(pictures), dtype=np.float64) / rate_hz
    return Clip(times_s=times, duration_s=len(pictures) / rate_hz, read=read)


class Look:
    """A first look at all pictures of a file: judges their number and times, and keeps them where they are few."""

    def __init__(self) -> None:
        self.times_s: list[float] = []
        self.kept: list[Image.Image] | None = []
        self._pixels = self._bytes = 0

    def see(self, time_s: float | None, *, width: int, height: int, picture: Callable[[], Image.Image]) -> None:
        """Notes the next picture.

        Args:
            time_s: as the file has it; None where it has none.
            width: in pixels.
            height: in pixels.
            picture: makes it, upright and in mode RGB; only called where it is kept.

        Raises:
            MediaFault: there are too many, too large ones, or their times are not sane.
        """
        judge_size(width, height)
        number = len(self.times_s) + 1
        if time_s is None or not np.isfinite(time_s):
            raise MediaFault(field=f"frame {number}", came="without a time", allowed="a time for every frame")
        if self.times_s and time_s < self.times_s[-1]:
            came = f"at {time_s:.3f} s, after one at {self.times_s[-1]:.3f} s"
            raise MediaFault(field=f"frame {number}", came=came, allowed="times that do not go back")
        self.times_s.append(time_s)
        self._pixels += width * height
        judge_length(duration_s=time_s - self.times_s[0], frames=number, pixels=self._pixels)
        self._bytes += 3 * width * height
        if self._bytes > KEPT_BYTES:
            self.kept = None
        elif self.kept is not None:
            self.kept.append(picture())

    def clip(
        self, *, last_s: float | None, again: Callable[[Collection[int]], Iterator[tuple[int, Image.Image]]]
    ) -> Clip:
        """The clip.

        Args:
            last_s: how long the last picture is seen; None: as long as the others on average.
            again: decodes pictures anew, where they were not kept.

        Raises:
            MediaFault: there was no picture.
        """
        if not self.times_s:
            raise MediaFault(field="frames", came="none", allowed="1 or more")
        times = np.array(self.times_s, dtype=np.float64) - self.times_s[0]
        mean = float(times[-1]) / (len(times) - 1) if len(times) > 1 else 0.0
        duration = float(times[-1]) + (last_s if last_s is not None and 0 < last_s <= MAX_VIDEO_S else mean or 0.04)
        kept = self.kept
        if kept is None:
            return Clip(times_s=times, duration_s=duration, read=again)
        return Clip(
            times_s=times,
            duration_s=duration,
            read=lambda numbers: ((number, kept[number]) for number in sorted(set(numbers))),
        )


def judge_size(width: int, height: int) -> None:
    """Turns away pictures that are too large.

    Raises:
        MediaFault: they are.
    """
    if not (0 < width <= MAX_FRAME_SIDE and 0 < height <= MAX_FRAME_SIDE and width * height <= MAX_FRAME_PIXELS):
        allowed = f"1 to {MAX_FRAME_SIDE} pixels a side and at most {MAX_FRAME_PIXELS} pixels"
        raise MediaFault(field="size", came=f"{width} x {height} declared pixels", allowed=allowed)


def judge_length(*, duration_s: float, frames: int, pixels: int) -> None:
    """Turns away what is too long; numbers that a file does not declare are 0.

    Raises:
        MediaFault: it is.
    """
    if duration_s > MAX_VIDEO_S:
        raise MediaFault(field="length", came=f"{duration_s:.1f} s", allowed=f"at most {MAX_VIDEO_S} s")
    if frames > MAX_FRAMES:
        raise MediaFault(field="frames", came=str(frames), allowed=f"at most {MAX_FRAMES}")
    if pixels > MAX_VIDEO_PIXELS:
        came = f"{pixels} pixels over all frames"
        raise MediaFault(field="frames", came=came, allowed=f"at most {MAX_VIDEO_PIXELS}")
