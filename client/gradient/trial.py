"""Trial: one row and then two go through a model's watched layers, before any batch does.

in        a model's layers with trained parameters, a batch whose first row's shapes are looked at
out       how many numbers the layers hold of a row and of a unit
relies on shapes alone: what the rows say decides nothing
"""

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn

from client.gradient.engine import SampleModel
from client.gradient.layers import Rows, WatchedLayer
from client.gradient.watching import put_on
from shared.batch import Batch


@dataclass(frozen=True)
class Tried:
    """What was tried out: trained parameters, and the shapes of a row, which the run's preprocessing sets."""

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]
    rows_per_unit: int


@dataclass(frozen=True)
class Held:
    """How many numbers the watched layers hold."""

    values: int
    """of a row: inputs and outputs"""
    formed: int
    """of a unit: gradients that are formed"""


_SEEN: "weakref.WeakKeyDictionary[nn.Module, dict[Tried, Held]]" = weakref.WeakKeyDictionary()
"""what the layers of a model hold of a row; that they take samples for rows was seen then"""


def held_by(model: nn.Module, batch: Batch, *, tried: Tried, layers_for: Callable[[Rows], list[WatchedLayer]]) -> Held:
    """What the model's layers hold, once they are known to take samples for rows; looked at once a model.

    Args:
        layers_for: watched layers of a single site for so many rows.

    Raises:
        ModelError: some layer's rows are not samples.
    """
    seen = _SEEN.setdefault(model, {})
    if tried not in seen:
        seen[tried] = _try_rows(model, batch, rows_per_unit=tried.rows_per_unit, layers_for=layers_for)
    return seen[tried]


@torch.no_grad()
def _try_rows(
    model: nn.Module, batch: Batch, *, rows_per_unit: int, layers_for: Callable[[Rows], list[WatchedLayer]]
) -> Held:
    """The model's layers see one row, then two."""
    # PRIVACY: else a layer that takes time for rows would pass whenever the batch has as many rows as there are
    # times. test_rows_that_are_not_samples_are_refused
    for num in (1, 2):
        few = batch.take(torch.zeros(num, dtype=torch.int64, device=batch.present.device))
        layers = layers_for(Rows(1, num))
        with put_on(layers, torch.zeros((), device=batch.present.device)):
            cast("SampleModel", model)(few.inputs, few.present)
    return Held(
        values=sum(layer.passed for layer in layers) // num,
        formed=sum(layer.num_formed(rows_per_unit * layer.rows.rows_per_unit) for layer in layers),
    )
