"""File: all bytes of one regular file, with the stamp by which a later change is seen.

in        a path that location.py found inside the data folder
out       bytes for the decoders and for the digest, so that what is decoded is what was digested
relies on nothing: a device, a pipe or a link put in place of the file since then is not opened
"""

import os
import stat
from pathlib import Path

from shared.errors import MediaFault

MAX_FILE_BYTES = 1 << 30
Stamp = tuple[int, int, int]
"""size in bytes, time of last change of the content, of the entry, both in nanoseconds"""


def read_file(path: Path, *, max_bytes: int = MAX_FILE_BYTES) -> tuple[bytes, Stamp]:
    """All bytes of a regular file and its stamp at the time of reading.

    Raises:
        MediaFault: it is missing, unreadable, empty, too long or no regular file.
    """
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        raise _unreadable(error) from None
    try:
        status = os.fstat(descriptor)
        judge_status(status, max_bytes=max_bytes)
        data = os.read(descriptor, status.st_size)
        while len(data) < status.st_size and (more := os.read(descriptor, status.st_size - len(data))):
            data += more
    except OSError as error:
        raise _unreadable(error) from None
    finally:
        os.close(descriptor)
    if len(data) < status.st_size:
        raise MediaFault(field="file", came="shortened while it was read", allowed="a file nobody is writing to")
    return data, _stamp(status)


def stamp_of(path: Path) -> Stamp | None:
    """The stamp of a file as it is now, None where it cannot be had; does not open it."""
    try:
        return _stamp(os.lstat(path))
    except OSError:
        return None


def judge_status(status: os.stat_result, *, max_bytes: int = MAX_FILE_BYTES) -> None:
    """Turns away all but a regular file of allowed length.

    Raises:
        MediaFault: it is something else.
    """
    if stat.S_ISDIR(status.st_mode):
        raise MediaFault(field="file", came="a folder", allowed="a file")
    if not stat.S_ISREG(status.st_mode):
        raise MediaFault(field="file", came="a pipe, device, socket or link", allowed="a regular file")
    if not status.st_size:
        raise MediaFault(field="file", came="empty (0 bytes)", allowed="a file with content")
    if status.st_size > max_bytes:
        raise MediaFault(field="file", came=f"{status.st_size} bytes long", allowed=f"at most {max_bytes} bytes")


def _unreadable(error: OSError) -> MediaFault:
    return MediaFault(field="file", came=f"not readable ({error.strerror})", allowed="a file that can be read")


def _stamp(status: os.stat_result) -> Stamp:
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns
