"""Image: the bytes of one picture become an upright RGB image.

in        bytes of a file whose ending names its format
out       PIL.Image.Image in mode RGB, transparent parts on white
relies on Pillow's decoders, held to the one format that the ending names

Width and height are read from the header and judged before a pixel is decoded.
"""

import io
import re
import warnings
from pathlib import Path

from PIL import Image, ImageOps

from shared.errors import MediaFault
from shared.media.content import content_name
from shared.media.file import read_file

MAX_IMAGE_PIXELS = 64_000_000
MAX_IMAGE_SIDE = 16_384

IMAGE_SUFFIXES = {
    ".bmp": "BMP",
    ".gif": "GIF",
    ".jpeg": "JPEG",
    ".jpg": "JPEG",
    ".png": "PNG",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".webp": "WEBP",
}
_BIT_DEPTH_8 = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
_BIT_DEPTH_16 = ("I;16", "I;16L", "I;16B")
_SIZE_ALLOWED = f"1 to {MAX_IMAGE_SIDE} pixels a side and at most {MAX_IMAGE_PIXELS} pixels"


def open_image(path: Path) -> Image.Image:
    """The picture in a file, in mode RGB.

    Raises:
        MediaFault: it is not a whole, single picture of the format that its name says and of allowed size.
    """
    return decode_image(read_file(path)[0], suffix=path.suffix.lower())


def decode_image(data: bytes, *, suffix: str) -> Image.Image:
    """The picture in a file's bytes; `suffix` is the file's ending in small letters. See `open_image`."""
    if suffix not in IMAGE_SUFFIXES:
        raise MediaFault(field="name", came=f"ending in {suffix!r}", allowed=", ".join(sorted(IMAGE_SUFFIXES)))
    with warnings.catch_warnings():
        # Decoders warn about odd but readable metadata, which nobody at a site could act on.
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        image = _header(data, wanted=IMAGE_SUFFIXES[suffix])
        try:
            _judge_header(image)
            if image.format == "PNG":
                image.verify()  # checks every chunk's sum, and leaves the image unusable
                image = _header(data, wanted="PNG")
            image.load()
            return to_rgb(image)
        except MediaFault:
            raise
        except Exception as error:  # noqa: BLE001  a decoder may raise anything on a file made to break it
            raise MediaFault(
                field="content", came=f"truncated or damaged ({str(error)[:80]})", allowed="a whole picture"
            ) from None


def _header(data: bytes, *, wanted: str) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=[wanted])
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        declared = re.search(r"\d+(?= pixels)", str(error))
        came = f"{declared.group() if declared else 'far too many'} declared pixels"
        raise MediaFault(field="size", came=came, allowed=_SIZE_ALLOWED) from None
    except Exception:  # noqa: BLE001  as above: the header may be anything
        raise MediaFault(
            field="content", came=f"not {wanted} ({content_name(data)})", allowed=f"{wanted}, as the file's name says"
        ) from None


def _judge_header(image: Image.Image) -> None:
    width, height = image.size
    if not (0 < width <= MAX_IMAGE_SIDE and 0 < height <= MAX_IMAGE_SIDE and width * height <= MAX_IMAGE_PIXELS):
        raise MediaFault(field="size", came=f"{width} x {height} declared pixels", allowed=_SIZE_ALLOWED)
    # A telephone's JPEG may carry a second picture for 3-D screens, which Pillow calls MPO; the first one counts.
    if image.format != "MPO" and getattr(image, "is_animated", False):
        raise MediaFault(field="frames", came="more than one", allowed="one still picture")
    if image.mode not in (*_BIT_DEPTH_8, *_BIT_DEPTH_16):
        raise MediaFault(field="mode", came=image.mode, allowed=", ".join((*_BIT_DEPTH_8, *_BIT_DEPTH_16)))


def to_rgb(image: Image.Image) -> Image.Image:
    """Upright, 8 bits a channel; transparency is laid on white, where `convert` would show what it hides."""
    image = ImageOps.exif_transpose(image)
    if image.mode in _BIT_DEPTH_16:
        image = image.convert("I").point(lambda value: value / 257).convert("L")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, layer).convert("RGB")
    return image.convert("RGB")
