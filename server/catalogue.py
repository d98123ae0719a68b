"""Catalogue: things that may be recommended, and which of them belong most with what somebody shows or says.

in        a folder with a manifest, or of files; a query of either modality
out       recommendations with scores, for the terminal
relies on joint_space.py for places, nearest.py for the search

Where a value lies is kept beside the run's cache, by the digests of the value, the weights and the preprocessing: a
catalogue that has changed a little is read again a little.
"""

import hashlib
import io
import logging
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from server.given import TEXT_SUFFIX
from server.joint_space import JointSpace
from server.nearest import EXACT_BELOW, NearestPlaces
from server.settings import write_atomically
from server.trained import MODEL_FILE
from shared.errors import MediaFault, RunError
from shared.findings import Findings
from shared.manifest import scan_manifest
from shared.media import SUFFIXES
from shared.settings import Settings

CACHE_FOLDER = "catalogues"
VALUES_AT_ONCE = 64
log = logging.getLogger("motet.server")


@dataclass(frozen=True)
class Entry:
    """One thing of a catalogue: a value of the modality that is searched."""

    name: str
    """its row, or the name of its file"""
    value: Path | str
    item: str | None = None
    """what the row shows, where the manifest says it"""


class Recommendation(Settings):
    """One answer; higher scores are better."""

    rank: int
    score: float
    name: str
    shown: str
    """the text, or the file's path under the catalogue"""
    item: str | None


@dataclass(frozen=True)
class Catalogue:
    """Entries and where they lie; of equal values one."""

    folder: Path
    modality: str
    entries: tuple[Entry, ...]
    places: Float[Tensor, "N D"]
    num_read: int
    """values that were not in the cache"""


def open_catalogue(space: JointSpace, folder: Path, *, modality: str) -> Catalogue:
    """The values of a modality in a folder, each where the model places it.

    Args:
        space: of the run.
        folder: with a manifest as data folders have it (labels are not needed), or of files of the modality's kind.
        modality: that is searched.

    Raises:
        ManifestError: values that cannot be used; every one of them is named.
        RunError: the model matches no such modality; no folder, or nothing of the modality in it.
    """
    pair = space.trained.run.data.pair or ()
    if modality not in pair:
        raise RunError(f"--among {modality!r}: the model matches no such modality; allowed: {', '.join(pair)}")
    if not folder.is_dir():
        raise RunError(f"{folder}: no such folder; allowed: a data folder, or one of files")
    entries, findings = _entries(space, folder, modality=modality)
    if not entries and not findings:
        kind = space.trained.run.data.modalities[modality].kind
        allowed = TEXT_SUFFIX if kind == "text" else ", ".join(SUFFIXES[kind])
        raise RunError(
            f"{folder}: empty, for this model: nothing of modality {modality} in it; allowed: a manifest with a column "
            f"{space.trained.run.data.column(modality)}, or files ending in {allowed}"
        )
    digests = dict[bytes, Entry]()
    for entry in entries:
        digests.setdefault(_digest(entry.value), entry)
    path = _cache_path(space, folder, modality=modality)
    known = _read_cache(path, width=space.task.num_outputs)
    new = [digest for digest in digests if digest not in known]
    places = {digest: known[digest] for digest in digests if digest in known}
    for start in range(0, len(new), VALUES_AT_ONCE):
        some, prepared = [], []
        for digest in new[start : start + VALUES_AT_ONCE]:
            entry = digests[digest]
            try:
                prepared.append(space.prepared(modality, entry.value))
                some.append(digest)
            except MediaFault as fault:
                file, field = entry.value.name if isinstance(entry.value, Path) else None, f"{modality}.{fault.field}"
                findings.add(_line(entry), field=field, came=fault.came, allowed=fault.allowed, file=file)
        places.update(zip(some, space.places(modality, prepared).numpy(), strict=True))
    findings.raise_if_any()
    if new:
        _write_cache(path, {digest: places[digest] for digest in digests})
    return Catalogue(
        folder=folder,
        modality=modality,
        entries=tuple(digests.values()),
        places=torch.from_numpy(np.stack([places[digest] for digest in digests])),
        num_read=len(new),
    )


def recommend(
    space: JointSpace, catalogue: Catalogue, query: Float[Tensor, "D"], *, top: int, exact_below: int = EXACT_BELOW
) -> list[Recommendation]:
    """The entries that score highest with a query, best first.

    Args:
        space: of the run.
        catalogue: what may be recommended.
        query: where it lies.
        top: how many; fewer where the catalogue has fewer.
        exact_below: from so many entries on the search is approximate.
    """
    index = NearestPlaces(catalogue.places, score=space.task.score, exact_below=exact_below)
    numbers, scores = index.search(query[None], most=top)
    found = []
    for rank, (number, score) in enumerate(zip(numbers[0], scores[0], strict=True), start=1):
        entry = catalogue.entries[int(number)]
        value = entry.value
        shown = str(value.relative_to(catalogue.folder)) if isinstance(value, Path) else value
        found.append(Recommendation(rank=rank, score=float(score), name=entry.name, shown=shown, item=entry.item))
    return found


def _entries(space: JointSpace, folder: Path, *, modality: str) -> tuple[list[Entry], Findings]:
    """What a folder holds of a modality; from its manifest where it has one."""
    run = space.trained.run
    if any(folder.glob("metadata.*")):
        manifest, findings = scan_manifest(folder, schema=run.data, needs_answers=False)
        item = _item_of(run.data.item)
        return [
            Entry(f"{findings.unit} {row.line}", row.values[modality], item=item(row.subject, row.groups))
            for row in manifest.rows
            if modality in row.values
        ], findings
    kind = run.data.modalities[modality].kind
    suffixes = (TEXT_SUFFIX,) if kind == "text" else SUFFIXES[kind]
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix.lower() in suffixes)
    findings = Findings(manifest=folder / "files", unit="row", num_rows=len(paths))
    return [Entry(str(path.relative_to(folder)), path) for path in paths], findings


def _item_of(column: str | None) -> Callable[[str | None, dict[str, str]], str | None]:
    def item(subject: str | None, groups: dict[str, str]) -> str | None:
        return subject if column == "subject_id" else groups.get(column or "")

    return item


def _line(entry: Entry) -> int:
    number = entry.name.rpartition(" ")[2]
    return int(number) if number.isdigit() else 0


def _digest(value: Path | str) -> bytes:
    return hashlib.sha256(value.encode() if isinstance(value, str) else value.read_bytes()).digest()


def _cache_path(space: JointSpace, folder: Path, *, modality: str) -> Path:
    """One file a catalogue, weights and preprocessing."""
    weights = hashlib.sha256((space.trained.folder / MODEL_FILE).read_bytes()).hexdigest()
    key = f"{folder.resolve()} {modality} {space.readers.digests[modality]} {weights}"
    return space.trained.settings.cache / CACHE_FOLDER / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.npz"


def _read_cache(path: Path, *, width: int) -> dict[bytes, np.ndarray]:
    """Digest -> place; nothing where the file is not there or not whole."""
    try:
        # from memory: of a damaged file numpy leaves the handle open
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            digests, places = file["digests"], file["places"]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return {}
    if digests.shape != (len(places), 32) or places.shape[1:] != (width,) or places.dtype != np.float32:
        return {}
    return {digest.tobytes(): place for digest, place in zip(digests, places, strict=True)}


def _write_cache(path: Path, places: dict[bytes, np.ndarray]) -> None:
    content = io.BytesIO()
    digests = np.frombuffer(b"".join(places), dtype=np.uint8).reshape(-1, 32)
    np.savez(content, digests=digests, places=np.stack(list(places.values())).astype(np.float32))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content.getvalue())
    except OSError as error:
        log.warning("%s: the catalogue's places could not be kept, and are computed again next time: %s", path, error)
