"""Unchanged: what was made of one of the owner's files, kept for as long as the file is the same.

in        a path, looked at each time
out       what a reader makes of the file there, read again whenever it may have changed
relies on a file system that notes when a file was written to, to within two seconds

Ten thousand simulated sites are asked in each round, and their settings change between none.
"""

import os
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

Made = TypeVar("Made")
SETTLED_S = 2.0
"""coarsest times that file systems in use keep, FAT's"""
_STAMP = struct.Struct("=3qQ")
"""as bytes, because ten thousand tuples of numbers would be held"""


class Same(Generic[Made]):
    """An object as a key: equal to itself alone, for settings whose comparison would cost more than what is kept.

    Whoever keeps the key keeps the object, so that no other one takes its place in memory.
    """

    __slots__ = ("it",)

    def __init__(self, it: Made) -> None:
        self.it = it

    def __hash__(self) -> int:
        return id(self.it)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self.it is other.it


class Unchanged(Generic[Made]):
    """A reader of files, or of folders' lists of names, that remembers what it made of each."""

    def __init__(self, read: Callable[[Path], Made]) -> None:
        self._read = read
        self._known: dict[str, tuple[bytes, Made]] = {}

    def __call__(self, path: Path | str) -> Made:
        """What the reader makes of the file as it is now; whatever the reader raises."""
        name = os.fspath(path)
        try:
            found = os.stat(name)  # noqa: PTH116  half the time, ten thousand times a round
        except OSError:
            self._known.pop(name, None)
            return self._read(Path(path))
        # Taken before the file is read: what is written into it meanwhile shows in the next look.
        stamp = _STAMP.pack(found.st_ctime_ns, found.st_mtime_ns, found.st_size, found.st_ino)
        known = self._known.get(name)
        if known is not None and known[0] == stamp:
            return known[1]
        self._known.pop(name, None)
        made = self._read(Path(path))
        # PRIVACY: a file just written may be written again under the same stamp, and an owner who takes something back
        # is obeyed at once. test_settings_that_were_just_written_are_read_again
        if time.time() - found.st_ctime > SETTLED_S:
            self._known[name] = (stamp, made)
        return made
