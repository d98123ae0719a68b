"""Table: a manifest file becomes records, each with the line it stands on; nothing in it is believed yet.

in        metadata.jsonl, metadata.csv or metadata.parquet
out       Table of records (column -> whatever stood there), read by manifest.py
relies on nothing: encodings, sizes and shapes are judged here; meaning is judged by manifest.py
"""

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from shared.errors import MediaFault
from shared.findings import WHOLE_MANIFEST, Findings, shown
from shared.media.file import read_file

MAX_MANIFEST_BYTES = 1 << 30
MAX_LINE_BYTES = 1 << 20
MAX_ROWS = 10_000_000
_UTF8_MARK = b"\xef\xbb\xbf"
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True, slots=True)
class Record:
    """One row as it was written."""

    line: int
    """line of a text file, row of a parquet file, from 1"""
    cells: dict[str, object]


def read_table(path: Path, *, findings: Findings) -> tuple[Record, ...]:
    """All records of a manifest that could be read; the others are in `findings`, and so is the number of rows."""
    readers = {".jsonl": _read_jsonl, ".csv": _read_csv, ".parquet": _read_parquet}
    try:
        data, _ = read_file(path, max_bytes=MAX_MANIFEST_BYTES)
    except MediaFault as fault:
        findings.add(WHOLE_MANIFEST, field=fault.field, came=fault.came, allowed=fault.allowed)
        return ()
    return tuple(readers[path.suffix](data, findings))


class _RowError(ValueError):
    """What is wrong with a JSON row: the field, what came, what is allowed."""


def _read_jsonl(data: bytes, findings: Findings) -> Iterator[Record]:
    decode = json.JSONDecoder(object_pairs_hook=_unique_keys, parse_constant=_refuse_constant).decode
    for line, text in _text_lines(data, findings):
        findings.num_rows += 1
        try:
            cells = decode(text)
        except _RowError as error:
            field, came, allowed = error.args
            findings.add(line, field=field, came=came, allowed=allowed)
            continue
        except json.JSONDecodeError as error:
            came = f"not JSON ({error.msg}, character {error.pos + 1})"
            findings.add(line, field="row", came=came, allowed="one JSON object a line")
            continue
        except (ValueError, RecursionError):
            findings.add(
                line, field="row", came="JSON too deep or with too long a number", allowed="a flat JSON object"
            )
            continue
        if not isinstance(cells, dict):
            findings.add(line, field="row", came=shown(cells), allowed='a JSON object: {"column": value, ...}')
            continue
        yield Record(line=line, cells=cells)


def _unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    cells = dict(pairs)
    if len(cells) < len(pairs):
        names = [name for name, _ in pairs]
        twice = sorted({name for name in names if names.count(name) > 1})
        raise _RowError(shown(twice[0]), "given twice in this row", "each column once")
    return cells


def _refuse_constant(name: str) -> object:
    raise _RowError("row", f"with the value {name}", "JSON, which has no NaN or infinity")


def _text_lines(data: bytes, findings: Findings) -> Iterator[tuple[int, str]]:
    """Each line of a UTF-8 file with its number; lines that are not sound are noted and left out."""
    data = _without_mark(data, findings)
    for line, raw in enumerate(data.removesuffix(b"\n").split(b"\n"), start=1):
        if len(raw) > MAX_LINE_BYTES:
            findings.add(line, field="row", came=f"{len(raw)} bytes long", allowed=f"at most {MAX_LINE_BYTES} bytes")
        elif not raw.strip():
            if data:
                findings.add(line, field="row", came="blank", allowed="one row a line, and no empty lines")
        else:
            try:
                yield line, raw.decode("utf-8")
            except UnicodeDecodeError as error:
                _note_encoding(line, error, findings=findings)


def _without_mark(data: bytes, findings: Findings) -> bytes:
    """The bytes after any byte order mark, which is noted; none at all where they are UTF-16."""
    if data.startswith(_UTF8_MARK):
        findings.add(
            1,
            field="encoding",
            came="UTF-8 with a byte order mark",
            allowed='UTF-8 without one (save as plain "UTF-8")',
        )
        return data.removeprefix(_UTF8_MARK)
    if data.startswith(_UTF16_MARKS):
        findings.add(1, field="encoding", came="UTF-16", allowed='UTF-8 (save as plain "UTF-8")')
        return b""
    return data


def _note_encoding(line: int, error: UnicodeDecodeError, *, findings: Findings) -> None:
    came = f"not UTF-8 (byte 0x{error.object[error.start]:02x} at {error.start + 1})"
    findings.add(line, field="encoding", came=came, allowed='UTF-8 on every line (save as plain "UTF-8")')


def _read_csv(data: bytes, findings: Findings) -> Iterator[Record]:
    data = _without_mark(data, findings)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        for line, raw in enumerate(data.split(b"\n"), start=1):
            try:
                raw.decode("utf-8")
            except UnicodeDecodeError as error:
                _note_encoding(line, error, findings=findings)
        text = data.decode("utf-8", errors="replace")
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    names: list[str] | None = None
    line = 1
    try:
        for cells in reader:
            if names is None:
                names = cells
                _judge_names(names, line=line, findings=findings)
            else:
                findings.num_rows += 1
                if len(cells) == len(names):
                    yield Record(line=line, cells=dict(zip(names, cells, strict=True)))
                else:
                    came = f"{len(cells)} cells" if cells else "blank"
                    findings.add(line, field="row", came=came, allowed=f"{len(names)} cells, as in the first line")
            line = reader.line_num + 1
    except csv.Error as error:
        findings.add(line, field="row", came=f"not CSV ({error})", allowed="cells with commas between, quotes closed")


def _judge_names(names: list[str], *, line: int, findings: Findings) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    for name in twice:
        findings.add(line, field=shown(name), came="the name of several columns", allowed="each column once")


def _read_parquet(data: bytes, findings: Findings) -> Iterator[Record]:
    import pyarrow
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(pyarrow.BufferReader(data))
        declared = sum(file.metadata.row_group(i).total_byte_size for i in range(file.metadata.num_row_groups))
        if file.metadata.num_rows > MAX_ROWS or declared > MAX_MANIFEST_BYTES:
            came = f"{file.metadata.num_rows} rows, {declared} bytes unpacked"
            allowed = f"at most {MAX_ROWS} rows and {MAX_MANIFEST_BYTES} bytes"
            findings.add(WHOLE_MANIFEST, field="size", came=came, allowed=allowed)
            return
        names = file.schema_arrow.names
        _judge_names(names, line=WHOLE_MANIFEST, findings=findings)
        line = 0
        for part in file.iter_batches():
            for cells in zip(*(column.to_pylist() for column in part.columns), strict=True):
                line += 1
                findings.num_rows += 1
                yield Record(line=line, cells=dict(zip(names, cells, strict=True)))
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        came = f"not readable as parquet ({str(error).splitlines()[0][:120]})"
        findings.add(WHOLE_MANIFEST, field="content", came=came, allowed="a whole parquet file")
