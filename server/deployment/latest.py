"""Latest: the run that a deployment did last, and where it stands, read from its folder.

in        DIR/runs
out       its folder, its last round, what its handshake found
relies on server/history.py for the rounds
"""

from pathlib import Path

from server.history import METRICS_FILE, read_rounds
from server.records import RoundRecord
from server.settings import FILE_NAME


def latest_run(runs: Path) -> Path | None:
    """The run folder that was started or written to last; None where there is none."""
    folders = [path for path in runs.glob("*") if (path / FILE_NAME).is_file()]
    return max(folders, key=_written, default=None)


def latest_round(runs: Path) -> RoundRecord | None:
    """The last round of the latest run; None where there is none yet."""
    folder = latest_run(runs)
    return last_round(folder) if folder is not None else None


def last_round(folder: Path) -> RoundRecord | None:
    """The last round of a run; None where there is none yet."""
    path = folder / METRICS_FILE
    rounds = read_rounds(path) if path.is_file() else []
    return rounds[-1] if rounds else None


def _written(folder: Path) -> float:
    files = (folder / name for name in (FILE_NAME, "starts", METRICS_FILE))
    return max((path.stat().st_mtime for path in files if path.is_file()), default=0.0)
