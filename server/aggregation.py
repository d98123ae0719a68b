"""Aggregation: the updates of one round, by parameter, become one step of the global model.

in        one update after the other, each with the parameters that this site trained, already checked by wire.py
out       one update, then new weights through the server optimiser
relies on every update being finite and of the model's shapes

A mean is a running sum, so that an update can be dropped as soon as it is added; median and trimmed mean compare all
updates and keep them to the end of the round.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float64
from torch import Tensor

from shared.config import FederationSettings, ServerOptimizerSettings
from shared.row import row_of_all

Weights = dict[str, Tensor]
Weight = float | Mapping[str, float]


@runtime_checkable
class Average(Protocol):
    """The updates of one round, taken one after the other."""

    def add(self, update: Weights, *, weight: Weight, row: Tensor | None = None) -> None:
        """Takes one site's update.

        Args:
            update: by parameter.
            weight: how much it counts in a mean, above 0; or how much each of its parameters does.
            row: all of the update one behind the other, where who calls has it.
        """

    def result(self) -> Weights:
        """One update, each parameter from the sites that trained it; a parameter nobody trained is not in it."""


def start_average(settings: FederationSettings) -> Average:
    """The average of a round that has just begun."""
    return RunningMean() if settings.aggregation == "mean" else RobustAverage(settings)


def aggregate(
    updates: Mapping[str, Weights], *, weights: Mapping[str, Weight], settings: FederationSettings
) -> Weights:
    """One update out of many, each parameter from the sites that trained it; a parameter nobody trained is not in it.

    Args:
        updates: site -> parameter name -> change.
        weights: site -> how much its update, or each parameter of it, counts in a mean, above 0; median and trimmed
            mean count sites alike.
        settings: which aggregation.
    """
    average = start_average(settings)
    # sorted by site: sums of floats depend on their order
    for site in sorted(updates):
        average.add(updates[site], weight=weights[site])
    return average.result()


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

    def add(self, update: Weights, *, weight: Weight, row: Tensor | None = None) -> None:
        """Adds an update to the sum of those with the same parameters."""
        names = tuple(update)
        if names not in self._rows:
            self._rows[names], self._weights[names] = RunningRow(update), 0.0
            self._dtypes |= {name: value.dtype for name, value in update.items()}
        sums = self._rows[names]
        # torch turns float32 into float64 on the way
        if isinstance(weight, Mapping):
            for name, total in sums.parts(sums.total).items():
                total.add_(update[name], alpha=weight[name])
                self._of_parameters[name] = self._of_parameters.get(name, 0.0) + weight[name]
            return
        sums.total.add_(row_of_all(list(update.values())) if row is None else row, alpha=weight)
        self._weights[names] += weight

    def result(self) -> Weights:
        """The sums over all forms of updates that hold a parameter, over their weights."""
        sums, weights = Weights(), dict(self._of_parameters)
        for names, row in self._rows.items():
            for name, part in row.parts(row.total).items():
                sums[name] = sums[name] + part if name in sums else part
                weights[name] = weights.get(name, 0.0) + self._weights[names]
        return {name: (value / weights[name]).to(self._dtypes[name]) for name, value in sums.items()}


class RobustAverage:
    """Coordinate-wise median or trimmed mean, which count sites alike; keeps every update until the round is over.

    Source: Yin et al. 2018, arXiv:1803.01498, definitions 1 and 2.
    """

    def __init__(self, settings: FederationSettings) -> None:
        self._settings = settings
        self._updates: list[Weights] = []

    def add(self, update: Weights, *, weight: Weight, row: Tensor | None = None) -> None:  # noqa: ARG002  as a mean
        """Keeps an update."""
        self._updates.append(update)

    def result(self) -> Weights:
        """Each number by itself, over the updates that hold it."""
        names = dict.fromkeys(name for update in self._updates for name in update)
        return {
            name: self._combine(torch.stack([update[name] for update in self._updates if name in update]))
            for name in names
        }

    def _combine(self, stacked: Tensor) -> Tensor:
        ordered = stacked.sort(dim=0).values
        if self._settings.aggregation == "median":
            # not torch.quantile, which takes 16 million numbers at the most
            middle = len(stacked) // 2
            return ordered[middle] if len(stacked) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
        cut = int(self._settings.trim_share * len(stacked))
        return ordered[cut : len(stacked) - cut].mean(dim=0)


@dataclass
class ServerOptimizer:
    """Applies average updates; keeps its moments between rounds.

    A parameter that no site trained in a round keeps its value and its moments.

    Source: Reddi et al. 2021, arXiv:2003.00295, algorithm 2, without bias correction as there; fedavgm: Hsu et al.
    2019, arXiv:1909.06335, section 4.
    """

    settings: ServerOptimizerSettings
    moments: Weights = field(default_factory=dict)
    """first moments under the parameter's name"""
    second_moments: Weights = field(default_factory=dict)

    def step(self, weights: Weights, *, update: Weights) -> Weights:
        """New weights; those given are not changed."""
        return {name: self._step(name, old, update[name]) if name in update else old for name, old in weights.items()}

    def _step(self, name: str, old: Tensor, change: Tensor) -> Tensor:
        rate, kind, beta = self.settings.learning_rate, self.settings.name, self.settings.momentum
        if kind == "fedavg":
            return old + rate * change
        moment = self.moments.get(name, torch.zeros_like(old))
        if kind == "fedavgm":
            self.moments[name] = beta * moment + change
            return old + rate * self.moments[name]
        self.moments[name] = beta * moment + (1 - beta) * change
        second = self.second_moments.get(name, torch.full_like(old, self.settings.adaptivity**2))
        self.second_moments[name] = self._second_moment(second, change.square())
        return old + rate * self.moments[name] / (self.second_moments[name].sqrt() + self.settings.adaptivity)

    def _second_moment(self, second: Tensor, square: Tensor) -> Tensor:
        beta = self.settings.second_momentum
        if self.settings.name == "fedadagrad":
            return second + square
        if self.settings.name == "fedyogi":
            return second - (1 - beta) * square * torch.sign(second - square)
        return beta * second + (1 - beta) * square
