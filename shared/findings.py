"""Findings: the faults of one data folder, gathered while it is read, told in one error at the end.

in        faults from table.py, manifest.py, dataset.py and check.py, each with the line it was found on
out       one ManifestError with all of them in the order of the manifest, or nothing
relies on errors.py only
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from shared.errors import Fault, ManifestError

WHOLE_MANIFEST = 0
SHOWN_CHARACTERS = 80


@dataclass
class Findings:
    """All faults found so far in the folder of one manifest."""

    manifest: Path
    unit: Literal["line", "row"]
    """what a place is counted in: lines of a text file, rows of a parquet file; both from 1"""
    num_rows: int = 0
    _found: list[tuple[int, Fault]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self._found)

    def add(self, line: int, *, field: str, came: str, allowed: str, file: str | None = None) -> None:
        """Notes one fault; `line` 0 stands for the manifest as a whole."""
        place = self.manifest.name if line == WHOLE_MANIFEST else f"{self.unit} {line}"
        if file is not None:
            place += f", {file if file.isprintable() else shown(file)}"
        self._found.append((line, Fault(place=place, field=field, came=came, allowed=allowed)))

    @property
    def faults(self) -> tuple[Fault, ...]:
        """All faults, in the order of the manifest."""
        return tuple(fault for _, fault in sorted(self._found, key=lambda found: found[0]))

    def raise_if_any(self) -> None:
        """Ends the reading of a folder that has faults.

        Raises:
            ManifestError: with every fault noted.
        """
        if self._found:
            folder = self.manifest.parent
            shown = f"{folder.name}/{self.manifest.name}"
            raise ManifestError(folder=str(folder), manifest=shown, num_rows=self.num_rows, faults=self.faults)


def shown(value: object) -> str:
    """A value as an error text shows it: on one line, and cut when it is long."""
    text = repr(value) if isinstance(value, str | bytes) else f"{value} ({_JSON_NAMES.get(type(value), 'not plain')})"
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}... ({len(text)} characters)"


def choices(names: tuple[str, ...] | list[str]) -> str:
    """The names that are allowed, as an error text lists them."""
    listed = ", ".join(repr(name) for name in names[:20])
    return listed if len(names) <= 20 else f"{listed} and {len(names) - 20} more"


_JSON_NAMES = {bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object"}
