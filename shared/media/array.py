"""Array: the bytes of one sensor recording or one precomputed vector become float32 numbers.

in        bytes of a .npy or .csv file
out       signal [T, channels] or features [width], float32 and finite
relies on NumPy's header parser only: no pickle is read, and nothing is allocated by what a header declares
"""

import csv
import functools
import io
import math
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from jaxtyping import Float32, Float64

from shared.errors import MediaFault
from shared.media.content import content_name
from shared.media.file import read_file

SHORT_HEADER_BYTES = 256
MAX_SIGNAL_STEPS = 10_000_000
ARRAY_SUFFIXES = (".csv", ".npy")
FEATURES_SUFFIXES = (".npy",)
TIME_COLUMN = "time_s"
"""of a .csv: when each row was taken, in seconds; no channel"""
_NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*", re.ASCII)


@dataclass(frozen=True)
class TimedSignal:
    """A sensor recording with the times of its steps, where the file has them."""

    values: Float32[np.ndarray, "T C"]
    times_s: Float64[np.ndarray, "T"] | None
    """counted from the first step; rising"""


def open_signal(path: Path, *, channels: int) -> Float32[np.ndarray, "T C"]:
    """The sensor recording in a .npy or .csv file, one row a time step.

    Raises:
        MediaFault: it is not a whole array of finite numbers [T, channels] with T at least 1.
    """
    return decode_signal(read_file(path)[0], suffix=path.suffix.lower(), channels=channels)


def decode_signal(data: bytes, *, suffix: str, channels: int) -> Float32[np.ndarray, "T C"]:
    """The sensor recording in a file's bytes; see `open_signal`. A column time_s is judged and left out."""
    return decode_timed_signal(data, suffix=suffix, channels=channels).values


def decode_timed_signal(data: bytes, *, suffix: str, channels: int) -> TimedSignal:
    """The sensor recording in a file's bytes, with the times in a column time_s; see `open_signal`.

    Raises:
        MediaFault: also, times that do not rise from row to row.
    """
    if suffix not in ARRAY_SUFFIXES:
        raise MediaFault(field="name", came=f"ending in {suffix!r}", allowed=", ".join(ARRAY_SUFFIXES))
    values, times = _decode_csv(data) if suffix == ".csv" else (_decode_npy(data), None)
    if values.ndim != 2:
        raise MediaFault(field="shape", came=_shape(values), allowed=f"[time, {channels}]")
    if values.shape[1] != channels:
        raise MediaFault(field="channels", came=str(values.shape[1]), allowed=str(channels))
    if not 1 <= values.shape[0] <= MAX_SIGNAL_STEPS:
        raise MediaFault(field="time steps", came=str(values.shape[0]), allowed=f"1 to {MAX_SIGNAL_STEPS}")
    return TimedSignal(values=_as_finite_float32(values), times_s=times)


def open_features(path: Path, *, width: int) -> Float32[np.ndarray, "F"]:
    """The precomputed vector in a .npy file.

    Raises:
        MediaFault: it is not a whole vector of `width` finite numbers.
    """
    return decode_features(read_file(path)[0], suffix=path.suffix.lower(), width=width)


def decode_features(data: bytes, *, suffix: str, width: int) -> Float32[np.ndarray, "F"]:
    """The precomputed vector in a file's bytes; see `open_features`."""
    if suffix not in FEATURES_SUFFIXES:
        raise MediaFault(field="name", came=f"ending in {suffix!r}", allowed=", ".join(FEATURES_SUFFIXES))
    values = _decode_npy(data)
    if values.shape != (width,):
        raise MediaFault(field="shape", came=_shape(values), allowed=f"[{width}]")
    return _as_finite_float32(values)


def array_shape(path: Path) -> tuple[int, ...]:
    """Shape of the array in a .npy or .csv file, one or two numbers; a column time_s does not count.

    Raises:
        MediaFault: it is not a whole array.
    """
    data, _ = read_file(path)
    return (_decode_csv(data)[0] if path.suffix.lower() == ".csv" else _decode_npy(data)).shape


def _decode_npy(data: bytes) -> npt.NDArray[np.generic]:
    """The array in a .npy file, as a view of its bytes: a header that declares more than is there costs nothing."""
    try:
        # version 1.0 has the header's length in bytes 8 and 9, as numpy.lib.format says
        header_bytes = 10 + int.from_bytes(data[8:10], "little")
        is_short = data[6:8] == b"\x01\x00" and header_bytes <= SHORT_HEADER_BYTES
        header = _short_header(data[:header_bytes]) if is_short else _header(data)
        shape, is_fortran_order, dtype, start = header
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        raise MediaFault(
            field="content", came=f"not a NumPy array ({content_name(data)})", allowed="a .npy file"
        ) from None
    if dtype.kind not in "fiu" or dtype.itemsize > 8:
        came = "objects" if dtype.hasobject else str(dtype)[:80]
        raise MediaFault(field="dtype", came=came, allowed="integers or floats of at most 64 bits")
    if len(shape) not in (1, 2) or any(length < 0 for length in shape):
        raise MediaFault(field="shape", came=str(list(shape))[:80], allowed="one or two dimensions")
    declared, there = math.prod(shape) * dtype.itemsize, len(data) - start
    if declared != there:
        came = f"{list(shape)} ({declared} bytes declared, {there} there)"
        raise MediaFault(field="shape", came=came, allowed="what the file holds")
    flat = np.frombuffer(data, dtype=dtype, offset=start)
    return flat.reshape(shape, order="F" if is_fortran_order else "C")


def _header(data: bytes) -> tuple[tuple[int, ...], bool, np.dtype[np.generic], int]:
    """Shape, order and type that the first bytes of a .npy file declare, and where the numbers begin."""
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    read_header = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read_header is None:
        raise MediaFault(field="format version", came=str(version), allowed="(1, 0) or (2, 0)")
    shape, is_fortran_order, dtype = read_header(file)
    return shape, is_fortran_order, dtype, file.tell()


@functools.lru_cache(maxsize=256)
def _short_header(data: bytes) -> tuple[tuple[int, ...], bool, np.dtype[np.generic], int]:
    """As `_header`: arrays of one shape begin alike, and NumPy's parser takes longer than all else about small ones."""
    return _header(data)


def _decode_csv(data: bytes) -> tuple[npt.NDArray[np.generic], Float64[np.ndarray, "T"] | None]:
    """The table in a .csv file, numbers with commas between after at most one line of column names; and its times."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise MediaFault(field="content", came="not UTF-8", allowed="numbers with commas between") from None
    rows: list[list[float]] = []
    width, names = 0, list[str]()
    for number, line in enumerate(csv.reader(io.StringIO(text)), start=1):
        is_names = number == 1 and line and not any(_is_number(cell) for cell in line)
        if is_names and not any(_is_nan_or_infinite(cell) for cell in line):
            width, names = len(line), [cell.strip() for cell in line]
            continue
        width = width or len(line)
        if len(line) != width:
            raise MediaFault(
                field=f"row {number}", came=f"{len(line)} values", allowed=f"{width} values, as in the rows before"
            )
        for column, cell in enumerate(line, start=1):
            if not _is_number(cell):
                raise MediaFault(
                    field=f"row {number}, column {column}", came=repr(cell[:40]), allowed="a finite number"
                )
        rows.append([float(cell) for cell in line])
    table = np.array(rows, dtype=np.float64).reshape(len(rows), width)
    if TIME_COLUMN not in names:
        return table, None
    place = names.index(TIME_COLUMN)
    return np.delete(table, place, axis=1), _judged_times(table[:, place])


def _judged_times(times_s: Float64[np.ndarray, "T"]) -> Float64[np.ndarray, "T"]:
    """The times from the first on."""
    late = np.flatnonzero(~(np.diff(times_s) > 0))
    if len(late):
        first = int(late[0])
        came = f"{times_s[first + 1]:g} after {times_s[first]:g}"
        raise MediaFault(field=f"{TIME_COLUMN}, step {first + 2}", came=came, allowed="times that rise from row to row")
    since_first: npt.NDArray[np.float64] = times_s - times_s[:1]
    return since_first


def _is_number(cell: str) -> bool:
    return _NUMBER.fullmatch(cell) is not None


def _is_nan_or_infinite(cell: str) -> bool:
    return cell.strip().lower().lstrip("+-") in ("nan", "inf", "infinity", "")


def _as_finite_float32(values: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
    if values.dtype == np.float32:
        numbers = np.ascontiguousarray(values, dtype=np.float32)
    else:
        with np.errstate(over="ignore"):
            numbers = np.ascontiguousarray(values, dtype=np.float32)
    if not np.isfinite(numbers).all():
        first = tuple(int(index) for index in np.argwhere(~np.isfinite(numbers))[0])
        came = f"{values[first]} at {list(first)}"
        raise MediaFault(field="values", came=came, allowed="finite numbers within the range of float32")
    # A view of the file's bytes cannot be written to, which torch would warn about.
    return numbers if numbers.flags.writeable else numbers.copy()


def _shape(values: npt.NDArray[np.generic]) -> str:
    return f"{list(values.shape)}"
