"""Runs: a prepared run is handed to the server's SuperLink and followed to its report.

in        a run folder (prepared, or of a run that was interrupted) and a deployment whose server runs
out       a progress line from what the server app writes into the folder; the report's path, or why there is none
relies on the run folder for what happened, on Flower for whether anything still goes on
"""

import contextlib
import time
from pathlib import Path

from rich.console import Console

from server.deployment.bundle import make_app
from server.deployment.latest import note_run
from server.deployment.serving import answers
from server.deployment.settings import Deployment
from server.failure import FILE_NAME as FAILURE_FILE
from server.failure import read_failure
from server.history import METRICS_FILE, read_rounds
from server.progress import ProgressLine
from server.run_log import FILE_NAME as LOG_FILE
from server.run_log import LogReader
from server.running import is_run
from server.settings import read_settings, write_atomically, write_settings
from shared import flower_commands
from shared.errors import RunError

REPORT_FILE = "report.html"
ID_FILE = "flower-run"
_LOOK_S, _ASK_FLOWER_S = 0.5, 10.0
NOTICED_WITHIN_S = 90.0
"""after which a run without a server app is ended here; Flower misses its heartbeat after about a minute"""
_REPORT_WITHIN_S = 60.0
"""after Flower says that a run has ended: for a file system to show what was written"""


def start_run(folder: Path, *, deployment: Deployment) -> str:
    """Hand a run to the server; it goes on from its last checkpoint if it has one. Flower's id of it.

    Raises:
        RunError: the server does not run, the run has ended, or it goes on already.
    """
    if not answers(deployment):
        raise RunError(f"no server runs for {deployment.folder}; start it with: motet server start {deployment.folder}")
    if (folder / REPORT_FILE).is_file():
        raise RunError(f"{folder} has ended; its report: {folder / REPORT_FILE}")
    known = _known_run(folder)
    if known is not None and not _is_over(known, folder=folder, deployment=deployment):
        raise RunError(f"{folder} goes on already; watch it: motet run --follow {folder} --on {deployment.folder}")
    settings = read_settings(folder)
    # PRIVACY: sites of a deployment are known by their enrolled keys. test_a_deployed_run_knows_sites_by_their_keys
    write_settings(settings.model_copy(update={"enrolled": deployment.enrolled}), folder=folder)
    (folder / FAILURE_FILE).unlink(missing_ok=True)
    app = make_app(deployment.folder / "app")
    run_id = flower_commands.submit(app, config={"run-folder": str(folder.resolve())}, home=deployment.flower_home)
    write_atomically(folder / ID_FILE, run_id.encode())
    note_run(folder, deployment=deployment)
    return run_id


def follow_run(folder: Path, *, deployment: Deployment, console: Console | None = None) -> Path:
    """Show where a run stands until it has ended; its report.

    A server that is started again meanwhile is waited for: the run goes on with it.

    Raises:
        RunError: it ended without a report; the reason is in the text.
    """
    run_id = _known_run(folder)
    if run_id is None:
        raise RunError(f"{folder}: was never started; start it: motet run --resume {folder} --on {deployment.folder}")
    run, shown, asked = read_settings(folder).run, 0, time.monotonic()
    shown = len(read_rounds(folder / METRICS_FILE))
    log = LogReader(folder)
    with ProgressLine(run=run, done=shown, console=console) as line:
        while not (folder / REPORT_FILE).is_file():
            for said in log.new_lines():
                line.say(said)
            for record in read_rounds(folder / METRICS_FILE)[shown:]:
                line.tell(record)
                shown += 1
            why = read_failure(folder)
            if why is None and time.monotonic() - asked > _ASK_FLOWER_S:
                asked = time.monotonic()
                why = _why_it_ended(run_id, folder=folder, deployment=deployment)
            if why is not None:
                raise RunError(
                    f"{folder}: {why}\nThe server's log: {folder / LOG_FILE}; to go on: "
                    f"motet run --resume {folder} --on {deployment.folder}"
                )
            time.sleep(_LOOK_S)
        for record in read_rounds(folder / METRICS_FILE)[shown:]:
            line.tell(record)
    return folder / REPORT_FILE


def stop_run(folder: Path, *, deployment: Deployment) -> None:
    """End a run before its time; it can be gone on with later.

    Raises:
        RunError: it does not run.
    """
    run_id = _known_run(folder)
    if run_id is None:
        raise RunError(f"{folder}: was never started on a deployment")
    flower_commands.stop_run(run_id, home=deployment.flower_home)


def _why_it_ended(run_id: str, *, folder: Path, deployment: Deployment) -> str | None:
    """None while it goes on, as far as can be told: no word from the server is no end."""
    try:
        found = flower_commands.run_status(run_id, home=deployment.flower_home)
    except RunError:
        return None
    if not found.has_ended:
        return None
    deadline = time.monotonic() + (_REPORT_WITHIN_S if found.status.endswith("completed") else 1.0)
    while time.monotonic() < deadline:
        if (folder / REPORT_FILE).is_file():
            return None
        time.sleep(_LOOK_S)
    if found.status.endswith("stopped"):
        return read_failure(folder) or "it was stopped before its end"
    return read_failure(folder) or f"Flower ended it ({found.status} {found.details})".rstrip()


def _is_over(run_id: str, *, folder: Path, deployment: Deployment) -> bool:
    """Whether nothing is at work on a run any more; when its server app was killed, Flower notices late."""
    deadline = time.monotonic() + NOTICED_WITHIN_S
    while not (over := _has_ended(run_id, deployment=deployment)) and not is_run(folder):
        if time.monotonic() > deadline:
            # nobody took it up in all that time, or the end of whoever did is never noticed
            with contextlib.suppress(RunError):  # it has ended just now
                flower_commands.stop_run(run_id, home=deployment.flower_home)
            return True
        time.sleep(_LOOK_S)
    return over


def _has_ended(run_id: str, *, deployment: Deployment) -> bool:
    try:
        return flower_commands.run_status(run_id, home=deployment.flower_home).has_ended
    except RunError:
        return True  # the SuperLink has forgotten it


def _known_run(folder: Path) -> str | None:
    path = folder / ID_FILE
    return path.read_text(encoding="utf-8").strip() if path.is_file() else None
