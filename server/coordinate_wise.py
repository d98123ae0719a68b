"""Coordinate-wise: median and trimmed mean, each number of the model by itself, over the sites that trained it.

in        one update after the other
out       one update
relies on every update being finite; keeps all of them until the round is over
"""

import numpy as np
import torch
from torch import Tensor

from server.records import AggregationNote
from server.running_mean import Weight, Weights
from shared.config import FederationSettings

_AT_ONCE = 2**22
"""numbers"""


class CoordinateWise:
    """Coordinate-wise median or trimmed mean, which count sites alike; keeps every update until the round is over.

    Source: Yin et al. 2018, arXiv:1803.01498, definitions 1 and 2.
    """

    def __init__(self, settings: FederationSettings) -> None:
        """Starts with no update."""
        self._settings = settings
        self._updates: list[Weights] = []

    def add(self, update: Weights, *, weight: Weight, row: Tensor | None = None, site: str = "") -> None:
        """Keeps an update."""
        del weight, row, site  # sites count alike
        self._updates.append(update)

    def result(self) -> Weights:
        """Each number by itself, over the updates that hold it."""
        names = dict.fromkeys(name for update in self._updates for name in update)
        return {name: self._of([update[name] for update in self._updates if name in update]) for name in names}

    def note(self) -> AggregationNote | None:
        """None: a site is left out of some numbers and not of others."""
        return None

    def _of(self, values: list[Tensor]) -> Tensor:
        """A few numbers of all sites at once: sorting all would take several times the memory of the updates."""
        made = torch.empty(values[0].shape, dtype=values[0].dtype)
        flat, numbers = [each.reshape(-1) for each in values], made.view(-1)
        columns = max(1, _AT_ONCE // len(flat))
        for start in range(0, len(numbers), columns):
            part = slice(start, start + columns)
            numbers[part] = self._combine(torch.stack([each[part] for each in flat]))
        return made

    def _combine(self, stacked: Tensor) -> Tensor:
        # numpy's: a sixth of the time of torch's, which also makes an index of 64 bits for every number
        ordered = torch.from_numpy(np.sort(stacked.numpy(force=True), axis=0))
        if self._settings.aggregation == "median":
            # not torch.quantile, which takes 16 million numbers at the most
            middle = len(stacked) // 2
            return ordered[middle] if len(stacked) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
        cut = int(self._settings.trim_share * len(stacked))
        return ordered[cut : len(stacked) - cut].mean(dim=0)
