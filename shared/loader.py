"""Loader: one modality of one folder on its way from files to one tensor.

in        rows from manifest.py, a preprocessor, the cache of what it made before
out       [N, *shape], read by dataset.py; faults of files are noted
relies on media/ (files) and cache.py (what needs no second look)
"""

import hashlib
import logging
import struct
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from shared.cache import FolderCache, StoredValues
from shared.config import AlignSettings
from shared.errors import MediaFault, ModelError
from shared.findings import Findings
from shared.manifest import Row
from shared.media import DECODER_VERSION, Originals, TimedSignal, Waveform, clip_of, decode, decode_timed, read_file
from shared.preprocess import Preprocessor, RawValue
from shared.preprocess.align import Cut, aligned, duration_s
from shared.schema import ModalitySchema

FINISHED_AT_ONCE = 64
PENDING_BYTES = 1 << 28
"""what was read and waits takes no more: a clip may be as large as hundreds of pictures"""
log = logging.getLogger("motet.site")


@dataclass(frozen=True)
class Timing:
    """What alignment needs to know of a modality."""

    align: AlignSettings
    rate_hz: float
    """time steps a second of signals that do not bring their times"""


@dataclass
class ModalityLoader:
    """One modality of one folder, on its way from files to one tensor."""

    name: str
    schema: ModalitySchema
    way: Preprocessor
    store: FolderCache
    findings: Findings
    timing: Timing | None = None
    """of a modality that is aligned with others"""
    _digests: dict[int, bytes] = field(default_factory=dict)
    """line -> digest of what becomes of the file or text there"""
    _pending: list[Tensor] = field(default_factory=list)
    """what was read and waits to be finished"""
    _fresh: dict[bytes, int] = field(default_factory=dict)
    """digest -> its row in `_finished`, where it will be unless faults elsewhere make it useless"""
    _finished: list[Tensor] = field(default_factory=list)
    """[n, *shape] each, in the order in which the values were read"""
    _lengths_s: dict[bytes, float] = field(default_factory=dict)
    """digest of a file -> how long it lasts, for those of this folder"""
    _at_hand: tuple[Path, bytes, RawValue | TimedSignal] | None = None
    """the file that was opened last, its digest, its value"""

    @cached_property
    def _key(self) -> str:
        """All that decides what a file becomes and whether it is sound, beside its content and its place in time."""
        key = f"{self.name} {self.schema.model_dump_json()} decoder {DECODER_VERSION} {self.way.digest}"
        return key if self.timing is None else f"{key} {self.timing}"

    @cached_property
    def _stored(self) -> StoredValues | None:
        return self.store.stored(self.name, key=self._key)

    @cached_property
    def _known_lengths(self) -> StoredValues | None:
        return self.store.stored(self.name, key=f"{self._key} seconds")

    @cached_property
    def _originals(self) -> Originals:
        return Originals(unit=self.findings.unit)

    def look_through(self, rows: tuple[Row, ...]) -> None:
        """Reads and checks what the cache lacks; faults are noted, and from the first one on nothing is prepared."""
        for row in rows:
            self.look_at(row)
        self.end()

    def look_at(self, row: Row, *, cut: Cut | None = None) -> None:
        """Reads and checks a row's value, if it has one and the cache lacks it; `cut` is what is seen of it."""
        value = row.values.get(self.name)
        if value is None:
            return
        try:
            content, self._digests[row.line] = self._look_at(value, cut=cut)
            # Computed vectors and sentences may well be equal; equal recordings are one recording under two names.
            if self.schema.kind not in ("text", "features"):
                self._originals.check(content, line=row.line, subject=row.subject)
        except MediaFault as fault:
            self._note(row.line, value=value, fault=fault)

    def length_s(self, row: Row) -> float | None:
        """How long a row's value lasts; None where it has none, or one whose fault is noted."""
        value = row.values.get(self.name)
        if not isinstance(value, Path) or self.timing is None:
            return None
        try:
            content = self.store.digest_of(value)
            known = None if content is None else self._known_length_s(content)
            if content is None or known is None:
                content, raw = self._opened(value)
                known = self._known_length_s(content)
                known = duration_s(raw, rate_hz=self.timing.rate_hz) if known is None else known
        except MediaFault as fault:
            self._note(row.line, value=value, fault=fault)
            return None
        self._lengths_s[content] = known
        return known

    def has(self, row: Row) -> bool:
        """Whether the row has a value here, after a look at it."""
        return row.line in self._digests

    def end(self) -> None:
        """Finishes what is left once all rows were looked at."""
        self._at_hand = None
        self._finish_pending()

    def keep_lengths(self) -> None:
        """Puts into the cache how long each file lasts, so that none is opened for that again."""
        old = {} if self._known_lengths is None else self._known_lengths.positions
        if self.timing is None or old.keys() == self._lengths_s.keys():
            return
        key = f"{self._key} seconds"
        if not self._lengths_s:
            self.store.drop(self.name, key=key)
            return
        values = torch.tensor(list(self._lengths_s.values()), dtype=torch.float64)
        withdrawn = bool(old.keys() - self._lengths_s.keys())
        self.store.store(self.name, key=key, digests=list(self._lengths_s), values=values, withdrawn=withdrawn)

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

    def _look_at(self, value: Path | str, *, cut: Cut | None) -> tuple[bytes, bytes]:
        """Digests of a value, which is read and checked unless that was done before, and of what becomes of it."""
        if isinstance(value, str):
            digest = hashlib.sha256(value.encode()).digest()
            if not self._is_known(digest):
                self._prepare(digest=digest, raw=value, cut=None)
            return digest, digest
        content = self.store.digest_of(value)
        if content is not None and self._is_known(seen := _seen(content, cut)):
            return content, seen
        if self._at_hand is None or self._at_hand[0] != value:
            data, stamp = read_file(value)
            content = hashlib.sha256(data).digest()
            if not self._is_known(seen := _seen(content, cut)):
                self._prepare(digest=seen, raw=self._decoded(data, path=value), cut=cut)
            self.store.remember(value, stamp=stamp, digest=content)
            return content, seen
        content, raw = self._opened(value)
        if not self._is_known(seen := _seen(content, cut)):
            self._prepare(digest=seen, raw=raw, cut=cut)
        return content, seen

    def _opened(self, path: Path) -> tuple[bytes, RawValue | TimedSignal]:
        """A file's digest and value, at hand until the next one is opened."""
        if self._at_hand is None or self._at_hand[0] != path:
            data, stamp = read_file(path)
            content = hashlib.sha256(data).digest()
            self._at_hand = (path, content, self._decoded(data, path=path))
            self.store.remember(path, stamp=stamp, digest=content)
        return self._at_hand[1:]

    def _decoded(self, data: bytes, *, path: Path) -> RawValue | TimedSignal:
        way = decode if self.timing is None else decode_timed
        return way(data, path=path, schema=self.schema)

    def _known_length_s(self, content: bytes) -> float | None:
        if content in self._lengths_s or self._known_lengths is None:
            return self._lengths_s.get(content)
        place = self._known_lengths.positions.get(content)
        return None if place is None else float(self._known_lengths.values[place])

    def _is_known(self, digest: bytes) -> bool:
        return digest in self._fresh or (self._stored is not None and digest in self._stored.positions)

    def _prepare(self, *, digest: bytes, raw: RawValue | TimedSignal, cut: Cut | None) -> None:
        self._fresh[digest] = len(self._fresh)
        if self.findings:
            return
        self._pending.append(self._read(raw, cut=cut))
        if len(self._pending) == FINISHED_AT_ONCE or len(self._pending) * self._pending[0].nbytes > PENDING_BYTES:
            self._finish_pending()

    def _read(self, raw: RawValue | TimedSignal, *, cut: Cut | None) -> Tensor:
        """One value on its way; a value that alignment or the preprocessor breaks on becomes what a blank one does."""
        try:
            if self.timing is not None and cut is not None:
                raw = aligned(raw, cut=cut, align=self.timing.align, rate_hz=self.timing.rate_hz)
            return self.way.read(raw.values if isinstance(raw, TimedSignal) else raw)
        except MediaFault:
            raise
        except Exception:
            log.exception("%s: a value could not be preprocessed; it counts as a blank one", self.name)
        # PRIVACY: options that break on one record are the server's, and a refusal would tell of that record; what
        # breaks on a blank one breaks for everybody.
        # test_a_value_that_breaks_the_preprocessor_is_blank_and_no_fault
        return self.way.read(blank_value(self.schema))

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
            return self.way.finish(self.way.read(blank_value(self.schema))[None]).dtype


def _seen(content: bytes, cut: Cut | None) -> bytes:
    """The digest of what is seen of a file: of all of it, its own."""
    if cut is None:
        return content
    return hashlib.sha256(content + struct.pack("<3d", cut.first_s, cut.from_s, cut.to_s)).digest()


def _in_order(values: Tensor, where: list[int]) -> Tensor:
    """The rows named; the tensor itself, and no copy, where that is all of them as they lie."""
    return values if where == list(range(len(values))) else values[torch.tensor(where)]


def blank_value(schema: ModalitySchema) -> RawValue:
    """A value of the modality that says nothing."""
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
