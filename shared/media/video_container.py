"""Video container: whether a video file is all there, read from its outer structure.

in        the bytes of an MP4, QuickTime, Matroska, WebM, AVI or animated WebP file
out       nothing, or a MediaFault
relies on nothing: demuxers end quietly where a file was cut
"""

from collections.abc import Iterator

from shared.errors import MediaFault

_UNKNOWN_SIZE = (1 << 64) - 1


def judge_boxes(data: bytes) -> None:
    """Turns away an MP4 or QuickTime file whose last box is longer than the file, or that has no index.

    Source: ISO/IEC 14496-12, section 4.2.

    Raises:
        MediaFault: it was cut.
    """
    names, end = set(), 0
    for name, end in _boxes(data):
        names.add(name)
        if end > len(data):
            raise _cut(len(data), of=end)
    if end != len(data) or b"moov" not in names:
        raise MediaFault(field="content", came="truncated or damaged (no whole index)", allowed="a whole video")


def judge_ebml(data: bytes) -> None:
    """Turns away a Matroska or WebM file whose segment is longer than the file.

    Source: RFC 8794, sections 4 to 6; RFC 9559, section 5.1. A recorder that cannot seek writes no size.

    Raises:
        MediaFault: it was cut.
    """
    position = 0
    while position < len(data):
        _, position = _ebml_number(data, position, keeps_marker=True)
        size, position = _ebml_number(data, position, keeps_marker=False)
        if size == _UNKNOWN_SIZE:
            return
        if position + size > len(data):
            raise _cut(len(data), of=position + size)
        position += size


def judge_riff(data: bytes) -> None:
    """Turns away an AVI or WebP file with a part that is longer than the file.

    Raises:
        MediaFault: it was cut.
    """
    position = 0
    while position + 8 <= len(data) and data[position : position + 4] == b"RIFF":
        end = position + 8 + int.from_bytes(data[position + 4 : position + 8], "little")
        if end > len(data):
            raise _cut(len(data), of=end)
        position = end + end % 2


def _boxes(data: bytes) -> Iterator[tuple[bytes, int]]:
    """Name and end of each outermost box."""
    position = 0
    while position + 8 <= len(data):
        size, name = int.from_bytes(data[position : position + 4], "big"), data[position + 4 : position + 8]
        if size == 1:
            size = int.from_bytes(data[position + 8 : position + 16], "big")
        end = len(data) if size == 0 else position + max(8, size)
        yield name, end
        position = end


def _ebml_number(data: bytes, position: int, *, keeps_marker: bool) -> tuple[int, int]:
    """A number of variable length, and where the next begins."""
    first = data[position] if position < len(data) else 0
    length = 9 - first.bit_length()
    if length > 8 or position + length > len(data):
        raise MediaFault(field="content", came=f"truncated or damaged (at byte {position})", allowed="a whole video")
    number = int.from_bytes(data[position : position + length], "big")
    marker = 1 << (7 * length)
    if not keeps_marker:
        number = _UNKNOWN_SIZE if number == 2 * marker - 1 else number - marker
    return number, position + length


def _cut(there: int, *, of: int) -> MediaFault:
    return MediaFault(field="content", came=f"truncated ({there} of {of} bytes)", allowed="a whole video")
