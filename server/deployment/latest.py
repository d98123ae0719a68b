"""Latest: the run that a deployment did last, and where it stands, read from its folder.

in        DIR/latest-run, and the folder it names
out       its folder, its last round, what its handshake found
relies on server/history.py for the rounds
"""

from pathlib import Path

from server.deployment.settings import Deployment
from server.history import METRICS_FILE, read_rounds
from server.records import RoundRecord
from server.settings import FILE_NAME, write_atomically

NOTE = "latest-run"


def note_run(folder: Path, *, deployment: Deployment) -> None:
    """Remember which run was started last; it may lie anywhere."""
    write_atomically(deployment.folder / NOTE, str(folder.resolve()).encode())


def latest_run(deployment: Deployment) -> Path | None:
    """The run folder that was started last; None where there is none, or it is gone."""
    note = deployment.folder / NOTE
    folder = Path(note.read_text(encoding="utf-8")) if note.is_file() else None
    return folder if folder is not None and (folder / FILE_NAME).is_file() else None


def latest_round(deployment: Deployment) -> RoundRecord | None:
    """The last round of the latest run; None where there is none yet."""
    folder = latest_run(deployment)
    return last_round(folder) if folder is not None else None


def last_round(folder: Path) -> RoundRecord | None:
    """The last round of a run; None where there is none yet."""
    path = folder / METRICS_FILE
    rounds = read_rounds(path) if path.is_file() else []
    return rounds[-1] if rounds else None
