"""Card: what a data folder says it holds: its dataset.toml, or failing that a guess from its columns.

in        a data folder
out       DataCard, or a DataSchema guessed for `motet check`
relies on table.py; a run never trains by a guess: its vocabulary comes from its own settings
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

from shared.clock import END, START, TIMED_KINDS
from shared.errors import ConfigError, Fault, ManifestError, MediaFault
from shared.findings import Findings
from shared.location import Locator
from shared.manifest import find_manifest
from shared.media import SUFFIXES, array_shape
from shared.schema import RESERVED_COLUMNS, DataCard, DataSchema, Kind, ModalitySchema
from shared.settings import parse_settings, read_toml
from shared.table import Record, read_table
from shared.targets import listed_labels

CARD_NAME = "dataset.toml"
PARENTS_SEARCHED = 3
_FILE_COLUMN = "_file_name"
_TEXT_NAMES = ("text", "sentence", "transcript", "caption", "utterance")
_MAX_GROUP_VALUES = 50


def find_card(folder: Path) -> DataCard | None:
    """The card of the data set that a folder belongs to: in the folder or up to three above it.

    Raises:
        ConfigError: there is a card, and it is not readable or not allowed.
    """
    return next((read_card(place) for place in card_places(folder) if place.is_file()), None)


def card_places(folder: Path) -> tuple[Path, ...]:
    """Where the card of a folder may lie; the first one that is there counts."""
    folder = folder.resolve()
    return tuple(place / CARD_NAME for place in (folder, *folder.parents[:PARENTS_SEARCHED]))


def read_card(path: Path) -> DataCard:
    """The card in a file.

    Raises:
        ConfigError: it is not readable or not allowed.
    """
    return parse_settings(DataCard, read_toml(path), place=str(path))


def infer_schema(folder: Path) -> DataSchema:
    """What the rows of a folder seem to be, from column names, file endings and the first array of each modality.

    Raises:
        ManifestError: the manifest is missing, empty or faulty, or the columns do not tell.
    """
    path = find_manifest(folder)
    findings = Findings(manifest=path, unit="row" if path.suffix == ".parquet" else "line")
    records = read_table(path, findings=findings)
    if not records and not findings:
        findings.add(0, field="rows", came="none", allowed="one or more")
    findings.raise_if_any()
    columns = _columns(records)
    modalities = dict(_file_modalities(columns, locator=Locator(folder)))
    groups, ignored = [], []
    timed = [name for name, modality in modalities.items() if modality.kind in TIMED_KINDS]
    times = {START, END, *(f"{name}_{START}" for name in timed)} if timed else set[str]()
    for column, cells in columns.items():
        if column in RESERVED_COLUMNS or column.endswith(_FILE_COLUMN) or column in times:
            continue
        if column in _TEXT_NAMES:
            modalities[column] = ModalitySchema(kind="text")
        elif len({str(cell) for cell in cells}) <= _MAX_GROUP_VALUES:
            groups.append(column)
        else:
            ignored.append(column)
    target = _target(columns)
    try:
        table = {"modalities": modalities, "groups": groups, "ignored": ignored, **target}
        return parse_settings(DataSchema, table, place=f"{folder.name}/{path.name}, as guessed from its columns")
    except ConfigError as error:
        allowed = f"columns that tell what they hold, or a {CARD_NAME} that says it"
        fault = Fault(place=path.name, field="columns", came=f"not clear ({error})", allowed=allowed)
        shown = f"{folder.name}/{path.name}"
        raise ManifestError(folder=str(folder), manifest=shown, num_rows=len(records), faults=(fault,)) from None


def _columns(records: Sequence[Record]) -> dict[str, list[object]]:
    """Column -> its values, absent ones left out."""
    columns: dict[str, list[object]] = {}
    for record in records:
        for column, cell in record.cells.items():
            values = columns.setdefault(column, [])
            if cell is not None and cell != "":
                values.append(cell)
    return columns


def _target(columns: dict[str, list[object]]) -> dict[str, object]:
    if labels := sorted({str(label) for label in columns.get("label", [])}):
        return {"task": "single-label", "labels": labels}
    many = [listed_labels(cell) for cell in columns.get("labels", [])]
    if any(each is not None for each in many):
        return {"task": "multi-label", "labels": sorted({label for each in many for label in each or ()})}
    ratings = [rating for cell in columns.get("rating", []) if (rating := _number(cell)) is not None]
    if not ratings or min(ratings) == max(ratings):
        return {"task": "rating"}
    return {"task": "rating", "rating_range": (min(ratings), max(ratings))}


def _number(cell: object) -> float | None:
    try:
        return float(cell) if isinstance(cell, int | float | str) else None
    except (ValueError, OverflowError):
        return None


def _file_modalities(columns: dict[str, list[object]], *, locator: Locator) -> Iterable[tuple[str, ModalitySchema]]:
    """Each modality whose values are files, where the ending of the first one tells its kind."""
    for column, cells in columns.items():
        if column != "file_name" and not column.endswith(_FILE_COLUMN):
            continue
        name = next((cell for cell in cells if isinstance(cell, str)), "")
        schema = _schema_of(name, locator=locator)
        if schema is not None:
            yield (schema.kind if column == "file_name" else column.removesuffix(_FILE_COLUMN)), schema


def _schema_of(name: str, *, locator: Locator) -> ModalitySchema | None:
    # a picture's ending first: what may be animated is a still one until dataset.toml says otherwise
    kinds: tuple[Kind, ...] = ("image", "audio", "video")
    kind: Kind | None = next((kind for kind in kinds if name.lower().endswith(SUFFIXES[kind])), None)
    if kind is not None:
        return ModalitySchema(kind=kind)
    if not name.lower().endswith(SUFFIXES["signal"]):
        return None
    try:
        shape = array_shape(locator.find(name))
    except MediaFault:
        return None
    if len(shape) == 1:
        return ModalitySchema(kind="features", width=shape[0])
    return ModalitySchema(kind="signal", channels=shape[1]) if shape[1] else None
