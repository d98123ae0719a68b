"""Running: one server app at a time over a run folder; whoever resumes a run can tell whether one is at work.

in        a run folder
out       RUN/lock, held by the process that runs it, let go by the kernel however that ends
relies on flock: the file alone says nothing
"""

import contextlib
import fcntl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from shared.errors import RunError

FILE_NAME = "lock"


@contextlib.contextmanager
def run_alone(folder: Path) -> Iterator[None]:
    """No other process runs this folder meanwhile; two would count each other's rounds.

    Raises:
        RunError: one does so now.
    """
    with (folder / FILE_NAME).open("a") as lock:
        # more than once: whoever only looks (is_run) has the lock for a moment
        if not any(_could_lock(lock, pause_s=pause_s) for pause_s in (0.0, 0.1, 0.3)):
            raise RunError(f"{folder}: another process runs it now; end that one first, or follow it")
        yield


def is_run(folder: Path) -> bool:
    """Whether a process runs this folder now."""
    with (folder / FILE_NAME).open("a") as lock:
        return not _could_lock(lock, pause_s=0.0)


def _could_lock(lock: IO[str], *, pause_s: float) -> bool:
    time.sleep(pause_s)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
