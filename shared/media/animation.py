"""Animation: an animated GIF, PNG or WebP becomes a clip.

in        bytes of a file whose ending names its format
out       Clip; transparent parts on white
relies on Pillow's decoders, held to the one format that the ending names

Size and number of frames are read from the header and judged before a pixel is decoded. A still picture is a clip of
one frame.
"""

import io
import warnings
from collections.abc import Collection, Iterator

from PIL import Image

from shared.errors import MediaFault
from shared.media.clip import Clip, Look, judge_length, judge_size
from shared.media.content import content_name
from shared.media.image import to_rgb
from shared.media.video_container import judge_riff

ANIMATION_SUFFIXES = {".gif": "GIF", ".png": "PNG", ".webp": "WEBP"}
DEFAULT_FRAME_S = 0.1
"""for frames that say 0, as browsers show them"""


def decode_animation(data: bytes, *, suffix: str) -> Clip:
    """The clip in a file's bytes.

    Raises:
        MediaFault: it is not whole, or larger or longer than allowed.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return _looked_at(data, wanted=ANIMATION_SUFFIXES[suffix])
        except MediaFault:
            raise
        except Exception as error:  # noqa: BLE001  a decoder may raise anything on a file made to break it
            raise MediaFault(
                field="content", came=f"truncated or damaged ({str(error)[:80]})", allowed="a whole clip"
            ) from None


def _looked_at(data: bytes, *, wanted: str) -> Clip:
    image = _opened(data, wanted=wanted)
    judge_size(*image.size)
    if wanted == "GIF" and not data.rstrip(b"\0").endswith(b";"):
        raise MediaFault(field="content", came="truncated (no end mark)", allowed="a whole clip")
    if wanted == "WEBP":
        judge_riff(data)
    if wanted == "PNG":
        image.verify()  # checks every chunk's sum, and leaves the image unusable
        image = _opened(data, wanted=wanted)
    count = int(getattr(image, "n_frames", 1))
    judge_length(duration_s=0.0, frames=count, pixels=count * image.width * image.height)
    look, time_s, shown_s = Look(), 0.0, 0.0
    for number in range(count):
        image.seek(number)
        image.load()
        look.see(time_s, width=image.width, height=image.height, picture=lambda: to_rgb(image.copy()))
        shown_s = float(image.info.get("duration") or 0.0) / 1000 or DEFAULT_FRAME_S
        time_s += shown_s
    return look.clip(last_s=shown_s, again=lambda numbers: _again(data, numbers, wanted=wanted))


def _again(data: bytes, numbers: Collection[int], *, wanted: str) -> Iterator[tuple[int, Image.Image]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = _opened(data, wanted=wanted)
        for number in sorted(set(numbers)):
            image.seek(number)
            yield number, to_rgb(image.copy())


def _opened(data: bytes, *, wanted: str) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return Image.open(io.BytesIO(data), formats=[wanted])
        except Image.DecompressionBombError:
            judge_size(1 << 16, 1 << 16)
            raise
        except Exception:  # noqa: BLE001  as above: the header may be anything
            raise MediaFault(
                field="content",
                came=f"not {wanted} ({content_name(data)})",
                allowed=f"{wanted}, as the file's name says",
            ) from None
