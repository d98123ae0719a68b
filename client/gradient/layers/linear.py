"""Linear layers: norms from inputs and output gradients, of which no product is formed where a unit has one position.

in        rows [N, ..., d] of K sites
out       outputs [N, ..., p], norms and sums
relies on base.py

Source: Goodfellow 2015, arXiv:1510.01799.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from client.gradient.layers.base import Rows, WatchedLayer, Weights, no_norms, squares_of, weighted

SMALLEST = 2.0**-126
"""of the squares that float32 keeps in full"""


class LinearLayer(WatchedLayer):
    """nn.Linear: [..., d] to [..., p]; a unit has S positions, its rows' and calls' together."""

    def __init__(self, module: nn.Module, *, weights: Weights, trained: frozenset[str], rows: Rows) -> None:
        super().__init__(module, weights=weights, trained=trained, rows=rows)
        self._calls: list[tuple[Tensor, Tensor]] = []
        self._formed: dict[str, Tensor] = {}
        """[K, U, n], where a unit has several positions"""
        self._positions = 0
        """of a row"""

    def forward(self, values: Tensor) -> Tensor:
        """Outputs [..., p]."""
        weight, bias = self.weights["weight"], self.weights.get("bias")
        self._positions += values.shape[1:-1].numel()
        if self.are_shared:
            return F.linear(values, weight[0], None if bias is None else bias[0])
        flat, turned = values.reshape(self.rows.sites, -1, values.shape[-1]), weight.transpose(1, 2)
        outputs = torch.bmm(flat, turned) if bias is None else torch.baddbmm(bias[:, None], flat, turned)
        return outputs.reshape(*values.shape[:-1], weight.shape[1])

    def num_formed(self, rows_per_unit: int) -> int:
        """As promised by WatchedLayer."""
        several = self._positions * rows_per_unit > 1
        return sum(self.weights[name][0].numel() for name in self.trained) if several else 0

    def input_gradient(self, values: Tensor, gradient: Tensor) -> Tensor:
        """Gradient [..., d]."""
        weight = self.weights["weight"]
        if self.are_shared:
            return gradient @ weight[0]
        return torch.bmm(gradient.reshape(self.rows.sites, -1, gradient.shape[-1]), weight).view_as(values)

    def note(self, values: Tensor, gradient: Tensor) -> None:
        """Inputs and output gradients as [K, U, S, d] and [K, U, S, p]."""
        shape = (self.rows.sites, self.rows.units, -1)
        positions = values.numel() // (self.rows.sites * self.rows.units * values.shape[-1])
        self._calls.append(
            (
                values.reshape(*shape[:2], positions, values.shape[-1]),
                gradient.reshape(*shape[:2], positions, gradient.shape[-1]),
            )
        )

    def square_norms(self) -> Float[Tensor, "K U"]:
        """As promised by WatchedLayer."""
        total = no_norms(self.rows, like=self.weights["weight"])
        if not self._calls:
            return total
        inputs, gradients = self._all()
        if inputs.shape[2] == 1:
            # an outer product's norm is the product of the norms: sums of squares, in which nothing cancels
            of_inputs, of_gradients = (squares_of(values[:, :, 0]) for values in (inputs, gradients))
            if "weight" in self.trained:
                # PRIVACY: float32 may lose squares below 2^-126, and the other factor may be 1e19.
                # test_tiny_numbers_times_huge_ones_count_towards_the_norm
                lost_of_inputs, lost_of_gradients = (values.shape[3] * SMALLEST for values in (inputs, gradients))
                total += (of_inputs + lost_of_inputs) * (of_gradients + lost_of_gradients)
            return total + of_gradients if "bias" in self.trained else total
        # Gram products, in float64 lest they cancel, take three to four times as long for the registry's shapes (32
        # positions of 32 by 96 numbers, 64 rows: 0.93 ms for 0.30), and three quarters for 512 by 512 numbers.
        # PRIVACY: what is measured here is what is summed; positions added up in another order would cancel to another
        # number. test_positions_that_cancel_are_summed_as_they_were_measured
        if "weight" in self.trained:
            self._formed["weight"] = torch.matmul(gradients.transpose(2, 3), inputs).flatten(2)
        if "bias" in self.trained:
            self._formed["bias"] = gradients.sum(dim=2)
        for formed in self._formed.values():
            total += squares_of(formed)
        return total

    def sum_into(
        self, into: Weights, *, factors: Float[Tensor, "K U"] | None = None, finite: Bool[Tensor, "K U"] | None = None
    ) -> None:
        """As promised by WatchedLayer."""
        if not self._calls:
            for name in self.trained:
                into[name].zero_()
            return
        if self._formed:
            for name, formed in self._formed.items():
                into[name].copy_(weighted(formed, factors=factors, finite=finite).view_as(into[name]))
            return
        inputs, gradients = self._all()
        if finite is not None:
            inputs, gradients = (values.masked_fill(~finite[:, :, None, None], 0) for values in (inputs, gradients))
        if factors is not None:
            gradients = gradients * factors[:, :, None, None].to(gradients.dtype)
        gradients = gradients.flatten(1, 2)
        if "weight" in self.trained:
            torch.bmm(gradients.transpose(1, 2), inputs.flatten(1, 2), out=into["weight"])
        if "bias" in self.trained:
            torch.sum(gradients, dim=1, out=into["bias"])

    def descend_into(self, into: Weights, *, start: Weights, rate: float) -> None:
        """As promised by WatchedLayer; the sums are never written down by themselves."""
        if not self._calls:
            super().descend_into(into, start=start, rate=rate)
            return
        inputs, gradients = self._all()
        gradients = gradients.flatten(1, 2)
        if "weight" in self.trained:
            turned = gradients.transpose(1, 2)
            torch.baddbmm(start["weight"], turned, inputs.flatten(1, 2), alpha=-rate, out=into["weight"])
        if "bias" in self.trained:
            torch.sub(start["bias"], gradients.sum(dim=1), alpha=rate, out=into["bias"])

    def _all(self) -> tuple[Tensor, Tensor]:
        """All calls' positions behind one another."""
        if len(self._calls) > 1:
            inputs, gradients = zip(*self._calls, strict=True)
            self._calls = [(torch.cat(inputs, dim=2), torch.cat(gradients, dim=2))]
        return self._calls[0]
