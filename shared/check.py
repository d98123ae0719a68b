"""Check: everything about a data folder that its owner should know before a run, for the owner's screen alone.

in        a data folder
out       FolderSummary and the table of it that `motet check` prints; or one ManifestError with every fault
relies on manifest.py and media/: every file is decoded, none is kept

Counts of labels and subjects are private: nothing here is ever sent, logged or written to a file.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from shared.card import find_card, infer_schema
from shared.errors import Fault, ManifestError, MediaFault
from shared.findings import Findings
from shared.manifest import MANIFEST_NAMES, Manifest, scan_manifest
from shared.media import Originals, decode, read_file
from shared.schema import DataSchema
from shared.targets import cells_of, count_names, counts_of_rows, stacked_targets

if TYPE_CHECKING:
    from rich.console import RenderableType

STAYS_HERE = "This table stays on this screen. Nothing of it is sent to anybody."


@dataclass(frozen=True)
class RatingSummary:
    """Mean, lowest and highest rating."""

    mean: float
    lowest: float
    highest: float


@dataclass(frozen=True)
class FolderSummary:
    """What a sound folder holds."""

    folder: Path
    manifest: str
    schema: DataSchema
    is_inferred: bool
    """the schema was guessed from the columns; a run brings its own"""
    num_rows: int
    modalities: dict[str, int]
    """modality -> rows that have it"""
    labels: dict[str, int]
    """label (`task.label` with several) -> rows, those that no row has included; empty for a rating task"""
    ratings: dict[str, RatingSummary]
    """column -> what its ratings are; empty where there are none"""
    answers: dict[str, int]
    """several tasks: task -> rows that have an answer to it"""
    num_subjects: int | None
    """None where rows name no subject"""
    groups: dict[str, dict[str, int]]
    """group column -> value -> rows; rows without one are not counted"""
    num_pairs: int | None = None
    """matching: rows that have both of a pair; None for any other task"""
    subjects: frozenset[str] = frozenset()
    """whom rows name, for check_together.py"""
    items: frozenset[str] = frozenset()
    """matching: what rows show, where a group column tells"""


def check_folder(folder: Path, *, schema: DataSchema | None) -> FolderSummary:
    """Every row and every file of a folder, found sound.

    Args:
        folder: with one manifest.
        schema: what its rows must be; None: what its dataset.toml says, or what its columns seem to hold.

    Raises:
        ManifestError: with every fault.
        ConfigError: its dataset.toml is not allowed.
    """
    card = find_card(folder) if schema is None else None
    is_inferred = schema is None and card is None
    if schema is None:
        schema = infer_schema(folder) if card is None else card.content
    manifest, findings = scan_manifest(folder, schema=schema)
    _look_into_files(manifest, schema=schema, findings=findings)
    findings.raise_if_any()
    return _summary(manifest, schema=schema, is_inferred=is_inferred)


def data_folders(root: Path) -> tuple[Path, ...]:
    """The folders with a manifest: the root itself, or those up to two levels below it, as `sites/*` and `held-out/*`.

    Raises:
        ManifestError: there is none.
    """
    if _has_manifest(root):
        return (root,)
    below = [path for pattern in ("*", "*/*") for path in root.glob(pattern) if path.is_dir() and _has_manifest(path)]
    if not below:
        allowed = f"a folder with {', '.join(MANIFEST_NAMES)}, or one that holds such folders"
        fault = Fault(place=str(root), field="manifest", came="missing", allowed=allowed)
        raise ManifestError(folder=str(root), manifest=root.name, num_rows=0, faults=(fault,))
    return tuple(sorted(below))


def render_summary(summary: FolderSummary, *, root: Path | None = None) -> "RenderableType":
    """The summary as a table for the owner's terminal.

    Args:
        summary: of one folder.
        root: the data set that it is part of: the folder is named by its path from there.
    """
    from rich.markup import escape
    from rich.table import Table

    caption = STAYS_HERE
    if summary.is_inferred:
        caption += "\nLabels and columns are guessed, as there is no dataset.toml; a run brings its own."
    if summary.num_pairs == 0:
        caption += (
            f"\nNo row has both {' and '.join(summary.schema.pair or ())}: a site with this folder would send noise "
            "alone and pay for it. Put what belongs together into one row."
        )
    name = named(summary.folder, root=root)
    table = Table(title=escape(f"{name}/{summary.manifest}"), caption=caption, min_width=60)
    table.add_column("what")
    table.add_column("rows", justify="right")
    table.add_row("rows", str(summary.num_rows))
    table.add_row("faults", "0", end_section=True)
    for modality, count in summary.modalities.items():
        table.add_row(f"{modality} ({summary.schema.modalities[modality].kind})", str(count))
    if summary.num_pairs is not None:
        table.add_row(" and ".join(summary.schema.pair or ()), str(summary.num_pairs))
    table.add_section()
    for task, count in summary.answers.items():
        table.add_row(escape(f"task {task}"), str(count))
    for label, count in summary.labels.items():
        table.add_row(escape(f"label {label}"), str(count))
    for column, rating in summary.ratings.items():
        told = f"{rating.mean:.3g} ({rating.lowest:g} to {rating.highest:g})"
        table.add_row(escape(f"{column}: mean (lowest to highest)"), told)
    subjects = "none named" if summary.num_subjects is None else str(summary.num_subjects)
    table.add_row("subjects", subjects, end_section=True)
    for column, counts in summary.groups.items():
        for value, count in counts.items():
            table.add_row(escape(f"{column} {value}"), str(count))
    return table


def named(folder: Path, *, root: Path | None) -> str:
    """A folder by its path from the data set that it is part of, or by its own name."""
    is_inside = root is not None and root != folder and folder.is_relative_to(root)
    return folder.relative_to(root).as_posix() if root is not None and is_inside else folder.name


def fault_text(error: ManifestError, *, folder: Path, root: Path | None) -> str:
    """The faults of a folder, which is named as a sound one is: by its path from the data set that it is part of."""
    name = named(folder, root=root)
    return str(error).replace(error.manifest, f"{name}{error.manifest.removeprefix(folder.name)}", 1)


def _has_manifest(folder: Path) -> bool:
    return any((folder / name).exists() for name in MANIFEST_NAMES)


def _look_into_files(manifest: Manifest, *, schema: DataSchema, findings: Findings) -> None:
    folder = manifest.path.parent.resolve()
    originals = {modality: Originals(unit=findings.unit) for modality in schema.modalities}
    for row in manifest.rows:
        for modality, path in row.values.items():
            if not isinstance(path, Path):
                continue
            kind = schema.modalities[modality].kind
            try:
                data, _ = read_file(path)
                decode(data, path=path, schema=schema.modalities[modality])
                if kind != "features":
                    originals[modality].check(hashlib.sha256(data).digest(), line=row.line, subject=row.subject)
            except MediaFault as fault:
                field, file = f"{modality}.{fault.field}", path.relative_to(folder).as_posix()
                findings.add(row.line, field=field, came=fault.came, allowed=fault.allowed, file=file)


def _summary(manifest: Manifest, *, schema: DataSchema, is_inferred: bool) -> FolderSummary:
    rows = manifest.rows
    targets = stacked_targets([row.target for row in rows], schema=schema)
    counts = torch.bincount(counts_of_rows(targets, schema=schema)[1], minlength=len(count_names(schema))).tolist()
    cells = [cells_of(row.target, schema=schema) for row in rows]
    ratings = {
        column: [rating for cell in cells if isinstance(rating := cell.get(column), float)]
        for column, part in schema.parts.items()
        if part.rating_range is not None
    }
    subjects = {row.subject for row in rows}
    item = schema.item if schema.item in schema.groups else None
    return FolderSummary(
        folder=manifest.path.parent,
        manifest=manifest.path.name,
        schema=schema,
        is_inferred=is_inferred,
        num_rows=len(rows),
        modalities={name: sum(name in row.values for row in rows) for name in schema.modalities},
        labels={
            name: count
            for name, count in zip(count_names(schema), counts, strict=True)
            if schema.task not in ("rating", "matching") and name not in ratings
        },
        ratings={column: _rating(values) for column, values in ratings.items() if values},
        answers={column: sum(column in cell for cell in cells) for column in schema.tasks},
        num_subjects=None if None in subjects else len(subjects),
        groups={
            column: _sorted_counts(row.groups[column] for row in rows if column in row.groups)
            for column in schema.groups
        },
        num_pairs=None if schema.pair is None else sum(set(schema.pair) <= row.values.keys() for row in rows),
        subjects=frozenset(row.subject for row in rows if row.subject is not None),
        items=frozenset(row.groups[item] for row in rows if item in row.groups) if item is not None else frozenset(),
    )


def _rating(values: list[float]) -> RatingSummary:
    return RatingSummary(sum(values) / len(values), min(values), max(values))


def _sorted_counts(words: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(words).items()))
