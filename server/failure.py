"""Failure: why a run's server app ended before its report, written where whoever started the run looks.

in        an exception on its way out of the server app
out       RUN/failure.txt, on the server's own machine; gone once the run is started again
relies on run_log.py for where the line of code that failed is written
"""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

from server.settings import write_atomically
from shared.errors import MotetError

log = logging.getLogger("motet.server")
FILE_NAME = "failure.txt"


@contextlib.contextmanager
def noted_failure(folder: Path) -> Iterator[None]:
    """Writes down what ends the run, and lets it go on its way."""
    path = folder / FILE_NAME
    path.unlink(missing_ok=True)
    try:
        yield
    except Exception as error:
        text = str(error)
        if not isinstance(error, MotetError):
            text = f"{type(error).__name__}: {error}; see the server's log"
            log.exception("the run ended")
        with contextlib.suppress(OSError):
            write_atomically(path, text.encode())
        raise


def read_failure(folder: Path) -> str | None:
    """Why the run ended; None where it did not fail."""
    path = folder / FILE_NAME
    return path.read_text(encoding="utf-8") if path.is_file() else None
