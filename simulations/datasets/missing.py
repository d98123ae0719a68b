"""Missing: a data set from whose sites a share of the modalities is taken away.

in        a built data set, a share, and whether whole sites or single rows lose them
out       a data set of its own beside it; media files are hard-linked, and the held-out parts are as they were
relies on manifest.py for sound rows, writer.py for the folder; split.py and scenario.py call what is here
"""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from shared.clock import clock_columns
from shared.errors import ConfigError
from shared.findings import Findings
from shared.manifest import Row, find_manifest, read_manifest
from shared.schema import DataCard, DataSchema
from shared.settings import parse_settings, read_toml
from shared.table import read_table
from shared.targets import cells_of
from simulations.datasets.writer import (
    PUBLIC,
    TEST,
    VALIDATION,
    BuiltDataset,
    File,
    NewRow,
    built,
    writing,
)

By = Literal["site", "row"]


def lost_modalities(
    rows: Sequence[Row],
    *,
    shards: Sequence[Sequence[int]],
    shares: Mapping[str, float],
    by: By,
    generator: np.random.Generator,
    needed: Collection[str] = (),
) -> dict[int, set[str]]:
    """Row number -> modalities it loses; never the last it has of those `needed`, which is drawn when all would go.

    With generators in the same state a larger share takes what a smaller one takes, but for those last ones.

    Args:
        rows: of all sites.
        shards: the numbers of each site's rows.
        shares: modality -> share, 0 to 1, of the sites (or rows) with it that lose it, to the nearest whole number.
        by: a site loses a modality in all its rows, or every row by itself.
        needed: modalities one of which a row keeps, such as those that a model takes; any, if none are named.

    Source: FedMultimodal, Feng et al. 2023, arXiv:2306.09486, and its code (`simulate_missing_modality`): one draw for
    each site and modality. Ours differs: the number that lose it is fixed, because a coin for each of eight sites often
    takes nothing; and nobody loses all, where theirs trains on zeros.
    """
    taken: dict[int, set[str]] = {}
    units = [list(shard) for shard in shards] if by == "site" else [[number] for shard in shards for number in shard]
    for name, share in shares.items():
        having = [unit for unit in units if any(name in rows[number].values for number in unit)]
        for index in generator.permutation(len(having))[: round(share * len(having))]:
            for number in having[int(index)]:
                if name in rows[number].values:
                    taken.setdefault(number, set()).add(name)
    order = generator.random((len(units), len(shares)))
    names = np.array(list(shares))
    for unit, numbers in enumerate(units):
        for number in numbers:
            had = {name for name in rows[number].values if name in needed or not needed}
            if had and had <= taken.get(number, set()):
                taken[number].discard(next(str(name) for name in names[np.argsort(order[unit])] if name in had))
    return {number: names_lost for number, names_lost in taken.items() if names_lost}


def kept_row(
    row: Row, number: int, *, schema: DataSchema, lost: Collection[str], columns: Mapping[str, object] | None = None
) -> NewRow:
    """A row as it is written anew, without what it loses; `columns` are those beside its groups."""
    values = {
        name: File(value.suffix.lower(), value, link=True) if isinstance(value, Path) else value
        for name, value in row.values.items()
        if name not in lost
    }
    return NewRow(
        f"{number:06d}",
        values,
        targets=cells_of(row.target, schema=schema),
        subject=row.subject,
        columns={**row.groups, **(columns or {})},
    )


def take_away(
    source: Path,
    target: Path,
    *,
    share: float,
    by: By = "site",
    names: Collection[str] = (),
    needed: Collection[str] = (),
    seed: int = 0,
) -> BuiltDataset:
    """A data set whose sites lack more; what is held out or public is the same rows with the same files.

    Args:
        source: a data set folder with a dataset.toml.
        share: of the sites (rows) that have a modality, the part that loses it; each modality by itself.
        names: the modalities concerned; all, if none are named.
        needed: those one of which a row keeps; any, if none are named.

    Raises:
        ConfigError: `source` has no card or no sites, a name or the share is not allowed, or `target` is taken.
        ManifestError: a folder of `source` has faults.
    """
    card = card_of_source(source)
    chosen = _chosen(card.content, share=share, names=names)
    read = {part: rows_of(folder, card.content) for part, folder in parts_of(source).items()}
    sites = [part for part in read if part not in (VALIDATION, TEST, PUBLIC)]
    rows = [row for part in sites for row, _ in read[part]]
    starts: dict[str, int] = {}
    for part in sites:
        starts[part] = sum(len(read[other]) for other in starts)
    shards = [list(range(start, start + len(read[part]))) for part, start in starts.items()]
    shares = dict.fromkeys(chosen, share)
    generator = np.random.default_rng([seed, 11])
    lost = lost_modalities(rows, shards=shards, shares=shares, by=by, generator=generator, needed=needed)
    title = f"{card.title}; {share:.0%} of the modalities taken away by {by}"
    with writing(target, card=card.model_copy(update={"title": title})) as writer:
        for part, some in read.items():
            for number, (row, columns) in enumerate(some):
                gone = lost.get(starts[part] + number, set()) if part in starts else set[str]()
                writer.add(part, _without(row, columns, number, schema=card.content, lost=gone))
        writer.finish(how_it_was_made=_story(source, rows, lost, chosen=chosen, share=share, by=by, seed=seed))
    return built(target, writer=writer)


def digest_of_source(source: Path) -> str:
    """Changes with the names, sizes and times of the files of a data set; the files are not read."""
    digest = hashlib.sha256()
    for path in sorted(source.rglob("*")):
        if path.is_file():
            stat = path.stat()
            digest.update(f"{path.relative_to(source)}\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode())
    return digest.hexdigest()


def card_of_source(source: Path) -> DataCard:
    """The card of a data set that has sites.

    Raises:
        ConfigError: it has no card, or no sites.
    """
    path = source / "dataset.toml"
    if not path.is_file() or not (source / "sites").is_dir():
        raise ConfigError(f"{source}: a data set is made from another with dataset.toml and sites/ in it only")
    return parse_settings(DataCard, read_toml(path), place=str(path))


def _chosen(schema: DataSchema, *, share: float, names: Collection[str]) -> list[str]:
    unknown = sorted(set(names) - set(schema.modalities))
    if unknown or not 0 <= share <= 1:
        raise ConfigError(
            f"missing is {share} of {', '.join(names) or 'all'}; allowed: a share of 0 to 1 of "
            + ", ".join(schema.modalities)
        )
    return [name for name in schema.modalities if name in names or not names]


def parts_of(source: Path) -> dict[str, Path]:
    """Part, as the writer names it -> its folder."""
    fixed = {part: source / part for part in (VALIDATION, TEST, PUBLIC) if (source / part).is_dir()}
    return fixed | {folder.name: folder for folder in sorted((source / "sites").iterdir()) if folder.is_dir()}


def rows_of(folder: Path, schema: DataSchema) -> list[tuple[Row, dict[str, object]]]:
    """The rows of a folder, each with its cells in ignored columns and those of times."""
    manifest = read_manifest(folder, schema=schema)
    path = find_manifest(folder)
    records = read_table(path, findings=Findings(manifest=path, unit="row"))
    more = {*schema.ignored, *clock_columns(schema)}
    kept = [
        {name: cell for name, cell in record.cells.items() if name in more and cell is not None} for record in records
    ]
    return list(zip(manifest.rows, kept, strict=True))


def _without(
    row: Row, columns: Mapping[str, object], number: int, *, schema: DataSchema, lost: Collection[str]
) -> NewRow:
    clock = clock_columns(schema)
    kept = {name: cell for name, cell in columns.items() if clock.get(name) not in lost}
    return kept_row(row, number, schema=schema, lost=lost, columns=kept)


def _story(
    source: Path,
    rows: Sequence[Row],
    lost: Mapping[int, Collection[str]],
    *,
    chosen: Sequence[str],
    share: float,
    by: By,
    seed: int,
) -> str:
    lines = []
    for name in chosen:
        had = sum(name in row.values for row in rows)
        gone = sum(name in names for names in lost.values())
        lines.append(f"- `{name}`: {gone} of the {had} rows at sites that had it ({gone / max(had, 1):.1%})")
    return _STORY.format(name=source.name, share=f"{share:.0%}", by=by, seed=seed, lines="\n".join(lines))


_STORY = """
From the data set `{name}`: of the {by}s that have a modality, {share} were drawn to lose it, each modality by itself.
A row that would lose all keeps one, which is drawn too (by site: for the whole site). The held-out parts, and a
public one, lose nothing. Seed {seed}. Taken away:

{lines}
"""
