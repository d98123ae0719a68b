"""Aggregation: the updates of one round, by parameter, become one step of the global model.

in        updates by site, each with the parameters that this site trained, already checked by wire.py
out       one update, then new weights through the server optimiser
relies on every update being finite and of the model's shapes
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from shared.config import FederationSettings, ServerOptimizerSettings

Weights = dict[str, Tensor]


def aggregate(updates: Mapping[str, Weights], *, weights: Mapping[str, float], settings: FederationSettings) -> Weights:
    """One update, each parameter from the sites that trained it; a parameter nobody trained is not in it.

    Args:
        updates: site -> parameter name -> change.
        weights: site -> how much its update counts in a mean, above 0; median and trimmed mean count sites alike.
        settings: which aggregation.

    Source: mean: McMahan et al. 2017, arXiv:1602.05629; coordinate-wise median and trimmed mean: Yin et al. 2018,
    arXiv:1803.01498, definitions 1 and 2.
    """
    names = dict.fromkeys(name for update in updates.values() for name in update)
    result: Weights = {}
    for name in names:
        # sorted by site: sums of floats depend on their order, and replies come in any order
        sites = sorted(site for site, update in updates.items() if name in update)
        stacked = torch.stack([updates[site][name] for site in sites])
        result[name] = _combine(stacked, weights=[weights[site] for site in sites], settings=settings)
    return result


def _combine(stacked: Tensor, *, weights: Sequence[float], settings: FederationSettings) -> Tensor:
    if settings.aggregation == "median":
        # not torch.quantile, which takes 16 million numbers at the most
        ordered, middle = stacked.sort(dim=0).values, len(stacked) // 2
        return ordered[middle] if len(stacked) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
    if settings.aggregation == "trimmed-mean":
        cut = int(settings.trim_share * len(stacked))
        return stacked.sort(dim=0).values[cut : len(stacked) - cut].mean(dim=0)
    shares = torch.tensor(weights, dtype=torch.float64)
    shares = (shares / shares.sum()).to(stacked.dtype)
    mean: Tensor = torch.tensordot(shares, stacked, dims=1)
    return mean


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
