"""Batch: samples as tensors, and which modality each of them has.

in        tensors that dataset.py made from the rows of a folder
out       Samples (a whole folder) and Batch (some of its rows), read by model/ and the two trainers
relies on every row having at least one modality of the run (dataset.py turns the others away)
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Int
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """B samples. An absent modality's input is all zeros, never NaN: it is encoded like the others and masked after."""

    inputs: dict[str, Tensor]
    """modality -> [B, ...], one entry for each modality that these samples can have"""
    present: Bool[Tensor, "B M"]
    """columns in the order of RunConfig.modalities"""
    targets: Tensor
    """[B] class index (int64), [B] rating (float32) or [B, T] (float32), as targets.py has it"""

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def numbers_a_row(self) -> int:
        """How many numbers the inputs of one sample are; 0 where there is none."""
        return sum(values[0].numel() for values in self.inputs.values() if len(values))

    @property
    def input_bytes(self) -> int:
        """What the inputs take in memory, those that are blank included."""
        return sum(values.nbytes for values in self.inputs.values())

    def take(self, rows: Int[Tensor, "B"]) -> "Batch":
        """The named rows, in the order given; no rows give a batch of size 0."""
        return Batch(
            inputs={name: values[rows] for name, values in self.inputs.items()},
            present=self.present[rows],
            targets=self.targets[rows],
        )


@dataclass(frozen=True)
class Samples(Batch):
    """All usable rows of a folder, N of them."""

    subjects: tuple[str, ...]
    """who each row is about; the row's own number where the folder has no subject_id"""
    groups: dict[str, tuple[str, ...]]
    """group column -> its value in each row, "" where it has none"""

    @cached_property
    def rows_of_subjects(self) -> tuple[Tensor, ...]:
        """The rows of each subject, [n] int64, subjects in the order in which they first appear."""
        rows: dict[str, list[int]] = {}
        for row, subject in enumerate(self.subjects):
            rows.setdefault(subject, []).append(row)
        return tuple(torch.tensor(numbers) for numbers in rows.values())

    def subset(self, rows: Int[Tensor, "B"]) -> "Samples":
        """The named rows with what belongs to them."""
        batch, numbers = self.take(rows), [int(row) for row in rows]
        return Samples(
            inputs=batch.inputs,
            present=batch.present,
            targets=batch.targets,
            subjects=tuple(self.subjects[row] for row in numbers),
            groups={column: tuple(values[row] for row in numbers) for column, values in self.groups.items()},
        )


def only(batch: Batch, modalities: tuple[str, ...], *, of: tuple[str, ...]) -> tuple[Batch, Bool[Tensor, "B"]]:
    """The batch as if its samples had no other modality, and which samples still have one.

    Args:
        modalities: the names to keep.
        of: all names, in the order of `present`.
    """
    kept = torch.tensor([name in modalities for name in of])
    present = batch.present & kept
    return Batch(inputs=batch.inputs, present=present, targets=batch.targets), present.any(dim=1)
