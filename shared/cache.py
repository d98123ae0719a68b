"""Cache: what preprocessing made of a folder's files, kept so that a second run opens none of them.

in        finished tensors from dataset.py, by the digest of the file or text they came from
out       the same tensors, memory-mapped; or nothing, and dataset.py makes them again
relies on files being changed only together with their size or times (as make, rsync and git do)

    CACHE/<digest of the folder's path>/files.json                        file -> stamp and content digest
                                       /<modality>-<digest>.safetensors   digests [N, 32] and values [N, ...]

# PRIVACY: what lies here is as private as the folder itself: only the owner's account may enter, and what a manifest
# no longer names leaves the cache at the next load. test_only_the_owner_may_enter, test_withdrawn_rows_leave_the_cache
"""

import hashlib
import json
import os
import stat
import time
import uuid
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from shared.errors import ConfigError
from shared.media.file import Stamp, stamp_of

FORMAT = "motet-cache-1"
STALE_AFTER_S = 3600
_DIGEST_BYTES = 32
_LENGTH_BYTES = 8
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""safetensors' names of the types that values have; any other counts as absent, and the values are made again"""
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


@dataclass(frozen=True)
class StoredValues:
    """Finished values of one modality of a folder under one preprocessing."""

    positions: dict[bytes, int]
    """digest of the file or text -> row of `values`"""
    values: Tensor
    """[N, ...]"""


class FolderCache:
    """The cache of one data folder. Damaged or foreign files in it count as absent.

    Several processes may use it at once: every file is written aside and put in place whole; the last one stays.
    """

    def __init__(self, root: Path, *, folder: Path) -> None:
        """Opens the cache, and makes it where there is none.

        Raises:
            ConfigError: the place cannot be written to.
        """
        self._folder = os.path.realpath(folder) + os.sep
        self._place = root / hashlib.sha256(self._folder.encode("utf-8", "surrogateescape")).hexdigest()[:_DIGEST_BYTES]
        self._changed = self._withdrawn = False
        self._kept: set[str] = set()
        try:
            self._make_private(root)
            self._sweep()
        except OSError as error:
            raise _unusable(root, reason=str(error)) from None
        self._files = _read_index(self._place / "files.json")

    def digest_of(self, path: Path) -> bytes | None:
        """Content digest of a file that has not changed since it was read; None for any other."""
        known = self._files.get(self._name(path))
        return known[1] if known is not None and known[0] == stamp_of(path) else None

    def remember(self, path: Path, *, stamp: Stamp, digest: bytes) -> None:
        """Notes what a file held when it was read."""
        self._files[self._name(path)] = (stamp, digest)
        self._changed = True

    def stored(self, modality: str, *, key: str) -> StoredValues | None:
        """Values under a key that names the modality's form and preprocessing; None where none are sound."""
        path = self._path(modality, key=key)
        self._kept.add(path.name)
        try:
            facts, digests, values = _mapped(path)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, RecursionError):
            return None
        if digests.dtype != torch.uint8 or digests.shape != (len(values), _DIGEST_BYTES):
            return None
        if facts.get("key") != key or facts.get("sum") != _sum(digests, values):
            return None
        rows = digests.numpy().tobytes()
        positions = {rows[i * _DIGEST_BYTES : (i + 1) * _DIGEST_BYTES]: i for i in range(len(values))}
        return StoredValues(positions=positions, values=values)

    def store(self, modality: str, *, key: str, digests: Sequence[bytes], values: Tensor, withdrawn: bool) -> None:
        """Puts the values of all rows in place of those that were stored.

        Args:
            modality: its name.
            key: as for `stored`.
            digests: of the file or text that each value came from.
            values: [N, ...], in the order of `digests`.
            withdrawn: some value that was stored is not among these.
        """
        self._withdrawn |= withdrawn
        table = torch.frombuffer(bytearray(b"".join(digests)), dtype=torch.uint8).reshape(len(digests), _DIGEST_BYTES)
        values, path = values.contiguous(), self._path(modality, key=key)
        if values.dtype not in _NAMES:
            path.unlink(missing_ok=True)
            return
        facts = {"format": FORMAT, "key": key, "sum": _sum(table, values)}
        self._write(path, *_packed(facts, {"digests": table, "values": values}))

    def drop(self, modality: str, *, key: str) -> None:
        """Removes what is stored under a key, where no row of the folder has such a value any more."""
        self._path(modality, key=key).unlink(missing_ok=True)
        self._withdrawn = True

    def close(self, *, named: Collection[Path], most_bytes: int | None = None) -> None:
        """Writes down the digests of the files that the manifest names, and forgets all others.

        Once a file or text is withdrawn or changed, values that other runs left here are removed too: they may hold it.

        Args:
            named: the files of the manifest.
            most_bytes: what values of other preprocessings leave when they and this run's are more: those that were
                used longest ago first. None: all stay.
        """
        kept = {self._name(path) for path in named}
        gone = self._files.keys() - kept
        for name in gone:
            del self._files[name]
        if gone or self._changed:
            files = {name: [*stamp, digest.hex()] for name, (stamp, digest) in self._files.items()}
            self._write(self._place / "files.json", json.dumps({"format": FORMAT, "files": files}).encode())
        if gone or self._withdrawn:
            for path in self._place.glob("*.safetensors"):
                if path.name not in self._kept:
                    path.unlink(missing_ok=True)
        if most_bytes is not None:
            self._shrink(most_bytes)

    def _shrink(self, most_bytes: int) -> None:
        found = {path: path.stat() for path in self._place.glob("*.safetensors")}
        total = sum(each.st_size for each in found.values())
        others = [path for path in found if path.name not in self._kept]
        for path in sorted(others, key=lambda path: found[path].st_mtime_ns):
            if total > most_bytes:
                path.unlink(missing_ok=True)
                total -= found[path].st_size
        for path in found.keys() - others:
            os.utime(path)

    def _name(self, path: Path) -> str:
        return str(path).removeprefix(self._folder)

    def _path(self, modality: str, *, key: str) -> Path:
        return self._place / f"{modality}-{hashlib.sha256(key.encode()).hexdigest()[:_DIGEST_BYTES]}.safetensors"

    def _write(self, path: Path, *pieces: bytes | memoryview) -> None:
        """The pieces as a file that takes its place once it is whole, or leaves nothing."""
        aside = f"{self._place}{os.sep}{uuid.uuid4().hex}.tmp"
        try:
            # PRIVACY: nobody else can open it, at no time. test_only_the_owner_may_enter
            descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.writelines(pieces)
                os.replace(aside, path)  # noqa: PTH105  ten thousand folders are written in the first round
            except BaseException:
                with suppress(FileNotFoundError):
                    os.unlink(aside)  # noqa: PTH108  as above
                raise
        except OSError as error:
            raise _unusable(self._place, reason=str(error)) from None

    def _make_private(self, root: Path) -> None:
        """The place is there and closed to others; a look is cheaper than making it again for each of many folders."""
        try:
            mode = self._place.stat().st_mode
        except FileNotFoundError:
            if not root.is_dir():
                root.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._place.mkdir(mode=0o700, exist_ok=True)
            mode = 0
        if stat.S_IMODE(mode) != 0o700:
            self._place.chmod(0o700)

    def _sweep(self) -> None:
        """Removes what a process that was killed left half written."""
        for name in os.listdir(self._place):  # noqa: PTH208  a Path for each file would double the cost
            if name.endswith(".tmp"):
                stamp = stamp_of(self._place / name)
                if stamp is not None and stamp[1] < (time.time() - STALE_AFTER_S) * 1e9:
                    (self._place / name).unlink(missing_ok=True)


def _unusable(place: Path, *, reason: str) -> ConfigError:
    return ConfigError(f"{place}: cannot be used as a cache ({reason}); name a folder that can be written to")


def _read_index(path: Path) -> dict[str, tuple[Stamp, bytes]]:
    try:
        table = json.loads(path.read_bytes())
        if table["format"] != FORMAT:
            return {}
        return {
            str(name): ((int(size), int(changed), int(moved)), bytes.fromhex(digest))
            for name, (size, changed, moved, digest) in table["files"].items()
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return {}


def _mapped(path: Path) -> tuple[dict[str, str], Tensor, Tensor]:
    """A file's facts, digests and values, the two tensors mapped and not read; keeps no file open.

    The same as `safetensors.safe_open` and `get_tensor` give in four times the time, which counts with ten thousand
    folders of a few rows. What is wrong in the file raises an error of one kind or another.

    Source: the format as safetensors' README describes it: length of the header (8 bytes), header (JSON), the bytes.
    """
    whole = torch.from_file(str(path), shared=False, size=path.stat().st_size, dtype=torch.uint8)
    start = _LENGTH_BYTES + int.from_bytes(whole[:_LENGTH_BYTES].numpy().tobytes(), "little")
    header = json.loads(whole[_LENGTH_BYTES:start].numpy().tobytes())
    tensors = []
    for name in ("digests", "values"):
        first, last = header[name]["data_offsets"]
        values = whole[start + first : start + last].view(_DTYPES[header[name]["dtype"]])
        tensors.append(values.reshape(header[name]["shape"]))
    return header["__metadata__"], tensors[0], tensors[1]


def _packed(facts: dict[str, str], tensors: dict[str, Tensor]) -> Iterator[bytes | memoryview]:
    """A safetensors file, piece by piece, as `_mapped` reads it: in an eighth of the time of their `save_file`."""
    header: dict[str, object] = {"__metadata__": facts}
    first = 0
    for name, values in tensors.items():
        last = first + values.nbytes
        shape = list(values.shape)
        header[name] = {"dtype": _NAMES[values.dtype], "shape": shape, "data_offsets": [first, last]}
        first = last
    text = json.dumps(header).encode()
    # the numbers begin at a multiple of eight, as the format wants it
    text += b" " * (-len(text) % _LENGTH_BYTES)
    yield len(text).to_bytes(_LENGTH_BYTES, "little") + text
    for values in tensors.values():
        yield _bytes(values)


def _bytes(values: Tensor) -> memoryview:
    view: memoryview = values.reshape(-1).view(torch.uint8).numpy().data
    return view


def _sum(digests: Tensor, values: Tensor) -> str:
    """SHA-256 over the bytes of both: finds damage, not malice (who can write here can read the folder as well)."""
    total = hashlib.sha256()
    for tensor in (digests, values):
        total.update(_bytes(tensor))
    return total.hexdigest()
