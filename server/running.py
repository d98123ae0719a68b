"""Running: one server app at a time over a run folder; whoever resumes a run can tell whether one is at work.

in        a run folder
out       RUN/lock, held by the process that runs it, let go by the kernel however that ends
relies on flock: the file alone says nothing
"""

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from shared.errors import RunError

FILE_NAME = "lock"


@contextlib.contextmanager
def run_alone(folder: Path) -> Iterator[None]:
    """No other process runs this folder meanwhile; two would count each other's rounds.

    Raises:
        RunError: one does so now.
    """
    with (folder / FILE_NAME).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RunError(f"{folder}: another process runs it now; end that one first, or follow it") from None
        yield


def is_run(folder: Path) -> bool:
    """Whether a process runs this folder now."""
    try:
        with run_alone(folder):
            return False
    except RunError:
        return True
