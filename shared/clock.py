"""Clock: the columns of a manifest that say when a row's recordings were taken, and which seconds the row is about.

in        the cells of one row
out       Clock, in seconds on any one clock; preprocess/align.py cuts by it
relies on the schema for which columns these are: a name that it gives another meaning is no clock column

| <modality>_start_s | when the first sample or frame of the file was taken; 0 if absent; audio, video and signal only |
| start_s, end_s     | the seconds that the row is about                                                               |
"""

import math
from dataclasses import dataclass, field

from shared.findings import Findings, shown
from shared.schema import RESERVED_COLUMNS, DataSchema, Kind
from shared.table import Record

TIMED_KINDS: tuple[Kind, ...] = ("audio", "video", "signal")
START, END = "start_s", "end_s"
MOST_S = 1e11
"""some three thousand years: times since any usual beginning fit, and keep their tenth of a millisecond"""


@dataclass(frozen=True, slots=True)
class Clock:
    """When the files of one row were taken, and what of that time it is about."""

    starts_s: dict[str, float] = field(default_factory=dict)
    """modality -> time of its first sample; those that the row does not say are at 0"""
    start_s: float | None = None
    end_s: float | None = None


def timed_modalities(schema: DataSchema) -> tuple[str, ...]:
    """Modalities whose values have a length in time."""
    return tuple(name for name, modality in schema.modalities.items() if modality.kind in TIMED_KINDS)


def clock_columns(schema: DataSchema) -> dict[str, str | None]:
    """Column -> the modality that it is about; None: the row."""
    timed = timed_modalities(schema)
    if not timed:
        return {}
    taken = {*RESERVED_COLUMNS, *schema.parts, *schema.groups, *schema.ignored}
    taken |= {schema.column(name) for name in schema.modalities}
    columns: dict[str, str | None] = {START: None, END: None, **{f"{name}_{START}": name for name in timed}}
    return {column: of for column, of in columns.items() if column not in taken}


def read_clock(record: Record, *, columns: dict[str, str | None], findings: Findings) -> Clock:
    """The times of a row; what is wrong with them is noted."""
    times: dict[str, float] = {}
    for column in columns.keys() & record.cells.keys():
        cell = record.cells[column]
        if cell is None or cell == "":
            continue
        time_s = _number(cell)
        if time_s is None or not abs(time_s) <= MOST_S:
            allowed = f"seconds as a number from -{MOST_S:.0e} to {MOST_S:.0e}, or nothing"
            findings.add(record.line, field=column, came=shown(cell), allowed=allowed)
        else:
            times[column] = time_s
    start, end = times.pop(START, None), times.pop(END, None)
    if start is not None and end is not None and end <= start:
        findings.add(record.line, field=END, came=f"{end:g}", allowed=f"later than {START}, which is {start:g}")
    return Clock(starts_s={str(columns[column]): time for column, time in times.items()}, start_s=start, end_s=end)


def _number(cell: object) -> float | None:
    if isinstance(cell, bool) or not isinstance(cell, int | float | str):
        return None
    try:
        time_s = float(cell)
    except (ValueError, OverflowError):
        return None
    return time_s if math.isfinite(time_s) else None
