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

from client.gradient.layers.base import Rows, WatchedLayer, Weights, no_norms, squares_of, write_weighted

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

    def take_weights(self) -> Tensor:
        """[K, p, d], for what computes with them apart and calls the layer on the same positions afterwards."""
        self.is_taken = True
        return self.weights["weight"]

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
        if not self._calls:
            return no_norms(self.rows, like=self.weights["weight"])
        inputs, gradients = self._all()
        if inputs.shape[2] == 1:
            of_gradients = squares_of(gradients.squeeze(2))
            if "weight" not in self.trained:
                return of_gradients
            # an outer product's norm is the product of the norms: sums of squares, in which nothing cancels
            of_inputs = squares_of(inputs.squeeze(2))
            # PRIVACY: float32 may lose squares below 2^-126, and the other factor may be 1e19.
            # test_tiny_numbers_times_huge_ones_count_towards_the_norm
            lost_of_inputs, lost_of_gradients = (values.shape[3] * SMALLEST for values in (inputs, gradients))
            # a bias is the weight of one more input, which is always 1
            of_bias = 1.0 if "bias" in self.trained else 0.0
            return of_inputs.add_(lost_of_inputs + of_bias).mul_(of_gradients.add_(lost_of_gradients))
        # Gram products, in float64 lest they cancel, take three to four times as long for the registry's shapes (32
        # positions of 32 by 96 numbers, 64 rows: 0.93 ms for 0.30), and three quarters for 512 by 512 numbers.
        # PRIVACY: what is measured here is what is summed; positions added up in another order would cancel to another
        # number. test_positions_that_cancel_are_summed_as_they_were_measured
        if "weight" in self.trained:
            turned = gradients.flatten(0, 1).transpose(1, 2)
            self._formed["weight"] = torch.bmm(turned, inputs.flatten(0, 1)).view(self.rows.sites, self.rows.units, -1)
        if "bias" in self.trained:
            self._formed["bias"] = gradients.sum(dim=2)
        weight, *bias = [squares_of(formed) for formed in self._formed.values()]
        return weight.add_(bias[0]) if bias else weight

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
                write_weighted(formed, into=into[name], factors=factors, finite=finite)
            return
        inputs, gradients = (values.flatten(1, 2) for values in self._all())
        if finite is not None:
            inputs, gradients = (values.masked_fill(~finite[:, :, None], 0) for values in (inputs, gradients))
        if factors is not None:
            gradients = gradients * factors.unsqueeze(2).to(gradients.dtype)
        if "weight" in self.trained:
            torch.bmm(gradients.transpose(1, 2), inputs, out=into["weight"])
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
