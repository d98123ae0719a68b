"""Run log: what the server app says while it works on a deployment's run, in the run's own folder.

in        warnings of Motet's own loggers, and lines that whoever watches should know
out       RUN/server.log, a line each with its time; those that came since somebody last looked
relies on nothing of Flower's: what a server app prints stands nowhere on the server's disks
"""

import contextlib
import logging
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

FILE_NAME = "server.log"
_MOTET = logging.getLogger("motet")
_TOLD = logging.getLogger("motet.server.told")


class _OneLine(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        text = " ".join(record.getMessage().split())
        if record.exc_info:
            text += " | " + " | ".join(filter(None, map(str.strip, self.formatException(record.exc_info).splitlines())))
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="seconds")
        return f"{at} {record.levelname} {text}"


@contextlib.contextmanager
def run_log(folder: Path) -> Iterator[Callable[[str], None]]:
    """Whatever Motet warns of meanwhile is written into the folder, and so are lines given to what this yields."""
    handler = logging.FileHandler(folder / FILE_NAME, encoding="utf-8")
    handler.setFormatter(_OneLine())
    _MOTET.addHandler(handler)
    try:
        yield _TOLD.warning
    finally:
        _MOTET.removeHandler(handler)
        handler.close()


class LogReader:
    """Reads on from where the log of a run ended when this was made."""

    def __init__(self, folder: Path) -> None:
        """Takes the run's folder; the file may come later."""
        self._path = folder / FILE_NAME
        self._read = self._path.stat().st_size if self._path.is_file() else 0

    def new_lines(self) -> list[str]:
        """What was said since, without times; a line that is half written comes the next time."""
        if not self._path.is_file():
            return []
        with self._path.open("rb") as file:
            file.seek(self._read)
            whole, _, _ = file.read().rpartition(b"\n")
        self._read += len(whole) + 1 if whole else 0
        lines = whole.decode("utf-8", errors="replace").split("\n") if whole else []
        return [line.split(" ", maxsplit=2)[-1] for line in lines]
