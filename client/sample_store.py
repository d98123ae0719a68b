"""Sample store: the samples of thousands of sites as rows of a few files, mapped and not held in memory.

in        the Samples of one site after another, as dataset.py loads them
out       PackedSamples, read by the cohort trainer: views of the mapped rows, and where they lie among all
relies on a folder of the owner's with room for the tensors; each file in it loses its name before it holds a byte
"""

import mmap
import os
import threading
import time
import uuid
from collections.abc import Hashable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from types import TracebackType

import numpy as np
import torch
from torch import Tensor

from shared.batch import Batch, Samples
from shared.errors import ConfigError

SEGMENT_BYTES = 64 * 2**20
"""of rows in one file; a site that is larger has a file of its own"""
STALE_AFTER_S = 3600
_SUFFIX = ".rows"
_PRESENT, _TARGETS, _SUBJECTS = "\0present", "\0targets", "\0subjects"
"""columns beside those of the modalities, none of which has such a name"""


class PackedSamples(Samples):
    """One site's samples as views of a mapped segment that other sites' rows share, each made when it is asked for.

    `subjects` are numbers in the order in which they first appear, enough for `rows_of_subjects`; `groups` is empty,
    because training asks for neither names nor groups.
    """

    pack: Batch
    """all rows of the segment, those not yet given to a site included; the same object for all sites in it"""
    first_row: int
    """row r of the site is row first_row + r of `pack`"""

    def __init__(self, segment: "_Segment", *, first_row: int, num_rows: int) -> None:
        # past the fields of the frozen class above, which are the views below
        vars(self).update(pack=segment.pack, first_row=first_row, _segment=segment, _num_rows=num_rows)

    def __len__(self) -> int:
        return self._num_rows

    @cached_property
    def inputs(self) -> dict[str, Tensor]:
        """Modality -> [N, ...]."""
        return {name: values[self._rows] for name, values in self.pack.inputs.items()}

    @cached_property
    def present(self) -> Tensor:
        """[N, M]."""
        return self.pack.present[self._rows]

    @cached_property
    def targets(self) -> Tensor:
        """[N]."""
        return self.pack.targets[self._rows]

    @cached_property
    def subjects(self) -> tuple[str, ...]:
        """The number of each row's subject, as a name."""
        return _names(self._segment.subjects[self._rows].numpy().tobytes())

    @property
    def groups(self) -> dict[str, tuple[str, ...]]:
        """None."""
        return {}

    @property
    def numbers_a_row(self) -> int:
        """As of any samples."""
        return self._segment.numbers_a_row if self._num_rows else 0

    @property
    def input_bytes(self) -> int:
        """As of any samples."""
        return self._segment.input_bytes_a_row * self._num_rows

    @property
    def _rows(self) -> slice:
        return slice(self.first_row, self.first_row + self._num_rows)

    _segment: "_Segment"
    _num_rows: int


@dataclass(frozen=True)
class _Column:
    """What one tensor's rows look like in a segment."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    is_blank: bool = False
    """all zero, as a modality is that a site lacks: one row for all, and nothing in the file"""

    @property
    def row_bytes(self) -> int:
        return 0 if self.is_blank else torch.Size(self.shape).numel() * self.dtype.itemsize


Form = tuple[tuple[str, _Column], ...]
"""what sites must have in common to share a segment"""


@dataclass
class _Segment:
    """One file without a name: room for `capacity` rows of one form, column after column, each from a page on."""

    capacity: int
    mapped: mmap.mmap
    descriptor: int | None
    offsets: dict[str, int]
    form: Form
    used: int = 0
    pack: Batch = field(init=False)
    subjects: Tensor = field(init=False)
    numbers_a_row: int = field(init=False)
    input_bytes_a_row: int = field(init=False)

    def __post_init__(self) -> None:
        columns = {name: self._mapped(name, column) for name, column in self.form}
        self.subjects = columns.pop(_SUBJECTS)
        present, targets = columns.pop(_PRESENT), columns.pop(_TARGETS)
        self.pack = Batch(inputs=columns, present=present, targets=targets)
        self.numbers_a_row = self.pack.numbers_a_row
        self.input_bytes_a_row = self.pack.input_bytes // self.capacity

    def append(self, rows: dict[str, Tensor], *, num_rows: int) -> int:
        """Writes one site's rows behind the last ones; where they begin."""
        first = self.used
        for name, column in self.form:
            if column.row_bytes and num_rows:
                data = rows[name].contiguous().reshape(-1).view(torch.uint8).numpy()
                self._write(data.data, at=self.offsets[name] + first * column.row_bytes)
        self.used += num_rows
        if self.used == self.capacity:
            self.retire()
        return first

    def retire(self) -> None:
        """No more rows come; those that are there stay mapped."""
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None

    def _write(self, data: memoryview, *, at: int) -> None:
        if self.descriptor is None:
            raise AssertionError("a segment was written to after its end")
        # through the file and not through the map, where a full disk would be a signal that ends the process
        while len(data):
            written = os.pwrite(self.descriptor, data, at)
            data, at = data[written:], at + written

    def _mapped(self, name: str, column: _Column) -> Tensor:
        if not column.row_bytes:
            return torch.zeros((1, *column.shape), dtype=column.dtype).expand(self.capacity, *column.shape)
        count = self.capacity * torch.Size(column.shape).numel()
        flat = torch.frombuffer(self.mapped, dtype=column.dtype, count=count, offset=self.offsets[name])
        return flat.reshape(self.capacity, *column.shape)


class SampleStore:
    """Samples by key, in files that only this process can reach; safe to use from several threads.

    A row stays until the store is closed, also where its key was put anew.
    """

    def __init__(self, folder: Path, *, segment_bytes: int = SEGMENT_BYTES) -> None:
        """Opens a store in a folder, which is made where there is none and closed to everybody but its owner.

        Raises:
            ConfigError: the place cannot be written to.
        """
        self._folder, self._segment_bytes = folder, segment_bytes
        self._lock = threading.Lock()
        self._open: dict[Form, int] = {}
        self._segments: list[_Segment] = []
        self._places: dict[Hashable, tuple[int, int, int]] = {}
        self._is_closed = False
        try:
            # PRIVACY: what lies here is as private as the sites' own folders. test_only_the_owner_may_enter_the_folder
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.chmod(0o700)
            _sweep(folder)
        except OSError as error:
            raise _unusable(folder, error) from None

    def get(self, key: Hashable) -> PackedSamples | None:
        """The samples put under a key; None where there are none."""
        with self._lock:
            place = self._places.get(key)
            if place is None:
                return None
            segment = self._segments[place[0]]
        return PackedSamples(segment, first_row=place[1], num_rows=place[2])

    def put(self, key: Hashable, samples: Samples) -> PackedSamples:
        """The same samples, stored; in place of those under the key, if there were any.

        Raises:
            ConfigError: the disk is full or the folder is gone.
        """
        rows = {**samples.inputs, _PRESENT: samples.present, _TARGETS: samples.targets, _SUBJECTS: _numbers(samples)}
        form = tuple((name, _column(values, may_be_blank=name in samples.inputs)) for name, values in rows.items())
        with self._lock:
            if self._is_closed:
                raise AssertionError("samples were put into a store that is closed")
            try:
                number = self._segment_for(form, num_rows=len(samples))
                segment = self._segments[number]
                first = segment.append(rows, num_rows=len(samples))
            except OSError as error:
                raise _unusable(self._folder, error) from None
            self._places[key] = (number, first, len(samples))
        return PackedSamples(segment, first_row=first, num_rows=len(samples))

    def relieve(self) -> None:
        """Gives back the memory of all rows read so far; the next look at one reads it from the file again."""
        with self._lock:
            for segment in self._segments:
                segment.mapped.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        """Forgets everything; the disk space is free once the last tensor of the store is gone."""
        with self._lock:
            self._is_closed = True
            for segment in self._segments:
                segment.retire()
            self._segments, self._open, self._places = [], {}, {}

    def __enter__(self) -> "SampleStore":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _segment_for(self, form: Form, *, num_rows: int) -> int:
        """The number of a segment of the form with room for that many rows."""
        room = self._segment_bytes // sum(column.row_bytes for _, column in form)
        number = self._open.get(form) if num_rows <= room else None
        if number is not None and num_rows <= self._segments[number].capacity - self._segments[number].used:
            return number
        self._segments.append(_new_segment(self._folder, form, capacity=max(room, num_rows, 1)))
        if number is not None:
            self._segments[number].retire()
        if num_rows <= room:
            self._open[form] = len(self._segments) - 1
        return len(self._segments) - 1


@lru_cache(maxsize=1024)
def _names(numbers: bytes) -> tuple[str, ...]:
    """Numbers of subjects as names; most sites of a federation have the same ones, which are made once."""
    return tuple(map(str, np.frombuffer(numbers, dtype=np.int32).tolist()))


def _numbers(samples: Samples) -> Tensor:
    """[N] int32: which subject each row is about, counted in the order of their first rows."""
    # PRIVACY: who a row is about is needed only to tell people apart, so no name is stored.
    # test_names_of_subjects_are_not_stored
    seen: dict[str, int] = {}
    return torch.tensor([seen.setdefault(subject, len(seen)) for subject in samples.subjects], dtype=torch.int32)


def _column(values: Tensor, *, may_be_blank: bool) -> _Column:
    is_blank = may_be_blank and (len(values) <= 1 or values.stride(0) == 0) and not bool(values[:1].any())
    return _Column(shape=tuple(values.shape[1:]), dtype=values.dtype, is_blank=is_blank)


def _new_segment(folder: Path, form: Form, *, capacity: int) -> _Segment:
    offsets, size = dict[str, int](), 0
    for name, column in form:
        offsets[name] = size
        size += -(-capacity * column.row_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
    path = folder / f"{uuid.uuid4().hex}{_SUFFIX}"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        # PRIVACY: without a name nobody else can open it, and it is gone with this process, however that ends.
        # test_a_killed_process_leaves_no_row_behind
        path.unlink()
        os.ftruncate(descriptor, size)
        return _Segment(capacity, mmap.mmap(descriptor, size), descriptor, offsets, form)
    except BaseException:
        os.close(descriptor)
        raise


def _sweep(folder: Path) -> None:
    """Removes what a process left that was killed between making a file and taking its name away; it is empty."""
    for path in folder.glob(f"*{_SUFFIX}"):
        with suppress(FileNotFoundError):
            if path.lstat().st_mtime < time.time() - STALE_AFTER_S:
                path.unlink()


def _unusable(folder: Path, error: OSError) -> ConfigError:
    return ConfigError(f"{folder}: cannot hold the sites' samples ({error}); name a folder with room for them")
