"""Server settings: what a run needs on the server's own machine, written once into its folder.

in        a run's settings, where the held-out data lies, which engine carries the messages
out       ServerSettings in RUN/server.json, from which the server app starts and resumes; RUN/preflight.json and
          RUN/computed.json
relies on shared/config.py; nothing here is sent to a site but `run`
"""

import os
from pathlib import Path

from pydantic import Field, TypeAdapter, ValidationError

from server.records import Computed
from shared.config import RunConfig
from shared.errors import RunError
from shared.preflight import PreflightCheck
from shared.schema import DataCard
from shared.settings import Settings, parse_settings_json

FILE_NAME = "server.json"
PREFLIGHT_FILE = "preflight.json"
COMPUTED_FILE = "computed.json"
_CHECKS, _COMPUTED = TypeAdapter(tuple[PreflightCheck, ...]), TypeAdapter(tuple[Computed, ...])


class ServerSettings(Settings):
    """How the server app runs one federation."""

    run: RunConfig
    run_id: str
    held_out: Path
    cache: Path
    card: DataCard | None
    engine: str
    num_sites: int = Field(ge=1, description="sites to wait for before the first round")
    started: str
    ledger: Path | None = Field(default=None, description="unit site: the server's own ledger")
    federation: str = Field(
        default="", description="unit site: the ledger's key, the same for all runs over these sites"
    )
    site_cap_epsilon: float | None = Field(
        default=None, gt=0, description="unit site: largest total of all runs together; this run's own if not set"
    )
    reproducible_noise: bool = Field(default=False, description="simulations only")
    enrolled: Path | None = Field(default=None, description="deployments: the folder of the keys that sites sign with")
    extensions: tuple[Path, ...] = Field(default=(), description="files of this machine that register further parts")


def write_settings(settings: ServerSettings, *, folder: Path) -> Path:
    """RUN/server.json, whole or not at all."""
    path = folder / FILE_NAME
    write_atomically(path, settings.model_dump_json(indent=2).encode())
    return path


def read_settings(folder: Path) -> ServerSettings:
    """The settings a run was started with.

    Raises:
        RunError: the folder is no run folder.
        ConfigError: the file in it is not allowed.
    """
    path = folder / FILE_NAME
    if not folder.is_dir():
        raise RunError(f"{folder}: no such folder; start a run with: motet simulate SCENARIO --out {folder}")
    if not path.is_file():
        raise RunError(
            f"{folder}: no {FILE_NAME} in it, so it is no run folder; start one with: motet simulate SCENARIO"
        )
    return parse_settings_json(ServerSettings, path.read_text(encoding="utf-8"), place=str(path))


def count_start(folder: Path) -> int:
    """How often this run was started before now; counted on disk so that every start has a number of its own."""
    path = folder / "starts"
    before = int(path.read_text(encoding="utf-8")) if path.is_file() else 0
    write_atomically(path, str(before + 1).encode())
    return before


def write_preflight(checks: tuple[PreflightCheck, ...], *, folder: Path) -> None:
    """RUN/preflight.json: what was checked before the run's first round."""
    write_atomically(folder / PREFLIGHT_FILE, _CHECKS.dump_json(checks, indent=2))


def read_preflight(folder: Path) -> tuple[PreflightCheck, ...]:
    """The checks of a run folder; none where none were made.

    Raises:
        RunError: the file is damaged.
    """
    path = folder / PREFLIGHT_FILE
    if not path.is_file():
        return ()
    try:
        return _CHECKS.validate_json(path.read_bytes())
    except ValidationError as error:
        raise RunError(f"{path}: not readable ({error.error_count()} faults); remove it and resume the run") from None


def note_computed(computed: Computed, *, folder: Path) -> None:
    """RUN/computed.json: another entry where a start of the run computes otherwise than those before it."""
    known = read_computed(folder)
    if computed not in known:
        write_atomically(folder / COMPUTED_FILE, _COMPUTED.dump_json((*known, computed), indent=2))


def read_computed(folder: Path) -> tuple[Computed, ...]:
    """On what a run folder's simulation trained; nothing of a deployment.

    Raises:
        RunError: the file is damaged.
    """
    path = folder / COMPUTED_FILE
    if not path.is_file():
        return ()
    try:
        return _COMPUTED.validate_json(path.read_bytes())
    except ValidationError as error:
        raise RunError(f"{path}: not readable ({error.error_count()} faults); remove it and resume the run") from None


def write_atomically(path: Path, data: bytes) -> None:
    """A file that is the old one or the new one, never half of either, even when power fails or the disk is full.

    Raises:
        RunError: it could not be written; the old one is there still.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        try:
            with part.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        except OSError:
            part.unlink(missing_ok=True)
            raise
        # the name too: without it a power cut could bring the old file back after its new one was told of
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise cannot_be_written(path, error) from None


def cannot_be_written(path: Path, error: OSError) -> RunError:
    """What a run says that finds no room, or no right, to write."""
    return RunError(
        f"{path}: cannot be written: {error.strerror or error}; what was on the disk before is there still. Make room, "
        "and start the run again: it goes on after the last round that is whole"
    )
