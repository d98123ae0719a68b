"""Passed: where a site notes that a run's training code has passed its preflight, for the processes that come after.

in        the owner's cache, a run's name and settings, the unit protected here
out       a note, looked for on the disk until this process has seen it made
relies on nobody but the owner writing to the cache
"""

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from client.run_model import RunKey


@dataclass
class Note:
    """A file without content; Flower may start a process for each message, and none of them asks the last one."""

    path: Path
    _is_known: bool = False

    def is_there(self) -> bool:
        """Whether the preflight was passed, in whatever process."""
        return self._is_known or self.path.exists()

    def make(self) -> None:
        """Notes that it was."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.touch()
        self._is_known = True


@lru_cache(maxsize=65536)
def note_of(cache: Path, *, run_id: str, unit: str | None, key: RunKey) -> Note:
    """The note of one run with exactly these settings; the same object each time."""
    passed = hashlib.sha256(f"{run_id} {unit} {key.digest}".encode()).hexdigest()
    return Note(cache / "preflight" / passed)
