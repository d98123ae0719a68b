"""Checkpoint: what a run needs to go on after any round, on disk, whole or not at all.

in        weights, moments, best model so far and the history of rounds
out       RUN/checkpoints/ (safetensors and state.json), RUN/metrics.jsonl, RUN/participations.json; the same back again
relies on settings.write_atomically; state.json names the tensor file that belongs to it
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import Field
from torch import Tensor

from server.aggregation import Weights
from server.history import METRICS_FILE, LastReplies, metrics_line, read_rounds
from server.records import Origin, RoundRecord
from server.settings import cannot_be_written, write_atomically
from shared.errors import ConfigError, RunError
from shared.messages import StatisticsReply
from shared.settings import Settings, parse_settings_json
from shared.tensor_file import as_bytes, read_tensors

STATE_FILE = "state.json"
PARTICIPATIONS_FILE = "participations.json"
_PARTS, _BEST = ("weights", "moments", "second_moments"), "best"


class State(Settings):
    """What of a run's standing is no tensor: RUN/checkpoints/state.json."""

    run_digest: str
    round_number: int = Field(ge=0)
    best_round: int = Field(ge=0)
    best_score: float | None
    tensors: str = Field(pattern=r"^round-\d{6}\.safetensors$")
    best: str | None = Field(default=None, pattern=r"^best-\d{6}\.safetensors$")
    clip_norm: float | None = None
    site_clip_norm: float | None = None
    statistics: dict[str, StatisticsReply] | None = None
    reproducible_noise: bool = False
    start: Origin | None = None
    digests: dict[str, str] = Field(default={}, description="SHA-256 of each tensor file, by name")


@dataclass
class Progress:
    """Where a run stands after `round_number` rounds."""

    weights: Weights
    round_number: int = 0
    best_round: int = 0
    best_score: float | None = None
    best_weights: Weights = field(default_factory=dict)
    best_on_disk: int | None = None
    """best round whose weights have been written"""
    best_digest: str | None = None
    """SHA-256 of the file they were written to"""
    moments: Weights = field(default_factory=dict)
    second_moments: Weights = field(default_factory=dict)
    history: list[RoundRecord] = field(default_factory=list)
    """the last one whole until its checkpoint is written, those before it shortened (history.py)"""
    last_replies: LastReplies = field(default_factory=LastReplies)
    clip_norm: float | None = None
    """adaptive clipping of records or subjects: the norm of the next round"""
    site_clip_norm: float | None = None
    """unit site: the norm of whole updates in the next round"""
    statistics: dict[str, StatisticsReply] | None = None
    """site -> its noisy counts, of those that gave any; None: nobody was asked yet"""
    reproducible_noise: bool = False
    """a site whose update was used said that a seed gives its noise back"""
    start: Origin | None = None
    """what the run took of an earlier one"""


def save_progress(progress: Progress, *, folder: Path, run_digest: str) -> None:
    """Write the checkpoint of the round just finished, then forget the one before.

    The last round of `history` is shortened by what its sites have said before. The best weights have a file of their
    own, written when they change: they seldom do.
    """
    checkpoints = folder / "checkpoints"
    checkpoints.mkdir(parents=True, exist_ok=True)
    if progress.history:
        progress.history[-1] = progress.last_replies.shortened(progress.history[-1])
    _append(progress.history[-1:], path=folder / METRICS_FILE)
    tensors = checkpoints / f"round-{progress.round_number:06d}.safetensors"
    digest = _write_tensors(tensors, {part: getattr(progress, part) for part in _PARTS})
    best = checkpoints / f"best-{progress.best_round:06d}.safetensors"
    # by what this process knows of the disk: a file of that name may be left from a round that was cut short
    if progress.best_on_disk != progress.best_round:
        progress.best_digest = _write_tensors(best, {_BEST: progress.best_weights})
        progress.best_on_disk = progress.best_round
    digests = {tensors.name: digest, best.name: progress.best_digest}
    state = State(
        run_digest=run_digest,
        round_number=progress.round_number,
        best_round=progress.best_round,
        best_score=progress.best_score,
        tensors=tensors.name,
        best=best.name,
        clip_norm=progress.clip_norm,
        site_clip_norm=progress.site_clip_norm,
        statistics=progress.statistics,
        reproducible_noise=progress.reproducible_noise,
        start=progress.start,
        digests={name: each for name, each in digests.items() if each is not None},
    )
    write_atomically(checkpoints / STATE_FILE, state.model_dump_json(indent=2).encode())
    for old in checkpoints.glob("*.safetensors"):
        if old.name not in {tensors.name, best.name}:
            old.unlink()


def load_progress(*, folder: Path, run_digest: str) -> Progress | None:
    """The last checkpoint of a run, or None where it has none yet.

    Raises:
        RunError: the checkpoint is damaged or belongs to other settings.
    """
    path, state = folder / "checkpoints" / STATE_FILE, read_state(folder)
    if state is None:
        return None
    if state.run_digest != run_digest:
        raise RunError(
            f"{path}: written under other settings than {folder}/server.json; start a new run in another folder"
        )
    flat = _read_tensors(path.with_name(state.tensors), state=state)
    # version 0.2.0 kept the best weights in the same file
    best = _read_tensors(path.with_name(state.best), state=state) if state.best is not None else flat
    history = _history(folder / METRICS_FILE, rounds=state.round_number)
    return Progress(
        weights=_part(flat, "weights"),
        round_number=state.round_number,
        best_round=state.best_round,
        best_score=state.best_score,
        best_weights=_part(best, _BEST),
        best_on_disk=state.best_round if state.best is not None else None,
        best_digest=state.digests.get(state.best or ""),
        moments=_part(flat, "moments"),
        second_moments=_part(flat, "second_moments"),
        history=history,
        last_replies=LastReplies(history),
        clip_norm=state.clip_norm,
        site_clip_norm=state.site_clip_norm,
        statistics=state.statistics,
        reproducible_noise=state.reproducible_noise,
        start=state.start,
    )


def read_state(folder: Path) -> State | None:
    """Where a run stands, but for its tensors; None where it has no checkpoint.

    Raises:
        RunError: the file is damaged.
    """
    path = folder / "checkpoints" / STATE_FILE
    if not path.is_file():
        return None
    try:
        return parse_settings_json(State, path.read_text(encoding="utf-8"), place=str(path))
    except (ConfigError, UnicodeDecodeError) as error:
        raise RunError(f"{error}\nThe checkpoint is damaged: restore {path} from a backup or start a new run") from None


def read_participations(folder: Path) -> dict[str, int]:
    """How often each site may have been asked so far, rounds that were cut short included; unit site only.

    Raises:
        RunError: the file is damaged.
    """
    path = folder / PARTICIPATIONS_FILE
    if not path.is_file():
        return {}
    try:
        return {str(site): int(count) for site, count in json.loads(path.read_text(encoding="utf-8")).items()}
    except (ValueError, AttributeError, TypeError) as error:
        raise RunError(f"{path}: not readable ({error}); restore it from a backup or start a new run") from None


def write_participations(participations: Mapping[str, int], *, folder: Path) -> None:
    """RUN/participations.json, on the disk before the sites are asked.

    Where participation is secret every site counts in every round: the file does not tell who was drawn.
    """
    write_atomically(folder / PARTICIPATIONS_FILE, json.dumps(dict(sorted(participations.items()))).encode())


def save_model(weights: Weights, *, path: Path, run_digest: str) -> None:
    """The chosen model as one safetensors file, with the digest of the settings it belongs to."""
    write_atomically(path, as_bytes(weights, words={"format": "pt", "run_digest": run_digest}))


def _append(records: Sequence[RoundRecord], *, path: Path) -> None:
    """Add lines and see them on the disk; state.json, written after, says how many of them count."""
    if not records:
        return
    try:
        with path.open("ab") as file:
            file.write("".join(metrics_line(record) + "\n" for record in records).encode())
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise cannot_be_written(path, error) from None


def _history(path: Path, *, rounds: int) -> list[RoundRecord]:
    """The records of so many rounds; lines of a round that was cut short are taken out of the file."""
    records = read_rounds(path, most=rounds)
    if [record.round for record in records] != list(range(1, rounds + 1)):
        raise RunError(
            f"{path}: holds {len(records)} rounds in order where {rounds} were done; restore it or start a new run"
        )
    lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
    if len(lines) > rounds or (lines and not lines[-1].endswith(b"\n")):
        write_atomically(path, b"".join(line.rstrip(b"\n") + b"\n" for line in lines[:rounds]))
    return records


def _write_tensors(path: Path, parts: Mapping[str, Mapping[str, Tensor]]) -> str:
    """Its SHA-256, too."""
    flat = {f"{part}/{name}": value for part, tensors in parts.items() for name, value in tensors.items()}
    content = as_bytes(flat)
    write_atomically(path, content)
    return hashlib.sha256(content).hexdigest()


def _read_tensors(path: Path, *, state: State) -> dict[str, Tensor]:
    """A file of the checkpoint, if it is the one that was written; before version 0.5.0 no digest was."""
    try:
        expected = state.digests.get(path.name)
        with path.open("rb") as file:
            if expected not in (None, hashlib.file_digest(file, "sha256").hexdigest()):
                raise OSError("its content is not what was written; the disk is damaged, or somebody has changed it")
        return read_tensors(path)[0]
    except OSError as error:
        raise RunError(f"{path}: not readable ({error}); restore it from a backup or start a new run") from None


def _part(flat: dict[str, Tensor], part: str) -> Weights:
    return {name.removeprefix(f"{part}/"): value for name, value in flat.items() if name.startswith(f"{part}/")}
