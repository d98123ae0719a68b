"""Split: one folder of data becomes many sites and a held-out part.

in        any folder with a manifest, and its card if it has one
out       a data set folder; media files are hard-linked where the file system allows it, copied elsewhere
relies on manifest.py for sound rows, partition.py for who gets which, writer.py for the folder
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from shared.card import find_card, infer_schema
from shared.errors import ConfigError
from shared.manifest import Row, read_manifest
from shared.schema import DataCard, DataSchema
from shared.targets import cells_of
from simulations.datasets.missing import By, kept_row, lost_modalities
from simulations.datasets.writer import TEST, VALIDATION, BuiltDataset, built, is_file_name, writing
from simulations.partition import Rows, column_shards, dirichlet_shards, even_shards

How = Literal["even", "dirichlet", "column"]


def split_folder(
    source: Path,
    target: Path,
    *,
    how: How,
    sites: int | None = None,
    alpha: float | None = None,
    column: str | None = None,
    remove: Mapping[str, float] | None = None,
    remove_from: Literal["rows", "sites"] = "rows",
    held_out_share: float = 0.2,
    seed: int = 0,
) -> BuiltDataset:
    """Part a folder over sites; every row lands in exactly one place.

    Columns that the schema ignores are not carried over, but for the one that decides.

    Args:
        how: `even` (sizes differ by one at most), `dirichlet` (label skew, needs `alpha`), `column` (rows with the same
            value of `column` stay together).
        sites: how many; with `column` one for each value, if not set.
        column: a group column, an ignored column, `subject_id`, `label` or one of several tasks with single labels;
            with `dirichlet` and several tasks, the task whose labels are dealt out.
        remove: modality -> share of the site rows (of the sites, under `remove_from`) with it that lose it. A row never
            loses the last one it has, which is drawn if all would go. The held-out part loses nothing.
        held_out_share: of the subjects, or of the rows where there are none; half of it for validation, half for the
            test. 0 for none.

    Raises:
        ManifestError: the folder has faults.
        ConfigError: an option does not fit the folder, or `target` is taken.
    """
    card = _card(source, how=how, column=column)
    rows = read_manifest(source, schema=card.content).rows
    removed = _checked(remove or {}, schema=card.content)
    generator = np.random.default_rng([seed, 7])
    validation, test, rest = _held_out(rows, share=held_out_share, generator=generator)
    shards = _shards(rows, rest, card.content, how=how, sites=sites, alpha=alpha, column=column, generator=generator)
    by: By = "site" if remove_from == "sites" else "row"
    lost = lost_modalities(rows, shards=list(shards.values()), shares=removed, by=by, generator=generator)
    with writing(target, card=card) as writer:
        for part, members in ((VALIDATION, validation), (TEST, test), *shards.items()):
            for number in members:
                gone = lost.get(int(number), set())
                writer.add(part, kept_row(rows[number], int(number), schema=card.content, lost=gone))
        losses = "; ".join(f"{name}: {share:.0%} of the {remove_from}" for name, share in removed.items()) or "none"
        writer.finish(
            how_it_was_made=_STORY.format(
                name=source.resolve().name,
                how=how + (f", alpha {alpha}" if how == "dirichlet" else f", `{column}`" if how == "column" else ""),
                share=f"{held_out_share:.0%}",
                losses=losses,
                seed=seed,
            )
        )
    return built(target, writer=writer)


def _card(source: Path, *, how: How, column: str | None) -> DataCard:
    card = find_card(source)
    if card is None:
        unknown = "not stated: the folder had no dataset.toml; ask whoever the data came from"
        card = DataCard(
            title=source.resolve().name,
            generated=False,
            licence=unknown,
            citation=unknown,
            source=source.resolve().name,
            content=infer_schema(source),
        )
    content = card.content
    if how == "column" and column in content.ignored:
        content = content.model_copy(update={"groups": (*content.groups, column)})
    left = tuple(name for name in content.ignored if name not in content.groups)
    return card.model_copy(
        update={"title": f"{card.title}, split over sites", "content": content.model_copy(update={"ignored": left})}
    )


def _checked(remove: Mapping[str, float], *, schema: DataSchema) -> dict[str, float]:
    for name, share in remove.items():
        if name not in schema.modalities or not 0 <= share <= 1:
            raise ConfigError(f"remove: {name} = {share}; allowed: a share of 0 to 1 of {', '.join(schema.modalities)}")
    return dict(remove)


def _held_out(
    rows: Sequence[Row], *, share: float, generator: np.random.Generator
) -> tuple[list[int], list[int], list[int]]:
    """Row numbers of the validation part, the test part and the rest; nobody is in two of them."""
    if not 0 <= share < 1:
        raise ConfigError(f"held_out_share is {share}; allowed: 0 to below 1")
    subjects = [str(number) if row.subject is None else f"subject {row.subject}" for number, row in enumerate(rows)]
    names = list(dict.fromkeys(subjects))
    order = [names[int(index)] for index in generator.permutation(len(names))]
    kept = round(share * len(order))
    if share > 0 and not 2 <= kept < len(order):
        raise ConfigError(
            f"held_out_share is {share} of {len(order)} subjects (rows, where there are no subjects); allowed: 0, or a "
            "share that gives two or more and leaves some"
        )
    where = {name: place < kept // 2 for place, name in enumerate(order[:kept])}
    numbers = range(len(rows))
    return (
        [number for number in numbers if where.get(subjects[number]) is True],
        [number for number in numbers if where.get(subjects[number]) is False],
        [number for number in numbers if subjects[number] not in where],
    )


def _shards(
    rows: Sequence[Row],
    rest: list[int],
    schema: DataSchema,
    *,
    how: How,
    sites: int | None,
    alpha: float | None,
    column: str | None,
    generator: np.random.Generator,
) -> dict[str, list[int]]:
    """Site name -> numbers of its rows."""
    takes_column = how == "column" or (how == "dirichlet" and schema.task == "several")
    if (alpha is not None) != (how == "dirichlet") or (column is not None) != takes_column:
        raise ConfigError(
            f"how is {how!r}; allowed: alpha with 'dirichlet' and only there, column with 'column', and with "
            "'dirichlet' where there are several tasks"
        )
    if how == "column":
        values = [_column_value(rows[number], schema, column=column or "") for number in rest]
        names = sorted(set(values))
        parts = column_shards(values, shards=sites or len(names))
        is_named = len(parts) == len(names) and all(is_file_name(name) for name in names)
        if is_named:
            return {values[int(part[0])]: [rest[int(row)] for row in part] for part in parts}
        return _numbered(parts, rest)
    if sites is None:
        raise ConfigError(f"sites: needed with how {how!r}")
    if how == "even":
        return _numbered(even_shards(len(rest), shards=sites, generator=generator), rest)
    labels = _classes([rows[number] for number in rest], schema, column=column or "label")
    return _numbered(dirichlet_shards(labels, shards=sites, alpha=alpha or 0.0, generator=generator, min_rows=1), rest)


def _classes(rows: Sequence[Row], schema: DataSchema, *, column: str) -> np.ndarray:
    """The class of each row; rows without an answer, of several tasks, are one class more."""
    part = schema.parts.get(column)
    if part is None or part.kind != "single-label":
        tasks = [name for name, other in schema.tasks.items() if other.kind == "single-label"]
        raise ConfigError(
            f"how is 'dirichlet', which deals out classes; {column!r} has no single label; allowed: even, column"
            + (f", or dirichlet with column {' or '.join(tasks)}" if tasks else "")
        )
    cells = [cells_of(row.target, schema=schema).get(column) for row in rows]
    return np.array([part.labels.index(str(cell)) if cell is not None else len(part.labels) for cell in cells])


def _numbered(parts: tuple[Rows, ...], rest: list[int]) -> dict[str, list[int]]:
    width = max(2, len(str(len(parts))))
    return {f"site-{n:0{width}d}": [rest[int(row)] for row in part] for n, part in enumerate(parts, start=1)}


def _column_value(row: Row, schema: DataSchema, *, column: str) -> str:
    answers = [name for name, part in schema.parts.items() if part.kind == "single-label"]
    if column not in (*schema.groups, "subject_id", *answers):
        raise ConfigError(f"column is {column!r}; allowed: {', '.join((*schema.groups, 'subject_id', *answers))}")
    value = row.subject if column == "subject_id" else row.groups.get(column)
    if column in answers:
        cell = cells_of(row.target, schema=schema).get(column)
        value = None if cell is None else str(cell)
    if value is None:
        raise ConfigError(f"column {column!r}: row {row.line} has none; allowed: a value in every row")
    return value


_STORY = """
Parted from the folder `{name}`. How: {how}. Held out: {share} of the subjects (of the rows where there are no
subjects), half for validation and half for the test; nobody held out is at a site. Modalities taken away at the sites:
{losses}; a row keeps the last one it has. Seed {seed}.
"""
