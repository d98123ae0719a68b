"""Small clips in files of every container, made in memory."""

import io
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from jaxtyping import UInt8
from PIL import Image

FORMATS: dict[str, tuple[str, str, str]] = {
    ".mp4": ("mp4", "h264", "yuv420p"),
    ".mov": ("mov", "mpeg4", "yuv420p"),
    ".webm": ("webm", "vp8", "yuv420p"),
    ".mkv": ("matroska", "ffv1", "bgr0"),
    ".avi": ("avi", "mjpeg", "yuvj420p"),
}
ANIMATIONS = {".gif": "GIF", ".png": "PNG", ".webp": "WEBP"}


def greys(num: int, *, size: tuple[int, int] = (32, 24)) -> list[UInt8[np.ndarray, "H W 3"]]:
    """Frames of one grey each, the next always 20 lighter."""
    return [np.full((size[1], size[0], 3), 20 * number, dtype=np.uint8) for number in range(num)]


def video_bytes(
    frames: Sequence[UInt8[np.ndarray, "H W 3"]],
    *,
    suffix: str = ".mkv",
    rate_hz: int = 10,
    tick: Callable[[int], int] | None = None,
    options: dict[str, str] | None = None,
    path: Path | None = None,
) -> bytes:
    """A clip in a container.

    Args:
        frames: of one size.
        suffix: of the file.
        rate_hz: frames a second.
        tick: gives a frame's time in hundredths of a second, where it is not even.
        options: of the muxer.
        path: where it is written; some muxers go over a file twice, which memory is not enough for.
    """
    container_format, codec, pixels = FORMATS[suffix]
    file = io.BytesIO()
    where = file if path is None else str(path)
    with av.open(where, "w", format=container_format, options=options or {}) as container:
        stream = container.add_stream(codec, rate=rate_hz)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pixels
        if tick is not None:
            stream.codec_context.time_base = Fraction(1, 100)
        for number, values in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(values), format="rgb24")
            if tick is not None:
                frame.pts, frame.time_base = tick(number), Fraction(1, 100)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file.getvalue() if path is None else path.read_bytes()


def animation_bytes(
    frames: Sequence[UInt8[np.ndarray, "H W 3"]], *, suffix: str = ".gif", frame_ms: Sequence[int] = ()
) -> bytes:
    """An animated picture of frames that are seen so long each; a tenth of a second, if not said."""
    pictures = [Image.fromarray(values) for values in frames]
    times = list(frame_ms) or [100] * len(pictures)
    lossless = {"lossless": True} if suffix == ".webp" else {}
    file = io.BytesIO()
    pictures[0].save(
        file, format=ANIMATIONS[suffix], save_all=True, append_images=pictures[1:], duration=times, **lossless
    )
    return file.getvalue()


def clip_bytes(suffix: str, *, num: int = 5) -> bytes:
    """`greys` in a file of any kind that a clip may be in."""
    make = animation_bytes if suffix in ANIMATIONS else video_bytes
    return make(greys(num), suffix=suffix)


def sound_only_bytes() -> bytes:
    """A video file without any picture."""
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        assert isinstance(stream, av.AudioStream)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file.getvalue()
