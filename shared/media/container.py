"""Container: whether an audio file declares sane numbers and is all there, read from its outer structure.

in        the bytes of a WAV or Ogg file
out       nothing, or a MediaFault
relies on nothing: libsndfile shortens a cut WAV without a word and refuses a rate of 0 without naming it

FLAC and MP3 need no walk of ours: their decoder reports fewer samples than the header declares. An MP3 without a
Xing or VBRI header declares none; one that was cut cannot be told from a shorter one.
"""

import struct
from collections.abc import Iterator

from shared.errors import MediaFault

_OGG_HEADER_BYTES = 27
_OGG_LAST_PAGE = 4
_STREAMED_WAV_BYTES = 0xFFFFFFFF


def judge_wav(data: bytes) -> None:
    """Turns away a WAV file whose header declares no sample rate, no channel or more sound than there is.

    Raises:
        MediaFault: with the number that is wrong.
    """
    declares_format = False
    for name, start, size in _riff_chunks(data):
        if name == b"fmt " and len(data) >= start + 16:
            declares_format = True
            channels, sample_rate_hz = struct.unpack_from("<HI", data, start + 2)
            if sample_rate_hz == 0:
                raise MediaFault(field="sample_rate_hz", came="0", allowed="the rate it was recorded at")
            if channels == 0:
                raise MediaFault(field="channels", came="0", allowed="1 or more")
        if name == b"data":
            if not declares_format:
                raise MediaFault(field="content", came="sound before any format", allowed="a WAV file with a format")
            there = len(data) - start
            # A recorder that writes to a pipe cannot know the length and declares the largest one.
            if there < size != _STREAMED_WAV_BYTES:
                came = f"truncated ({there} of {size} bytes of sound)"
                raise MediaFault(field="content", came=came, allowed="a whole recording")
            return
    raise MediaFault(field="content", came="without any sound (no data chunk)", allowed="a whole recording")


def judge_ogg(data: bytes) -> None:
    """Turns away an Ogg file that ends within a page or before the page that is marked as the last.

    Source: the Ogg page format, RFC 3533, section 6.

    Raises:
        MediaFault: it was cut or damaged.
    """
    position, last = 0, 0
    while position < len(data):
        header = data[position : position + _OGG_HEADER_BYTES]
        if len(header) < _OGG_HEADER_BYTES or header[:4] != b"OggS":
            raise _cut_ogg(position)
        last, segments = header[5], header[26]
        table = data[position + _OGG_HEADER_BYTES : position + _OGG_HEADER_BYTES + segments]
        end = position + _OGG_HEADER_BYTES + segments + sum(table)
        if len(table) < segments or end > len(data):
            raise _cut_ogg(position)
        position = end
    if not last & _OGG_LAST_PAGE:
        raise _cut_ogg(position)


def _cut_ogg(position: int) -> MediaFault:
    return MediaFault(
        field="content",
        came=f"truncated or damaged (at byte {position})",
        allowed="a whole recording, to its last page",
    )


def _riff_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Name, first byte and declared size of each chunk of a RIFF file."""
    position = 12
    while position + 8 <= len(data):
        name, size = struct.unpack_from("<4sI", data, position)
        yield name, position + 8, size
        position += 8 + size + size % 2
