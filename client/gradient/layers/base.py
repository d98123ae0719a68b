"""Base: what every watched layer gives, and layers whose per-unit gradients are formed.

in        K*R rows, site by site, through one layer whose weights [K, *shape] every site has of its own
out       outputs; after the backward pass squared norms [K, U] of each unit's gradient, and weighted sums [K, *shape]
relies on shared/privacy/mechanism.py for norms of many numbers
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from shared.privacy.mechanism import PIECE, sample_norms

MOST_PARTS = 64
"""equal parts that many numbers are normed in; where there are none, sample_norms takes what it finds"""
Weights = Mapping[str, Tensor]
"""the layer's own name of a parameter ("weight", "bias") -> [K, *shape]"""


@dataclass(frozen=True)
class Rows:
    """How the rows of a batch belong together: row ((k * units) + u) * rows_per_unit + r is of unit u of site k."""

    sites: int
    units: int
    rows_per_unit: int = 1

    @property
    def per_site(self) -> int:
        """Rows of each site."""
        return self.units * self.rows_per_unit


class WatchedLayer(ABC):
    """One layer during one pass over a batch."""

    def __init__(self, module: nn.Module, *, weights: Weights, trained: frozenset[str], rows: Rows) -> None:
        """Takes the layer's weights, [K, *shape] each; gradients are made of the `trained` ones only."""
        self.module, self.weights, self.trained, self.rows = module, weights, trained, rows
        self.keeps_units = True
        """whether units are told apart; where only plain sums are asked for, they need not be"""
        self.passed = 0
        """numbers that went in and came out, of all rows together"""
        self.narrow: torch.dtype | None = None
        """what the inputs are rounded to first; None where they stay"""
        self.is_taken = False
        """whether the weights were handed out, to be used beside the layer's own calls"""
        self.are_shared = rows.sites == 1 or all(each.stride(0) == 0 for each in weights.values())
        """whether all sites have the same weights, as they do at a round's first step: computed as for one site"""

    @property
    def is_unnoted(self) -> bool:
        """Whether weights were handed out, and no call of the layer followed that says what became of them."""
        return self.is_taken and not self.passed

    def enter(self, values: Tensor) -> Tensor:
        """What of the layer has no weights and comes first; autograd follows it by itself."""
        return values

    def entered(self, values: Tensor) -> Tensor:
        """The inputs as the part with weights wants them; kept for the backward pass."""
        return values

    @abstractmethod
    def forward(self, values: Tensor) -> Tensor:
        """Outputs of the part with weights."""

    def backward(self, values: Tensor, gradient: Tensor, *, asked: bool) -> Tensor | None:
        """Notes a call; gradient of its inputs where that is asked."""
        # PRIVACY: norms and sums of numbers that were rounded to bfloat16 are not rounded once more.
        # test_in_bf16_a_unit_still_moves_the_sum_by_at_most_the_clip_norm
        self.note(_widened(values), _widened(gradient))
        return self.input_gradient(values, gradient) if asked else None

    @abstractmethod
    def input_gradient(self, values: Tensor, gradient: Tensor) -> Tensor:
        """Gradient of the inputs, from that of the outputs."""

    @abstractmethod
    def note(self, values: Tensor, gradient: Tensor) -> None:
        """Keeps what a call of the layer says of its weights; a layer may be called several times in a pass."""

    def num_formed(self, rows_per_unit: int) -> int:
        """How many numbers of each unit's gradient are formed, for units of so many rows; after a forward pass."""
        del rows_per_unit
        return 0

    @abstractmethod
    def square_norms(self) -> Float[Tensor, "K U"]:
        """Squared L2 norm of each unit's gradient over the trained parameters, float64; after all calls."""

    @abstractmethod
    def sum_into(
        self, into: Weights, *, factors: Float[Tensor, "K U"] | None = None, finite: Bool[Tensor, "K U"] | None = None
    ) -> None:
        """Writes the sum over each site's units of factor times gradient; without factors, of the gradients themselves.

        Args:
            into: parameter -> [K, *shape] to write to, of the trained ones.
            factors: of each unit.
            finite: given where some unit's gradient is not: nothing of such a unit enters, for zero times NaN is NaN.
        """

    def descend_into(self, into: Weights, *, start: Weights, rate: float) -> None:
        """Writes `start` minus `rate` times the sum over each site's units: a step of plain gradient descent.

        Args:
            into: parameter -> [K, *shape] to write to, of the trained ones; may be the very memory of `start`.
            start: the weights before the step.
        """
        sums = {name: torch.empty_like(into[name]) for name in self.trained}
        self.sum_into(sums)
        for name, value in sums.items():
            torch.sub(start[name], value, alpha=rate, out=into[name])


class FormedLayer(WatchedLayer):
    """A layer whose per-unit gradients are formed: each parameter's as [K, U, n]."""

    def __init__(self, module: nn.Module, *, weights: Weights, trained: frozenset[str], rows: Rows) -> None:
        super().__init__(module, weights=weights, trained=trained, rows=rows)
        self._formed: dict[str, Tensor] = {}

    def num_formed(self, rows_per_unit: int) -> int:
        """All of them."""
        del rows_per_unit
        return sum(self.weights[name][0].numel() for name in self.trained)

    def _add(self, name: str, gradients: Tensor) -> None:
        if name in self._formed:
            self._formed[name] += gradients
        else:
            self._formed[name] = gradients

    def square_norms(self) -> Float[Tensor, "K U"]:
        """As promised by WatchedLayer."""
        squares = [squares_of(gradients) for gradients in self._formed.values()]
        if not squares:
            return no_norms(self.rows, like=next(iter(self.weights.values())))
        return torch.stack(squares).sum(dim=0) if len(squares) > 1 else squares[0]

    def sum_into(
        self, into: Weights, *, factors: Float[Tensor, "K U"] | None = None, finite: Bool[Tensor, "K U"] | None = None
    ) -> None:
        """As promised by WatchedLayer."""
        for name in self.trained:
            if name in self._formed:
                self._write(name, self._formed[name], into=into[name], factors=factors, finite=finite)
            else:
                into[name].zero_()

    def _write(self, name: str, formed: Tensor, *, into: Tensor, factors: Tensor | None, finite: Tensor | None) -> None:
        """Sums as the parameter has them, where a layer forms them in another order."""
        del name
        write_weighted(formed, into=into, factors=factors, finite=finite)


def _widened(values: Tensor) -> Tensor:
    return values.float() if values.dtype == torch.bfloat16 else values


def no_norms(rows: Rows, *, like: Tensor) -> Float[Tensor, "K U"]:
    """Zeros, where norms are added up."""
    return torch.zeros(rows.sites, rows.units, dtype=torch.float64, device=like.device)


def squares_of(gradients: Float[Tensor, "K U n"]) -> Float[Tensor, "K U"]:
    """Squared L2 norm of each unit's numbers, float64, in memory of its own; see sample_norms for why in pieces."""
    length = gradients.shape[2]
    # PRIVACY: float32 is short over many numbers. test_norms_of_millions_of_numbers_are_not_cut_short
    parts = -(-length // PIECE)
    while parts <= MOST_PARTS and length % max(1, parts):
        parts += 1
    if parts > MOST_PARTS:
        return sample_norms({"": gradients.flatten(0, 1)}).square().view(gradients.shape[:2])
    if parts <= 1:
        norms: Tensor = torch.linalg.vector_norm(gradients, dim=2)
        return norms.double().square_()
    pieces: Tensor = torch.linalg.vector_norm(gradients.reshape(*gradients.shape[:2], parts, -1), dim=3)
    return pieces.double().square_().sum(dim=2)


def weighted(gradients: Tensor, *, factors: Tensor | None, finite: Tensor | None) -> Float[Tensor, "K n"]:
    """Gradients [K, U, n] times their factors, summed over U."""
    into = torch.empty(len(gradients), gradients.shape[2], dtype=gradients.dtype, device=gradients.device)
    write_weighted(gradients, into=into, factors=factors, finite=finite)
    return into


def write_weighted(gradients: Tensor, *, into: Tensor, factors: Tensor | None, finite: Tensor | None) -> None:
    """Writes gradients [K, U, n] times their factors, summed over U, to [K, *shape] of n numbers a site."""
    if finite is not None:
        gradients = gradients.masked_fill(~finite[:, :, None], 0.0)
    flat = into.view(len(gradients), -1)
    if factors is None:
        torch.sum(gradients, dim=1, out=flat)
    else:
        torch.bmm(factors.unsqueeze(1).to(gradients.dtype), gradients, out=flat.unsqueeze(1))
