"""Coordinate-wise: median and trimmed mean, each number of the model by itself, over the sites that trained it.

in        one update after the other
out       one update
relies on every update being finite; keeps all of them until the round is over
"""

import torch
from torch import Tensor

from server.records import AggregationNote
from server.running_mean import Weight, Weights
from shared.config import FederationSettings


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
        return {
            name: self._combine(torch.stack([update[name] for update in self._updates if name in update]))
            for name in names
        }

    def note(self) -> AggregationNote | None:
        """None: a site is left out of some numbers and not of others."""
        return None

    def _combine(self, stacked: Tensor) -> Tensor:
        ordered = stacked.sort(dim=0).values
        if self._settings.aggregation == "median":
            # not torch.quantile, which takes 16 million numbers at the most
            middle = len(stacked) // 2
            return ordered[middle] if len(stacked) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
        cut = int(self._settings.trim_share * len(stacked))
        return ordered[cut : len(stacked) - cut].mean(dim=0)
