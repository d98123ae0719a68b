"""Dataset: the rows of a folder become samples: every modality a tensor, zero-filled where a row has none.

in        a data folder, the run's settings, the cache of preprocessed values
out       Samples, read by the two trainers and by evaluation.py; or one ManifestError with every fault
relies on manifest.py (rows), media/ (files), the encoders' preprocessors, and cache.py (what needs no second look)
"""

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from shared.batch import Samples
from shared.cache import FolderCache, StoredValues
from shared.card import find_card, infer_schema
from shared.check import check_folder
from shared.config import RunConfig
from shared.errors import MediaFault, ModelError
from shared.findings import WHOLE_MANIFEST, Findings
from shared.manifest import Row, scan_manifest
from shared.media import DECODER_VERSION, Originals, Waveform, clip_of, decode, read_file
from shared.preprocess import Preprocessor, RawValue
from shared.schema import ModalitySchema
from shared.targets import stacked_targets

__all__ = ["check_folder", "find_card", "infer_schema", "load_samples", "preprocessors_of"]

FINISHED_AT_ONCE = 64
log = logging.getLogger("motet.site")


def load_samples(
    folder: Path,
    *,
    run: RunConfig,
    cache: Path,
    modalities: tuple[str, ...] | None = None,
    preprocessors: Mapping[str, Preprocessor] | None = None,
    needs_subjects: bool = False,
) -> Samples:
    """All rows of a folder that have a modality of the run; files are opened only where the cache lacks them.

    Args:
        folder: with one manifest.
        run: says which modalities, how they are preprocessed, and what rows must look like.
        cache: folder for preprocessed values, as private as the data.
        modalities: those that rows may have here; others are not looked into. None: all of the run.
        preprocessors: modality -> preprocessor, where the caller has those of the run at hand (`preprocessors_of`) or
            wants others.
        needs_subjects: rows that do not say who they are about are a fault, because subjects are what is protected.

    Raises:
        ManifestError: the folder has faults, all of which are named; nothing was loaded.
        ConfigError: the cache cannot be written.
    """
    names = tuple(name for name in run.modalities if modalities is None or name in modalities)
    manifest, findings = scan_manifest(folder, schema=run.data)
    if needs_subjects and all(row.subject is None for row in manifest.rows):
        # PRIVACY: each row would be taken for a person of its own. test_subjects_that_nobody_names_are_a_fault
        allowed = 'a value in every row, because the owner\'s settings say privacy.unit = "subject"'
        findings.add(WHOLE_MANIFEST, field="subject_id", came="absent", allowed=allowed)
    store = FolderCache(cache, folder=folder)
    ways = preprocessors_of(run, names=names) if preprocessors is None else preprocessors
    loaders = {
        name: _ModalityLoader(name, schema=run.data.modalities[name], way=ways[name], store=store, findings=findings)
        for name in names
    }
    for loader in loaders.values():
        loader.look_through(manifest.rows)
    findings.raise_if_any()
    rows = [row for row in manifest.rows if any(name in row.values for name in names)]
    inputs = {name: loader.tensor(rows) for name, loader in loaders.items()}
    store.close(named=[value for row in manifest.rows for value in row.values.values() if isinstance(value, Path)])
    has = [[name in names and name in row.values for name in run.modalities] for row in rows]
    return Samples(
        inputs=inputs,
        present=torch.tensor(has, dtype=torch.bool).reshape(len(rows), len(run.modalities)),
        targets=stacked_targets([row.target for row in rows], schema=run.data),
        subjects=tuple(row.subject if row.subject is not None else str(row.line) for row in rows),
        groups={column: tuple(row.groups.get(column, "") for row in rows) for column in run.data.groups},
    )


def preprocessors_of(run: RunConfig, *, names: tuple[str, ...]) -> dict[str, Preprocessor]:
    """Those of the run's encoders; whoever loads many folders one after another makes them once.

    Raises:
        ModelError: a part or an option does not exist, or frozen weights are missing.
    """
    from shared.model.encoders import preprocessor

    return {name: preprocessor(run, name) for name in names}


@dataclass
class _ModalityLoader:
    """One modality of one folder, on its way from files to one tensor."""

    name: str
    schema: ModalitySchema
    way: Preprocessor
    store: FolderCache
    findings: Findings
    _digests: dict[int, bytes] = field(default_factory=dict)
    """line -> digest of the file or text there"""
    _pending: list[Tensor] = field(default_factory=list)
    """what was read and waits to be finished"""
    _fresh: dict[bytes, int] = field(default_factory=dict)
    """digest -> its row in `_finished`, where it will be unless faults elsewhere make it useless"""
    _finished: list[Tensor] = field(default_factory=list)
    """[n, *shape] each, in the order in which the values were read"""
    _stored: StoredValues | None = None

    @cached_property
    def _key(self) -> str:
        """All that decides what a file becomes and whether it is sound, beside its content."""
        return f"{self.name} {self.schema.model_dump_json()} decoder {DECODER_VERSION} {self.way.digest}"

    def look_through(self, rows: tuple[Row, ...]) -> None:
        """Reads and checks what the cache lacks; faults are noted, and from the first one on nothing is prepared."""
        self._stored = self.store.stored(self.name, key=self._key)
        originals = Originals(unit=self.findings.unit)
        for row in rows:
            value = row.values.get(self.name)
            if value is None:
                continue
            try:
                digest = self._digests[row.line] = self._look_at(value)
                # Computed vectors and sentences may well be equal; equal recordings are one recording under two names.
                if self.schema.kind not in ("text", "features"):
                    originals.check(digest, line=row.line, subject=row.subject)
            except MediaFault as fault:
                self._note(row.line, value=value, fault=fault)
        self._finish_pending()

    def tensor(self, rows: list[Row]) -> Tensor:
        """[N, *shape] for the rows given, zeros where a row lacks the modality; what is new goes into the cache."""
        stored = self._all_values()
        if stored is None:
            return self._zeros(1, dtype=self._dtype()).expand(len(rows), *self.way.shape)
        here = [index for index, row in enumerate(rows) if row.line in self._digests]
        where = [stored.positions[self._digests[rows[index].line]] for index in here]
        if len(here) == len(rows):
            return _in_order(stored.values, where)
        values = self._zeros(len(rows), dtype=stored.values.dtype)
        values[torch.tensor(here)] = _in_order(stored.values, where)
        return values

    def _look_at(self, value: Path | str) -> bytes:
        """The digest of a value, which is read and checked unless that was done before."""
        if isinstance(value, str):
            digest = hashlib.sha256(value.encode()).digest()
            if not self._is_known(digest):
                self._prepare(digest=digest, raw=value)
            return digest
        known = self.store.digest_of(value)
        if known is not None and self._is_known(known):
            return known
        data, stamp = read_file(value)
        digest = hashlib.sha256(data).digest()
        if not self._is_known(digest):
            self._prepare(digest=digest, raw=decode(data, path=value, schema=self.schema))
        self.store.remember(value, stamp=stamp, digest=digest)
        return digest

    def _is_known(self, digest: bytes) -> bool:
        return digest in self._fresh or (self._stored is not None and digest in self._stored.positions)

    def _prepare(self, *, digest: bytes, raw: RawValue) -> None:
        self._fresh[digest] = len(self._fresh)
        if self.findings:
            return
        self._pending.append(self._read(raw))
        if len(self._pending) == FINISHED_AT_ONCE:
            self._finish_pending()

    def _read(self, raw: RawValue) -> Tensor:
        """One value on its way; a value that the preprocessor breaks on becomes what a blank one does."""
        try:
            return self.way.read(raw)
        except MediaFault:
            raise
        except Exception:
            log.exception("%s: a value could not be preprocessed; it counts as a blank one", self.name)
        # PRIVACY: options that break on one record are the server's, and a refusal would tell of that record; what
        # breaks on a blank one breaks for everybody.
        # test_a_value_that_breaks_the_preprocessor_is_blank_and_no_fault
        return self.way.read(_blank(self.schema))

    def _finish_pending(self) -> None:
        pending, self._pending = self._pending, []
        if not pending or self.findings:
            return
        with torch.no_grad():
            values = self.way.finish(torch.stack(pending))
        if values.shape != (len(pending), *self.way.shape):
            raise ModelError(
                f"the preprocessor of {self.name} made {list(values.shape)} of {len(pending)} values; "
                f"allowed: {[len(pending), *self.way.shape]}, as its own `shape` says"
            )
        # PRIVACY: a number that the run's options carried out of range is 0 and not a fault, because a refusal would
        # tell whoever chose the options about this record. test_overflow_in_preprocessing_is_zero_and_no_fault
        self._finished.append(values.nan_to_num(0.0, 0.0, 0.0) if values.is_floating_point() else values)

    def _note(self, line: int, *, value: Path | str, fault: MediaFault) -> None:
        file = value.name if isinstance(value, Path) else None
        if isinstance(value, Path) and value.is_relative_to(folder := self.findings.manifest.parent.resolve()):
            file = value.relative_to(folder).as_posix()
        self.findings.add(line, field=f"{self.name}.{fault.field}", came=fault.came, allowed=fault.allowed, file=file)

    def _all_values(self) -> StoredValues | None:
        """Values of exactly the digests of this folder, from the cache or put there now; None if there are none."""
        wanted = dict.fromkeys(self._digests.values())
        old = {} if self._stored is None else self._stored.positions
        if self._stored is not None and old.keys() == wanted.keys():
            return self._stored
        if not wanted:
            if old:
                self.store.drop(self.name, key=self._key)
            return None
        before = 0 if self._stored is None else len(self._stored.values)
        pieces = [*([] if self._stored is None else [self._stored.values]), *self._finished]
        self._finished = []
        where = [old[digest] if digest in old else before + self._fresh[digest] for digest in wanted]
        values = _in_order(torch.cat(pieces) if len(pieces) > 1 else pieces[0], where)
        withdrawn = bool(old.keys() - wanted.keys())
        self.store.store(self.name, key=self._key, digests=list(wanted), values=values, withdrawn=withdrawn)
        return StoredValues(positions={digest: index for index, digest in enumerate(wanted)}, values=values)

    def _zeros(self, num_rows: int, *, dtype: torch.dtype) -> Tensor:
        return torch.zeros((num_rows, *self.way.shape), dtype=dtype)

    def _dtype(self) -> torch.dtype:
        """The type of finished values where no row has one: that of a blank value."""
        with torch.no_grad():
            return self.way.finish(self.way.read(_blank(self.schema))[None]).dtype


def _in_order(values: Tensor, where: list[int]) -> Tensor:
    """The rows named; the tensor itself, and no copy, where that is all of them as they lie."""
    return values if where == list(range(len(values))) else values[torch.tensor(where)]


def _blank(schema: ModalitySchema) -> RawValue:
    if schema.kind == "image":
        return Image.new("RGB", (32, 32))
    if schema.kind == "audio":
        return Waveform(samples=np.zeros((1, 16_000), dtype=np.float32), sample_rate_hz=16_000)
    if schema.kind == "signal":
        return np.zeros((128, schema.channels or 1), dtype=np.float32)
    if schema.kind == "video":
        return clip_of([Image.new("RGB", (32, 32))], rate_hz=1.0)
    if schema.kind == "features":
        return np.zeros(schema.width or 1, dtype=np.float32)
    return ""
