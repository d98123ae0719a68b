"""Video: the bytes of one clip become pictures with their times. The only door to av (PyAV, FFmpeg's libraries).

in        bytes of a file whose ending names its container
out       Clip, whose frames are decoded when they are asked for
relies on FFmpeg's demuxers and decoders, held to the container that the ending names and to common codecs;
          video_container.py finds what they pass over in silence; animation.py reads animated pictures

What a file declares is judged before a frame is decoded, and every frame again once it is there. Nothing is opened but
the bytes given: no protocol is allowed, and a container's references to other files are not followed.
"""

import io
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from shared.errors import MediaFault
from shared.media.animation import ANIMATION_SUFFIXES, decode_animation
from shared.media.clip import MAX_FRAME_PIXELS, MAX_FRAME_RATE_HZ, Clip, Look, judge_length, judge_size
from shared.media.content import content_name
from shared.media.file import read_file
from shared.media.video_container import judge_boxes, judge_ebml, judge_riff

if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import InputContainer
    from av.video.stream import VideoStream

_CONTAINERS: dict[str, tuple[str, Callable[[bytes], None]]] = {
    ".avi": ("avi", judge_riff),
    ".mkv": ("matroska", judge_ebml),
    ".mov": ("mov", judge_boxes),
    ".mp4": ("mov", judge_boxes),
    ".webm": ("matroska", judge_ebml),
}
"""ending -> FFmpeg's name of the demuxer, and what finds a file that was cut"""
VIDEO_SUFFIXES = (*sorted([*_CONTAINERS, *ANIMATION_SUFFIXES]),)
CODECS = (
    "av1",
    "ffv1",
    "h264",
    "hevc",
    "mjpeg",
    "mpeg1video",
    "mpeg2video",
    "mpeg4",
    "prores",
    "rawvideo",
    "vp8",
    "vp9",
)
_OPTIONS = {"protocol_whitelist": "none", "max_pixels": str(MAX_FRAME_PIXELS), "err_detect": "explode"}


def open_video(path: Path) -> Clip:
    """The clip in a file.

    Raises:
        MediaFault: it is not a whole clip in the container that its name says, of allowed size, rate and length.
    """
    return decode_video(read_file(path)[0], suffix=path.suffix.lower())


def decode_video(data: bytes, *, suffix: str) -> Clip:
    """The clip in a file's bytes, all frames decoded once; `suffix` is the file's ending. See `open_video`."""
    if suffix not in VIDEO_SUFFIXES:
        raise MediaFault(field="name", came=f"ending in {suffix!r}", allowed=", ".join(VIDEO_SUFFIXES))
    if suffix in ANIMATION_SUFFIXES:
        return decode_animation(data, suffix=suffix)
    judge_whole = _CONTAINERS[suffix][1]
    with _sound_container(data, suffix=suffix) as container:
        judge_whole(data)
        stream = _judged_stream(container)
        look = Look()
        for frame in container.decode(stream):
            if frame.is_corrupt:
                came = f"damaged (frame {len(look.times_s) + 1})"
                raise MediaFault(field="content", came=came, allowed="a whole video")
            look.see(frame.time, width=frame.width, height=frame.height, picture=_maker(frame))
        rate = stream.average_rate
        return look.clip(
            last_s=float(1 / rate) if rate else None, again=lambda numbers: _again(data, numbers, suffix=suffix)
        )


def _again(data: bytes, numbers: Collection[int], *, suffix: str) -> Iterator[tuple[int, Image.Image]]:
    """Frames decoded anew, one at a time, up to the last that is wanted."""
    wanted = set(numbers)
    with _sound_container(data, suffix=suffix) as container:
        for number, frame in enumerate(container.decode(_judged_stream(container))):
            if number in wanted:
                yield number, _maker(frame)()
            if number >= max(wanted, default=-1):
                return


@contextmanager
def _sound_container(data: bytes, *, suffix: str) -> "Iterator[InputContainer]":
    """The file, opened; whatever FFmpeg finds wrong with it while it is open is a MediaFault."""
    import av

    # it would print what it finds odd, names and all
    av.logging.set_level(None)
    demuxer = _CONTAINERS[suffix][0]
    try:
        with av.open(
            io.BytesIO(data), mode="r", format=demuxer, options=dict(_OPTIONS), metadata_errors="replace"
        ) as container:
            yield container
    except MediaFault:
        raise
    except Exception as error:  # noqa: BLE001  a decoder may raise anything on a file made to break it
        if not _begins_as(data, demuxer):
            wanted = suffix.removeprefix(".").upper()
            raise MediaFault(
                field="content", came=f"not {wanted} ({content_name(data)})", allowed=f"{wanted}, as its name says"
            ) from None
        reason = str(getattr(error, "strerror", None) or error)[:80]
        raise MediaFault(field="content", came=f"truncated or damaged ({reason})", allowed="a whole video") from None


def _begins_as(data: bytes, demuxer: str) -> bool:
    return {
        "avi": data[:4] == b"RIFF" and data[8:12] == b"AVI ",
        "matroska": data[:4] == b"\x1aE\xdf\xa3",
        "mov": data[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"),
    }[demuxer]


def _judged_stream(container: "InputContainer") -> "VideoStream":
    """The one video stream, ready to be decoded.

    Raises:
        MediaFault: there is none, or it declares more than is allowed.
    """
    if not container.streams.video:
        raise MediaFault(field="streams", came="no pictures", allowed="a video")
    stream = container.streams.video[0]
    context = stream.codec_context
    name = context.codec.canonical_name
    if name not in CODECS:
        raise MediaFault(field="codec", came=name[:40], allowed=", ".join(CODECS))
    judge_size(context.width, context.height)
    rate = stream.average_rate or Fraction(0)
    if not 0 <= rate <= MAX_FRAME_RATE_HZ:
        raise MediaFault(field="frame_rate_hz", came=f"{float(rate):g}", allowed=f"at most {MAX_FRAME_RATE_HZ}")
    own = float(stream.duration * stream.time_base) if stream.duration and stream.time_base else 0.0
    duration_s = max(own, float(container.duration or 0) / 1e6)
    frames = max(stream.frames, int(own * rate))
    judge_length(duration_s=duration_s, frames=frames, pixels=frames * context.width * context.height)
    # one thread: a site's cores are its owner's, and frames come out alike
    context.thread_count = 1
    context.options = {name: _OPTIONS[name] for name in ("max_pixels", "err_detect")}
    return stream


def _maker(frame: "VideoFrame") -> Callable[[], Image.Image]:
    """What makes a picture of a frame, turned as the file says it is to be seen."""

    def picture() -> Image.Image:
        made = Image.fromarray(frame.to_ndarray(format="rgb24"))
        turn = round(frame.rotation) % 360
        return made.rotate(turn, expand=True) if turn else made

    return picture
