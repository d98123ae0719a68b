"""Targets: what a row's manifest cells say the answer is, as numbers.

in        one record of a manifest, and the schema's tasks
out       the row's target; a finding for each cell that is no answer; which noisy counts a row is in
relies on schema.py for what may be asked

| task         | a row's target                                                                                |
| single-label | index into the labels                                                                         |
| rating       | the rating                                                                                    |
| multi-label  | 1 or 0 for each label                                                                         |
| several      | those of its tasks side by side, one number for a single label or a rating; NaN without answer |
| matching     | 0: what is asked is which values stand in one row                                             |
"""

import json
import math
import re
from collections.abc import Collection
from typing import TypeAlias

import torch
from jaxtyping import Float, Int64, Num
from torch import Tensor

from shared.findings import Findings, choices, shown
from shared.schema import DataSchema, TaskSchema
from shared.table import Record

Target: TypeAlias = int | float | tuple[float, ...]
_DECIMAL = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_SEPARATOR = "|"
"""between the labels of a row where the manifest has no lists"""


class TargetReader:
    """Judges the answers of one folder's rows."""

    def __init__(self, schema: DataSchema, *, findings: Findings, are_needed: bool = True) -> None:
        self._schema, self._findings, self._are_needed = schema, findings, are_needed
        self._parts = schema.parts
        self._indices = {
            column: {label: index for index, label in enumerate(part.labels)} for column, part in self._parts.items()
        }

    def read(self, record: Record) -> Target | None:
        """The row's target; None, and at least one fault noted, where it has none. 0 where no answers are needed."""
        if self._schema.task == "matching" or not self._are_needed:
            return 0
        if self._schema.task == "several":
            return self._several(record)
        ((column, part),) = self._parts.items()
        answer = self._answer(record, column=column, part=part)
        if answer is None and self._is_absent(record, column):
            self._note(record, column=column, part=part, came="absent")
        return answer

    def _several(self, record: Record) -> tuple[float, ...] | None:
        if all(self._is_absent(record, column) for column in self._parts):
            allowed = "an answer to at least one of them in every row"
            self._findings.add(record.line, field=", ".join(self._parts), came="all absent", allowed=allowed)
            return None
        numbers: list[float] = []
        for column, part in self._parts.items():
            answer = self._answer(record, column=column, part=part)
            if answer is None and not self._is_absent(record, column):
                return None
            if answer is None:
                numbers += [math.nan] * part.num_targets
            else:
                numbers += answer if isinstance(answer, tuple) else (float(answer),)
        return tuple(numbers)

    def _answer(self, record: Record, *, column: str, part: TaskSchema) -> Target | None:
        """The answer in a column; None where it is absent, or where it is none and a fault was noted."""
        if self._is_absent(record, column):
            return None
        cell = record.cells[column]
        if part.kind == "rating":
            return self._rating(record, column=column, part=part)
        if part.kind == "multi-label":
            return self._labels(record, column=column, part=part)
        index = self._indices[column].get(cell) if isinstance(cell, str) else None
        if index is None:
            self._note(record, column=column, part=part, came=shown(cell))
        return index

    def _rating(self, record: Record, *, column: str, part: TaskSchema) -> float | None:
        cell, (lowest, highest) = record.cells[column], part.rating_range or (0.0, 0.0)
        rating = math.nan
        if isinstance(cell, str):
            rating = float(cell) if _DECIMAL.fullmatch(cell.strip()) else math.nan
        elif isinstance(cell, int | float) and not isinstance(cell, bool):
            rating = float(cell) if lowest <= cell <= highest else math.nan
        if lowest <= rating <= highest:
            return rating
        self._note(record, column=column, part=part, came=shown(cell))
        return None

    def _labels(self, record: Record, *, column: str, part: TaskSchema) -> tuple[float, ...] | None:
        cell, indices = record.cells[column], self._indices[column]
        named = listed_labels(cell)
        if named is None or not all(label in indices for label in named):
            self._note(record, column=column, part=part, came=shown(cell))
            return None
        there = {indices[label] for label in named}
        return tuple(1.0 if index in there else 0.0 for index in range(len(part.labels)))

    @staticmethod
    def _is_absent(record: Record, column: str) -> bool:
        cell = record.cells.get(column)
        return cell is None or (isinstance(cell, str) and cell == "")

    def _note(self, record: Record, *, column: str, part: TaskSchema, came: str) -> None:
        if part.rating_range is not None:
            allowed = f"a number from {part.rating_range[0]} to {part.rating_range[1]}"
        else:
            allowed = choices(part.labels)
            if part.kind == "multi-label":
                allowed = f"a list of any of {allowed}, also an empty one; in CSV as a|b, or [] for none"
        self._findings.add(record.line, field=column, came=came, allowed=allowed)


def stacked_targets(targets: list[Target], *, schema: DataSchema) -> Tensor:
    """[N] int64 classes (matching: zeros), [N] float32 ratings, or [N, T] float32 where an answer is many numbers."""
    if schema.task in ("single-label", "matching"):
        return torch.tensor(targets, dtype=torch.int64)
    made = torch.tensor(targets, dtype=torch.float32)
    if schema.task == "rating":
        return made
    return made.reshape(len(targets), sum(part.num_targets for part in schema.parts.values()))


def cells_of(target: Target, *, schema: DataSchema) -> dict[str, object]:
    """Column -> cell, as a manifest would hold the target; columns without an answer are left out."""
    numbers, cells, place = target if isinstance(target, tuple) else (target,), dict[str, object](), 0
    for column, part in schema.parts.items():
        own = numbers[place : place + part.num_targets]
        place += part.num_targets
        if any(math.isnan(number) for number in own):
            continue
        if part.kind == "multi-label":
            cells[column] = [label for label, number in zip(part.labels, own, strict=True) if number]
        else:
            cells[column] = part.labels[int(own[0])] if part.labels else float(own[0])
    return cells


def count_names(schema: DataSchema) -> tuple[str, ...]:
    """What noisy counts are of: each label, `task.label` with several tasks; `all`, or the task, for a rating."""
    if schema.task == "matching":
        return ("all",)
    prefix = schema.task == "several"
    return tuple(
        name
        for column, part in schema.parts.items()
        for name in (
            [f"{column}.{label}" if prefix else label for label in part.labels] or [column if prefix else "all"]
        )
    )


def most_counts_of_a_row(schema: DataSchema) -> int:
    """In how many of the counts one row can be: in every one of a multi-label task, in one of any other task."""
    return max(1, sum(part.num_targets for part in schema.parts.values()))


def counts_of_rows(
    targets: Num[Tensor, "N *T"], *, schema: DataSchema
) -> tuple[Int64[Tensor, "E"], Int64[Tensor, "E"]]:
    """The rows and the counts that they are in, as pairs: numbers of rows, and places in `count_names`."""
    rows, counts, first, column = [], [], 0, 0
    table = targets[:, None] if targets.ndim == 1 else targets
    if schema.task == "matching":
        return torch.arange(len(targets)), torch.zeros(len(targets), dtype=torch.int64)
    for part in schema.parts.values():
        own = table[:, column : column + part.num_targets]
        column += part.num_targets
        if part.kind == "multi-label":
            there, place = (own == 1).nonzero(as_tuple=True)
        else:
            there = (~own[:, 0].isnan()).nonzero()[:, 0]
            place = own[there, 0].long() if part.labels else torch.zeros_like(there)
        rows.append(there)
        counts.append(place + first)
        first += len(part.labels) or 1
    return torch.cat(rows), torch.cat(counts)


def listed_labels(cell: object) -> list[str] | None:
    """The labels that a cell names, of a list or of a text as CSV has it: `["a"]`, `a|b`; None for anything else."""
    named = cell
    if isinstance(cell, str):
        named = [label.strip() for label in cell.split(_SEPARATOR)]
        if cell.startswith("["):
            try:
                named = json.loads(cell)
            except (ValueError, RecursionError):
                return None
    if not isinstance(named, list) or not all(isinstance(label, str) for label in named):
        return None
    return named


def answers_to(tasks: Collection[str], targets: Float[Tensor, "N T"], *, schema: DataSchema) -> Float[Tensor, "N T"]:
    """The targets of several tasks with the answers to all others left out."""
    other = [name not in tasks for name, part in schema.parts.items() for _ in range(part.num_targets)]
    return targets.masked_fill(torch.tensor(other), math.nan)
