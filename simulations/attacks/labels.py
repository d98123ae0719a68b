"""Wrong labels: a data set in which every answer of some sites is wrong, for attackers that train as they are asked.

in        a built data set and the names of its hostile sites
out       a data set of its own beside it; media files are hard-linked, the held-out parts are as they were
relies on missing.py for reading the parts of a data set, writer.py for the folder
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from shared.errors import ConfigError
from shared.schema import DataSchema, TaskSchema
from shared.targets import cells_of
from simulations.datasets.missing import card_of_source, kept_row, parts_of, rows_of
from simulations.datasets.writer import BuiltDataset, built, writing


def flip_labels(source: Path, target: Path, *, sites: Sequence[str]) -> BuiltDataset:
    """A data set in which every answer of these sites is wrong; the rest is the same rows with the same files.

    Raises:
        ConfigError: `source` has no card or no sites, its task has no answers, or `target` is taken.
        ManifestError: a folder of `source` has faults.
    """
    card = card_of_source(source)
    if not card.content.parts:
        raise ConfigError(f"{source}: a task of kind {card.content.task} has no labels; allowed: another attack.kind")
    read = {part: rows_of(folder, card.content) for part, folder in parts_of(source).items()}
    title = f"{card.title}; wrong labels at {len(sites)} sites"
    with writing(target, card=card.model_copy(update={"title": title})) as writer:
        for part, some in read.items():
            for number, (row, columns) in enumerate(some):
                kept = kept_row(row, number, schema=card.content, lost=(), columns=columns)
                if part in sites:
                    right = cells_of(row.target, schema=card.content)
                    kept = replace(kept, targets=wrong_cells(right, schema=card.content))
                writer.add(part, kept)
        writer.finish(how_it_was_made=f"From `{source.name}`, with a wrong answer in every row of: {', '.join(sites)}.")
    return built(target, writer=writer)


def wrong_cells(cells: dict[str, object], *, schema: DataSchema) -> dict[str, object]:
    """The next label in place of a label, all others in place of some, a rating mirrored in its range."""
    return {column: _wrong(cell, part=schema.parts[column]) for column, cell in cells.items()}


def _wrong(cell: object, *, part: TaskSchema) -> object:
    if part.rating_range is not None:
        return sum(part.rating_range) - float(str(cell))
    if isinstance(cell, list):
        return [label for label in part.labels if label not in cell]
    return part.labels[(part.labels.index(str(cell)) + 1) % len(part.labels)]
