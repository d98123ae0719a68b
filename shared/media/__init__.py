"""Media: one file of a data folder becomes one checked value, or a fault that says what is wrong with it.

in        the path of an image, audio, signal, video or features file, from manifest.py
out       a Pillow image, a Waveform, a Clip or an array, for preprocess/; MediaFault otherwise
relies on nothing in the file: what it declares is judged before anything of that size is allocated

One file a kind: image.py, audio.py (with container.py), array.py, video.py (with animation.py); file.py reads
bytes.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from shared.errors import MediaFault
from shared.media.array import (
    ARRAY_SUFFIXES,
    FEATURES_SUFFIXES,
    TimedSignal,
    array_shape,
    decode_features,
    decode_signal,
    decode_timed_signal,
    open_features,
    open_signal,
)
from shared.media.audio import AUDIO_SUFFIXES, Waveform, decode_audio, open_audio
from shared.media.clip import Clip, clip_of
from shared.media.content import Originals
from shared.media.file import Stamp, read_file, stamp_of
from shared.media.image import IMAGE_SUFFIXES, decode_image, open_image
from shared.media.video import VIDEO_SUFFIXES, decode_video, open_video
from shared.schema import Kind, ModalitySchema

__all__ = [
    "SUFFIXES",
    "Clip",
    "MediaFault",
    "MediaValue",
    "Originals",
    "Stamp",
    "TimedSignal",
    "Waveform",
    "array_shape",
    "clip_of",
    "decode",
    "decode_timed",
    "open_audio",
    "open_features",
    "open_image",
    "open_signal",
    "open_video",
    "read_file",
    "stamp_of",
]

MediaValue = Image.Image | Waveform | Clip | npt.NDArray[np.float32]

DECODER_VERSION = 1
"""Raise it when the same file would decode to other values: cached tensors of older versions are then left alone."""

SUFFIXES: dict[Kind, tuple[str, ...]] = {
    "image": tuple(sorted(IMAGE_SUFFIXES)),
    "audio": tuple(sorted(AUDIO_SUFFIXES)),
    "signal": ARRAY_SUFFIXES,
    "video": VIDEO_SUFFIXES,
    "features": FEATURES_SUFFIXES,
    "text": (),
}
"""kind -> endings its files may have, in small letters; a text stands in the manifest itself"""


def decode(data: bytes, *, path: Path, schema: ModalitySchema) -> MediaValue:
    """The value that a file's bytes hold.

    Args:
        data: all bytes of the file.
        path: where they came from; its ending says what they must be.
        schema: of the modality; never of kind text.

    Raises:
        MediaFault: the bytes are not a whole, sane value of that kind.
    """
    suffix = path.suffix.lower()
    if schema.kind == "image":
        return decode_image(data, suffix=suffix)
    if schema.kind == "audio":
        return decode_audio(data, suffix=suffix)
    if schema.kind == "video":
        return decode_video(data, suffix=suffix)
    if schema.kind == "signal":
        return decode_signal(data, suffix=suffix, channels=schema.channels or 0)
    return decode_features(data, suffix=suffix, width=schema.width or 0)


def decode_timed(data: bytes, *, path: Path, schema: ModalitySchema) -> MediaValue | TimedSignal:
    """The value that a file's bytes hold, as `decode` gives it, and a signal with its own times.

    Raises:
        MediaFault: as `decode`.
    """
    if schema.kind == "signal":
        return decode_timed_signal(data, suffix=path.suffix.lower(), channels=schema.channels or 0)
    return decode(data, path=path, schema=schema)
