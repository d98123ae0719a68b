"""Writer: rows in memory become a data set folder, whole or not at all.

in        a card (what the data are, what may be done with them) and rows, each for one part of the data set
out       TARGET/: dataset.toml, README.md, sites/SITE/, held-out/validation/ and test/, for matching public/
relies on nothing but shared/config.py; every builder beside this file writes through it
"""

import json
import os
import re
import shutil
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import tomli_w

from shared.errors import ConfigError
from shared.schema import DataCard, DataSchema
from shared.targets import count_names

VALIDATION = "held-out/validation"
TEST = "held-out/test"
PUBLIC = "public"
"""values that are nobody's: what a run of matching tells pairs from"""


@dataclass(frozen=True)
class File:
    """A media file to be: its suffix and its bytes, or the file that holds them."""

    suffix: str
    content: bytes | Path
    link: bool = False
    """share the disk space of `content` by a hard link where the file system allows it, copy elsewhere"""


@dataclass(frozen=True)
class NewRow:
    """One sample. A modality that it lacks is not in `values`."""

    name: str
    """names its media files: unique within its part, letters, digits, `.`, `_` and `-` only"""
    values: Mapping[str, str | File]
    targets: Mapping[str, object]
    """column -> answer: a label, labels or a rating"""
    subject: str | None = None
    columns: Mapping[str, object] = field(default_factory=dict)
    """group columns, ignored ones and times"""


@dataclass(frozen=True)
class BuiltDataset:
    """A finished data set folder and how many rows went where."""

    folder: Path
    card: DataCard
    site_rows: dict[str, int]
    validation_rows: int
    test_rows: int

    @property
    def sites(self) -> tuple[Path, ...]:
        """Folders of the sites, in order of their names."""
        return tuple(self.folder / "sites" / name for name in sorted(self.site_rows))

    def __str__(self) -> str:
        sizes = sorted(self.site_rows.values())
        return (
            f"{self.folder}: {len(sizes)} sites of {sizes[0]} to {sizes[-1]} rows ({sum(sizes)} in all), "
            f"{self.validation_rows} for validation, {self.test_rows} for the test"
        )


class DatasetWriter:
    """Collects rows part by part; media files are written at once, manifests at the end."""

    def __init__(self, folder: Path, *, card: DataCard) -> None:
        self.card = card
        self._folder = folder
        self._lines: dict[str, list[str]] = {}
        self._names: dict[str, set[str]] = {}
        self._labels: dict[str, Counter[str]] = {}
        self._present: dict[str, Counter[str]] = {}

    def add(self, part: str, row: NewRow) -> None:
        """Put a row into `held-out/validation`, `held-out/test`, `public` or, for any other name, that site.

        Raises:
            ConfigError: the site's or the row's name cannot be a file's name.
        """
        place = part if part in (VALIDATION, TEST, PUBLIC) else f"sites/{_file_name(part, what='site')}"
        names = self._names.setdefault(place, set())
        if _file_name(row.name, what="row") in names or not row.values:
            raise ValueError(f"{place}: row {row.name} is there already, or has no modality")
        names.add(row.name)
        content, line = self.card.content, dict[str, object]()
        for modality in content.modalities:
            if modality in row.values:
                line[content.column(modality)] = self._store(place, modality, row)
                self._present.setdefault(place, Counter())[modality] += 1
        line.update(row.targets)
        if row.subject is not None:
            line["subject_id"] = row.subject
        line.update(row.columns)
        self._lines.setdefault(place, []).append(json.dumps(line, ensure_ascii=False))
        self._labels.setdefault(place, Counter()).update(_counted(row.targets, schema=content))

    def _store(self, place: str, modality: str, row: NewRow) -> str:
        value = row.values[modality]
        if isinstance(value, str):
            return value
        name = f"{modality}/{row.name}{value.suffix}"
        path = self._folder / place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(value.content, bytes):
            path.write_bytes(value.content)
        else:
            _place_file(value.content, path, link=value.link)
        return name

    def finish(self, *, how_it_was_made: str) -> None:
        """Write manifests, card and README. `how_it_was_made` is Markdown for people."""
        for place, lines in self._lines.items():
            (self._folder / place).mkdir(parents=True, exist_ok=True)
            (self._folder / place / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        (self._folder / "dataset.toml").write_text(
            tomli_w.dumps(self.card.model_dump(mode="json", exclude_none=True)), encoding="utf-8"
        )
        (self._folder / "README.md").write_text(self._readme(how_it_was_made), encoding="utf-8")

    def rows(self, place: str) -> int:
        """How many rows a place under the folder (`sites/NAME`, `held-out/test`) has so far."""
        return len(self._lines.get(place, []))

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the sites that have rows."""
        return tuple(sorted(place.removeprefix("sites/") for place in self._lines if place.startswith("sites/")))

    def _readme(self, how_it_was_made: str) -> str:
        card, content = self.card, self.card.content
        labels = () if content.task in ("rating", "matching") else count_names(content)
        head = ["part", "rows", *(f"with {name}" for name in content.modalities), *labels]
        table = [head, ["---", *("---:" for _ in head[1:])]]
        for place in sorted(self._lines):
            present, counts = self._present[place], self._labels[place]
            numbers = [self.rows(place), *(present[name] for name in content.modalities), *(counts[k] for k in labels)]
            table.append([place, *map(str, numbers)])
        parts = [
            f"# {card.title}",
            "**These data are generated: a program drew them from a seed.**" if card.generated else "",
            f"- Licence: {card.licence}\n- Citation: {card.citation}\n- Source: {card.source}",
            "## How it was made",
            how_it_was_made.strip(),
            "## Rows",
            "\n".join(f"| {' | '.join(line)} |" for line in table),
        ]
        return "\n\n".join(part for part in parts if part) + "\n"


@contextmanager
def writing(target: Path, *, card: DataCard) -> Iterator[DatasetWriter]:
    """A writer whose folder becomes `target` when the block ends well, and vanishes when it does not.

    Raises:
        ConfigError: `target` exists and is not an empty folder.
    """
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise ConfigError(f"{target}: exists and is not an empty folder; remove it or give the path of a new one")
    building = target.parent / f".{target.name}.building-{uuid.uuid4().hex[:8]}"
    building.mkdir(parents=True)
    try:
        yield DatasetWriter(building, card=card)
        building.rename(target)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise


def built(target: Path, *, writer: DatasetWriter) -> BuiltDataset:
    """What a writer has put into `target`."""
    return BuiltDataset(
        folder=target,
        card=writer.card,
        site_rows={site: writer.rows(f"sites/{site}") for site in writer.sites},
        validation_rows=writer.rows(VALIDATION),
        test_rows=writer.rows(TEST),
    )


def _counted(targets: Mapping[str, object], *, schema: DataSchema) -> Iterator[str]:
    """The names of `count_names` that a row counts in."""
    prefix = schema.task == "several"
    for column, part in schema.parts.items():
        cell = targets.get(column)
        if cell is not None and part.rating_range is not None:
            yield column if prefix else "all"
        elif cell is not None:
            labels = cell if isinstance(cell, list) else [cell]
            yield from (f"{column}.{label}" if prefix else str(label) for label in labels)


def is_file_name(name: str) -> bool:
    """Whether a word can name a site's folder or a row's files: no separator, no leading dot, 64 characters at most."""
    return re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name) is not None


def _file_name(name: str, *, what: str) -> str:
    if not is_file_name(name):
        raise ConfigError(
            f"{what} {name!r} cannot name a file; allowed: a letter or digit, then up to 63 of letters, digits, . _ -"
        )
    return name


def _place_file(source: Path, path: Path, *, link: bool) -> None:
    if link:
        try:
            os.link(source.resolve(), path)
            return
        except OSError:  # another file system, or one without links
            pass
    shutil.copyfile(source, path)
