"""Ray node: what a machine of a Ray cluster answers about itself, before a run puts sites on it.

in        what the machine that starts the run found: its program's digests, its files' contents, a locked file
out       what is otherwise here, in words; nothing if the sites of the run can work here
relies on this file being importable wherever Motet is installed, and on little else: torch is not loaded for it
"""

import fcntl
import hashlib
import importlib.metadata
import platform
import tempfile
from collections.abc import Mapping
from pathlib import Path

LIBRARIES = ("torch", "numpy", "flwr")
"""whose releases decide what a site computes, or in what form it answers"""
FOLDER = "folder"


def program() -> dict[str, str]:
    """What runs here: Motet's own files as one digest, the libraries that matter, and Python."""
    from server.code_digest import code_digest

    found = {"motet": code_digest()[:16], "python": platform.python_version()}
    return found | {name: importlib.metadata.version(name) for name in LIBRARIES}


def content(path: Path) -> str:
    """The digest of a file, or that there is a folder which can be read.

    Raises:
        OSError: it is not there, or not readable.
    """
    if path.is_dir():
        next(path.iterdir(), None)
        return FOLDER
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def faults_here(*, expected_program: Mapping[str, str], contents: Mapping[str, str], locked: str) -> list[str]:
    """What stands in the way of the run on this machine; empty if nothing does.

    Args:
        expected_program: what `program` gave where the run is started.
        contents: path -> what `content` gave there.
        locked: a file in the run folder, locked where the run is started; the key of `contents` names it too.
    """
    mine = program()
    others = [f"{name} {mine[name]} instead of {came}" for name, came in expected_program.items() if mine[name] != came]
    if others:
        return [f"another program: {', '.join(others)}; install the same release, with the same constraints"]
    faults = [fault for path, came in contents.items() if (fault := _fault_of(Path(path), came=came))]
    # only a file that is the same one can tell whether its lock is
    return faults or _faults_of_lock(Path(locked))


def _fault_of(path: Path, *, came: str) -> str | None:
    try:
        found = content(path)
    except OSError as error:
        return f"{path}: {error.strerror}"
    return None if found == came else f"{path}: not the one that the run was started with"


def _faults_of_lock(path: Path) -> list[str]:
    """Sites of all machines write one ledger in the run folder, and SQLite relies on locks of this kind."""
    try:
        with path.open("r+b") as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return _faults_of_writing(path.parent)
    except OSError as error:
        return [f"{path.parent}: {error.strerror}, when a file in it was to be written or locked"]
    return [f"{path.parent}: a lock held elsewhere does not hold here, so the ledger could be damaged"]


def _faults_of_writing(folder: Path) -> list[str]:
    try:
        tempfile.NamedTemporaryFile(prefix="cluster-", dir=folder).close()
    except OSError as error:
        return [f"{folder}: {error.strerror}, when a file was to be made in it"]
    return []
