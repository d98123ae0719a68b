"""Manifest: the rows of one data folder, each with a target and at least one modality that exists.

in        a folder with metadata.jsonl, .csv or .parquet, and the schema its rows must keep to
out       Manifest of Rows, read by dataset.py and check.py; or one ManifestError with every fault
relies on table.py for what was written and location.py for where files lie; opens no media file
"""

import errno
import math
import os
import stat
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from shared.clock import Clock, clock_columns, read_clock
from shared.errors import Fault, ManifestError, MediaFault
from shared.findings import WHOLE_MANIFEST, Findings, choices, shown
from shared.location import Locator
from shared.media import SUFFIXES
from shared.schema import DataSchema
from shared.table import Record, read_table
from shared.targets import Target, TargetReader

MANIFEST_NAMES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
MAX_TEXT_CHARACTERS = 100_000
MAX_WORD_CHARACTERS = 200


@dataclass(frozen=True, slots=True)
class Row:
    """One sample, as the manifest names it."""

    line: int
    values: dict[str, Path | str]
    """modality -> path of its file, or the text itself; absent ones are not in it"""
    target: Target
    """as targets.py has it"""
    subject: str | None
    groups: dict[str, str]
    """group column -> value; absent ones are not in it"""
    clock: Clock = field(default_factory=Clock)
    """when its files were taken"""


@dataclass(frozen=True)
class Manifest:
    """All rows of a folder, in the order of the file."""

    path: Path
    rows: tuple[Row, ...]


def find_manifest(folder: Path) -> Path:
    """The one manifest of a folder.

    Raises:
        ManifestError: there is none, more than one, or it is no regular file.
    """
    modes = {name: mode for name in MANIFEST_NAMES if (mode := _mode(folder, name)) is not None}
    found = [folder / name for name in modes]
    allowed = f"exactly one of {', '.join(MANIFEST_NAMES)}"
    if len(found) == 1 and stat.S_ISREG(modes[found[0].name]):
        return found[0]
    if not folder.is_dir():
        came, allowed = "no folder", "a folder with a manifest"
    elif len(found) == 1:
        came, allowed = "a link or no file", "a regular file in the folder itself"
    else:
        came = "missing" if not found else " and ".join(path.name for path in found)
    fault = Fault(place=str(folder), field="manifest", came=came, allowed=allowed)
    raise ManifestError(folder=str(folder), manifest=folder.name, num_rows=0, faults=(fault,))


def _mode(folder: Path, name: str) -> int | None:
    """What kind of file has the name, links not followed; None where there is none."""
    try:
        return os.lstat(f"{folder}{os.sep}{name}").st_mode
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return None
        raise


def read_manifest(folder: Path, *, schema: DataSchema) -> Manifest:
    """All rows of a folder's manifest.

    Raises:
        ManifestError: with every fault of the manifest; files were looked for, not opened.
    """
    manifest, findings = scan_manifest(folder, schema=schema)
    findings.raise_if_any()
    return manifest


def scan_manifest(folder: Path, *, schema: DataSchema, needs_answers: bool = True) -> tuple[Manifest, Findings]:
    """The rows that are sound, and what is wrong with the others, for a caller that looks into the files as well.

    Args:
        folder: with one manifest.
        schema: what its rows must be.
        needs_answers: where not, answers may be absent and are not looked at; every target is 0.

    Raises:
        ManifestError: there is not exactly one manifest.
    """
    path = find_manifest(folder)
    findings = Findings(manifest=path, unit="row" if path.suffix == ".parquet" else "line")
    records = read_table(path, findings=findings)
    if not findings.num_rows and not findings:
        findings.add(WHOLE_MANIFEST, field="rows", came="none", allowed="one or more")
    reader = _RowReader(folder, schema=schema, findings=findings, needs_answers=needs_answers)
    reader.judge_columns(records)
    rows = tuple(row for row in map(reader.row, records) if row is not None)
    reader.judge_subjects(rows)
    return Manifest(path=path, rows=rows), findings


class _RowReader:
    """Judges the records of one folder, one after another."""

    def __init__(self, folder: Path, *, schema: DataSchema, findings: Findings, needs_answers: bool) -> None:
        self._schema, self._findings, self._locator = schema, findings, Locator(folder)
        self._columns = {name: schema.column(name) for name in schema.modalities}
        self._clock = clock_columns(schema)
        self._targets = TargetReader(schema, findings=findings, are_needed=needs_answers)
        self._first_use: dict[str, tuple[int, str]] = {}
        files = [name for name, modality in schema.modalities.items() if modality.kind != "text"]
        self._short = files[0] if len(files) == 1 else None

    def judge_columns(self, records: Iterable[Record]) -> None:
        """Notes each column that the schema does not know, once, where it first stands."""
        known = {
            *self._schema.parts,
            "subject_id",
            *self._columns.values(),
            *self._schema.groups,
            *self._schema.ignored,
            *self._clock,
        }
        if self._short is not None:
            known.add("file_name")
        first: dict[str, int] = {}
        counts: dict[str, int] = {}
        for record in records:
            for column in record.cells.keys() - known:
                first.setdefault(column, record.line)
                counts[column] = counts.get(column, 0) + 1
        for column, line in first.items():
            came = "an unknown column" + (f" (in {counts[column]} rows)" if counts[column] > 1 else "")
            allowed = f"{choices(sorted(known))}; more can be named in the schema's `groups` or `ignored`"
            self._findings.add(line, field=shown(column), came=came, allowed=allowed)

    def judge_subjects(self, rows: tuple[Row, ...]) -> None:
        """Notes rows without a subject where others have one: who they are about could not be told."""
        if any(row.subject is not None for row in rows):
            for row in rows:
                if row.subject is None:
                    allowed = "a value in every row, or in none"
                    self._findings.add(row.line, field="subject_id", came="absent", allowed=allowed)

    def row(self, record: Record) -> Row | None:
        """The sample that a record names; None, and at least one fault noted, where it is not sound."""
        before = len(self._findings)
        target = self._targets.read(record)
        values = self._values(record)
        subject = self._word(record, "subject_id")
        # PRIVACY: "P17 " and "p17" are one person; told apart, each would have a share of the protection.
        # test_a_person_is_one_subject_however_the_name_is_written
        subject = " ".join(unicodedata.normalize("NFKC", subject).casefold().split()) or None if subject else None
        clock = read_clock(record, columns=self._clock, findings=self._findings)
        words = {column: self._word(record, column) for column in self._schema.groups}
        if len(self._findings) > before or target is None:
            return None
        groups = {column: word for column, word in words.items() if word is not None}
        return Row(line=record.line, values=values, target=target, subject=subject, groups=groups, clock=clock)

    def _values(self, record: Record) -> dict[str, Path | str]:
        values: dict[str, Path | str] = {}
        is_any_named = False
        for modality in self._columns:
            cell, column = self._cell(record, modality=modality)
            if cell is None or (isinstance(cell, str) and not cell.strip()):
                continue
            is_any_named = True
            if not isinstance(cell, str):
                kind = "a text" if column == modality else "the name of a file"
                self._findings.add(record.line, field=column, came=shown(cell), allowed=kind)
            elif self._schema.modalities[modality].kind == "text":
                self._judge_text(record.line, column=column, text=cell)
                values[modality] = cell
            elif (path := self._file(record.line, modality=modality, column=column, name=cell)) is not None:
                values[modality] = path
        if not is_any_named:
            came = f"{', '.join(self._columns)} all absent" if len(self._columns) > 1 else "absent"
            field = "row" if len(self._columns) > 1 else next(iter(self._columns.values()))
            self._findings.add(record.line, field=field, came=came, allowed="at least one modality in every row")
        return values

    def _cell(self, record: Record, *, modality: str) -> tuple[object, str]:
        """What stands in a modality's column, and the column's name as it was written."""
        column = self._columns[modality]
        if modality != self._short or "file_name" not in record.cells:
            return record.cells.get(column), column
        if column in record.cells:
            allowed = "only one of the two"
            self._findings.add(record.line, field="file_name", came=f"beside {column}", allowed=allowed)
        return record.cells["file_name"], "file_name"

    def _judge_text(self, line: int, *, column: str, text: str) -> None:
        if len(text) > MAX_TEXT_CHARACTERS:
            allowed = f"at most {MAX_TEXT_CHARACTERS} characters"
            self._findings.add(line, field=column, came=f"{len(text)} characters long", allowed=allowed)
        elif not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
            self._findings.add(line, field=column, came="half a surrogate pair", allowed="whole characters")

    def _file(self, line: int, *, modality: str, column: str, name: str) -> Path | None:
        allowed = SUFFIXES[self._schema.modalities[modality].kind]
        if not name.lower().endswith(allowed):
            self._findings.add(line, field=column, came=shown(name), allowed=f"a file ending in {', '.join(allowed)}")
            return None
        try:
            path = self._locator.find(name)
        except MediaFault as fault:
            self._findings.add(line, field=column, came=fault.came, allowed=fault.allowed)
            return None
        first = self._first_use.setdefault(str(path), (line, column))
        if first != (line, column):
            came = f"{shown(name)}, used before ({self._findings.unit} {first[0]}, {first[1]})"
            # PRIVACY: a record twice would be protected as if it were two. test_the_same_file_twice_is_refused
            self._findings.add(line, field=column, came=came, allowed="each file once")
            return None
        return path

    def _word(self, record: Record, column: str) -> str | None:
        """A short value such as a subject or a group; numbers are taken as they are written."""
        cell = record.cells.get(column)
        if cell is None or cell == "":
            return None
        if isinstance(cell, bool):
            return "true" if cell else "false"
        if isinstance(cell, int) or (isinstance(cell, float) and math.isfinite(cell)):
            cell = str(cell)
        if isinstance(cell, str) and len(cell) <= MAX_WORD_CHARACTERS and cell.isprintable():
            return cell
        allowed = f"a word or number of at most {MAX_WORD_CHARACTERS} printable characters"
        self._findings.add(record.line, field=column, came=shown(cell), allowed=allowed)
        return None
