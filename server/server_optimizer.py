"""Server optimiser: the average update of a round becomes a step of the global model.

in        the weights of a round and the average update from aggregation.py
out       new weights; moments that are kept from round to round
relies on an update holding only parameters that somebody trained
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from server.running_mean import Weights
from shared.config import ServerOptimizerSettings


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
