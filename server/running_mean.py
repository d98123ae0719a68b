"""Running mean: updates added up as they come, each dropped as soon as it is added.

in        one update after the other, each with the parameters that this site trained
out       their weighted mean, by parameter
relies on every update being finite and of the model's shapes

What any other rule has in common with it stands here too: `Weights`, and `Average`, what intake.py asks of a rule.
"""

from collections.abc import Mapping
from functools import cached_property
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float64
from torch import Tensor

from server.records import AggregationNote
from shared.row import row_of_all

Weights = dict[str, Tensor]
Weight = float | Mapping[str, float]


@runtime_checkable
class Average(Protocol):
    """The updates of one round, taken one after the other."""

    def add(self, update: Weights, *, weight: Weight, row: Tensor | None = None, site: str = "") -> None:
        """Takes one site's update.

        Args:
            update: by parameter.
            weight: how much it counts in a mean, above 0; or how much each of its parameters does.
            row: all of the update one behind the other, where who calls has it.
            site: whose; rules that compare updates go by names where two are equally good.
        """

    def result(self) -> Weights:
        """One update, each parameter from the sites that trained it; a parameter nobody trained is not in it."""

    def note(self) -> AggregationNote | None:
        """After `result`: whose updates the rule left out or made smaller; None where it does neither."""


class RunningRow:
    """Updates of one form as a running float64 sum of rows."""

    def __init__(self, like: Weights) -> None:
        """Starts at zero, for updates of these parameters in this order."""
        self._shapes = {name: value.shape for name, value in like.items()}
        self._sizes = [value.numel() for value in like.values()]
        self.total = torch.zeros(sum(self._sizes), dtype=torch.float64)

    def exact(self, update: Weights, *, row: Tensor | None = None) -> Float64[Tensor, "P"]:
        """An update as a row; the same memory at every call."""
        return self._exact.copy_(row_of_all(list(update.values())) if row is None else row)

    @cached_property
    def _exact(self) -> Float64[Tensor, "P"]:
        """A second row, where somebody asks for it."""
        return torch.zeros_like(self.total)

    def parts(self, row: Float64[Tensor, "P"]) -> Weights:
        """Views of a row as the parameters that lie in it."""
        split = zip(self._shapes.items(), torch.split(row, self._sizes), strict=True)
        return {name: part.view(shape) for (name, shape), part in split}


class RunningMean:
    """Weighted mean; its memory does not grow with the number of sites.

    Source: McMahan et al. 2017, arXiv:1602.05629.
    """

    def __init__(self) -> None:
        self._rows: dict[tuple[str, ...], RunningRow] = {}
        self._weights: dict[tuple[str, ...], float] = {}
        """of updates that were counted as a whole"""
        self._of_parameters: dict[str, float] = {}
        """of those that were counted by parameter"""
        self._dtypes: dict[str, torch.dtype] = {}

    def add(
        self, update: Weights, *, weight: Weight, row: Tensor | None = None, site: str = "", scale: float = 1.0
    ) -> None:
        """Adds an update, times `scale`, to the sum of those with the same parameters."""
        del site  # one site is as good as any other
        names = tuple(update)
        if names not in self._rows:
            self._rows[names], self._weights[names] = RunningRow(update), 0.0
            self._dtypes |= {name: value.dtype for name, value in update.items()}
        sums = self._rows[names]
        # torch turns float32 into float64 on the way
        if isinstance(weight, Mapping):
            for name, total in sums.parts(sums.total).items():
                total.add_(update[name], alpha=scale * weight[name])
                self._of_parameters[name] = self._of_parameters.get(name, 0.0) + weight[name]
            return
        sums.total.add_(row_of_all(list(update.values())) if row is None else row, alpha=scale * weight)
        self._weights[names] += weight

    def note(self) -> AggregationNote | None:
        """None: every update counted."""
        return None

    def result(self) -> Weights:
        """The sums over all forms of updates that hold a parameter, over their weights."""
        sums, weights = Weights(), dict(self._of_parameters)
        for names, row in self._rows.items():
            for name, part in row.parts(row.total).items():
                sums[name] = sums[name] + part if name in sums else part
                weights[name] = weights.get(name, 0.0) + self._weights[names]
        return {name: (value / weights[name]).to(self._dtypes[name]) for name, value in sums.items()}
