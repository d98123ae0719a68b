"""Norm bound: every update is made no longer than a bound before it is averaged.

in        one update after the other
out       the mean of what is left of them; which were longer
relies on every update being finite (wire.py); with a bound of the round's own, keeps all of them until it is over

Source: Sun et al. 2019, arXiv:1911.07963, section 3, "norm thresholding of updates". Ours differs: the bound may be the
round's own median norm, as that of a good update falls while a model learns; and sites count alike, because a size is
a site's own word.

What one site can do: with a fixed bound, the mean of a parameter moves by at most bound over the number of sites that
trained it. A norm says nothing about a direction: hostile sites within the bound are averaged as all others.
"""

import math
from statistics import median

import torch
from torch import Tensor

from server.records import AggregationNote
from server.running_mean import RunningMean, Weight, Weights


class FixedNormBound:
    """Mean of updates cut to a norm that was set before the run; drops each as soon as it is added."""

    def __init__(self, bound: float) -> None:
        """Starts with no update.

        Args:
            bound: largest L2 norm of a whole update, over all that the site trains jointly, above 0.
        """
        self._bound, self._mean, self._longer = bound, RunningMean(), list[str]()

    def add(self, update: Weights, *, weight: Weight, row: Tensor | None = None, site: str = "") -> None:
        """Cuts an update and adds it; all count alike, whatever `weight` says."""
        del weight
        self.add_of_norm(update, norm=norm_of(update), row=row, site=site)

    def add_of_norm(self, update: Weights, *, norm: float, row: Tensor | None = None, site: str) -> None:
        """The same for an update whose norm is known."""
        if norm > self._bound:
            self._longer.append(site)
        # a factor in the float64 sum: what is within the bound is added as it came, bit for bit
        scale = 1.0 if norm <= self._bound else self._bound / norm
        self._mean.add(update, weight=1.0, row=row, site=site, scale=scale)

    def result(self) -> Weights:
        """Their mean, each parameter over the sites that trained it."""
        return self._mean.result()

    def note(self) -> AggregationNote | None:
        """The bound, and whose updates were longer."""
        return AggregationNote(scaled_down=tuple(sorted(self._longer)), norm_bound=self._bound)


class MedianNormBound:
    """Mean of updates cut to a factor times the round's median norm, which is known when all are there.

    While fewer than half of the sites are hostile, the median lies between norms of sites that are not.
    """

    def __init__(self, factor: float) -> None:
        """Starts with no update.

        Args:
            factor: of the median norm, above 0.
        """
        self._factor, self._kept = factor, list[tuple[str, Weights, float]]()
        self._note: AggregationNote | None = None

    def add(self, update: Weights, *, weight: Weight, row: Tensor | None = None, site: str = "") -> None:
        """Keeps an update."""
        del weight, row
        self._kept.append((site, update, norm_of(update)))

    def result(self) -> Weights:
        """Their mean, each parameter over the sites that trained it."""
        bound = self._factor * median(norm for _, _, norm in self._kept)
        cut = FixedNormBound(bound)
        for site, update, norm in self._kept:
            cut.add_of_norm(update, norm=norm, site=site)
        self._note = cut.note()
        return cut.result()

    def note(self) -> AggregationNote | None:
        """The bound of the round, and whose updates were longer."""
        return self._note


def norm_of(update: Weights) -> float:
    """L2 norm of a whole update, in float64: no square of a float32 number is lost or infinite there."""
    return math.sqrt(sum(float(torch.linalg.vector_norm(value, dtype=torch.float64)) ** 2 for value in update.values()))
