"""Embeddings: a unit's gradient is the rows of the tokens it has, and is never made dense.

in        token numbers [N, ...] of K sites
out       rows of their tables [N, ..., D], norms and sums
relies on base.py

Source: Li et al. 2022, arXiv:2110.05679, section 4.1. Ours differs: gradients of a token that comes several times are
added up first, so that the cost is that of the tokens and not of their square.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from client.gradient.layers.base import Rows, WatchedLayer, Weights, no_norms, squares_of, weighted


class EmbeddingLayer(WatchedLayer):
    """nn.Embedding: no unit's dense gradient is ever made, only the rows of the tokens it has."""

    module: nn.Embedding

    def __init__(self, module: nn.Module, *, weights: Weights, trained: frozenset[str], rows: Rows) -> None:
        super().__init__(module, weights=weights, trained=trained, rows=rows)
        self._calls: list[tuple[Tensor, Tensor]] = []
        self._by_token: tuple[Tensor, Tensor] | None = None
        """of each unit the tokens it has, [K, U, S], and the gradients of their rows, [K, U, S, D]; zeros where some
        come several times and fewer than S are left"""

    def forward(self, values: Tensor) -> Tensor:
        """Rows of the tables [..., D]."""
        table = self.weights["weight"]
        if self.are_shared:
            return F.embedding(values, table[0])
        site = torch.arange(self.rows.sites, device=values.device)[:, None]
        return table[site, values.reshape(self.rows.sites, -1)].reshape(*values.shape, table.shape[2])

    def input_gradient(self, values: Tensor, gradient: Tensor) -> Tensor:
        """Never asked: token numbers have no gradient."""
        raise AssertionError(f"token numbers {values.dtype} were asked for a gradient {list(gradient.shape)}")

    def note(self, values: Tensor, gradient: Tensor) -> None:
        """Tokens and output gradients."""
        if self.module.padding_idx is not None:
            gradient = gradient.masked_fill((values == self.module.padding_idx)[..., None], 0.0)
        units = self.rows.sites * self.rows.units
        self._calls.append((values.reshape(units, -1), gradient.reshape(units, -1, gradient.shape[-1])))

    def square_norms(self) -> Float[Tensor, "K U"]:
        """As promised by WatchedLayer."""
        if not self._calls:
            return no_norms(self.rows, like=self.weights["weight"])
        return squares_of(self._rows_by_token()[1].flatten(2))

    def sum_into(
        self, into: Weights, *, factors: Float[Tensor, "K U"] | None = None, finite: Bool[Tensor, "K U"] | None = None
    ) -> None:
        """As promised by WatchedLayer."""
        table = into["weight"]
        if not self._calls:
            table.zero_()
            return
        tokens, rows = self._rows_by_token()
        if tokens.stride(1) == 0:
            # all units have the same tokens, as of places: their rows meet before the table does
            summed = weighted(rows.flatten(2), factors=factors, finite=finite)
            tokens, rows = tokens[:, 0], summed.view(self.rows.sites, -1, table.shape[2])
        else:
            if finite is not None:
                rows = rows.masked_fill(~finite[:, :, None, None], 0.0)
            if factors is not None:
                rows = rows * factors[:, :, None, None].to(rows.dtype)
            tokens, rows = tokens.flatten(1), rows.flatten(1, 2)
        if self.rows.sites == 1:
            table[0].zero_().index_add_(0, tokens[0], rows[0])
            return
        first = torch.arange(self.rows.sites, device=tokens.device)[:, None] * table.shape[1]
        total = rows.new_zeros(self.rows.sites * table.shape[1], table.shape[2])
        total.index_add_(0, (first + tokens).flatten(), rows.flatten(0, 1))
        table.copy_(total.view_as(table))

    def _rows_by_token(self) -> tuple[Tensor, Tensor]:
        if self._by_token is None:
            calls = zip(*self._calls, strict=True)
            tokens, gradients = (torch.cat(each, dim=1) if len(each) > 1 else each[0] for each in calls)
            # tokens that were spread over the units, as numbers of places are, are looked at once
            found, rows = _added_up(tokens[:1] if tokens.stride(0) == 0 else tokens, gradients)
            shape = (self.rows.sites, self.rows.units, tokens.shape[1])
            self._by_token = (found.expand(*tokens.shape).view(shape), rows.view(*shape, rows.shape[2]))
        return self._by_token


def _added_up(tokens: Int[Tensor, "_ S"], gradients: Float[Tensor, "N S D"]) -> tuple[Tensor, Tensor]:
    """Each token of a unit once with the sum of its gradients; in places that are left over token 0 and zeros.

    Args:
        tokens: of each unit, or of all units alike.
    """
    num_units, length = gradients.shape[:2]
    if length < 2:
        return tokens, gradients
    ordered, order = tokens.sort(dim=1)
    nth = torch.zeros_like(ordered)
    torch.cumsum(ordered[:, 1:] != ordered[:, :-1], dim=1, out=nth[:, 1:])
    if bool((nth[:, -1] == length - 1).all()):
        return tokens, gradients
    place = torch.empty_like(order).scatter_(1, order, nth)
    found = torch.zeros_like(ordered).scatter_(1, place, tokens)
    first = torch.arange(0, num_units * length, length, device=tokens.device)[:, None]
    rows = gradients.new_zeros(num_units * length, gradients.shape[2])
    rows.index_add_(0, (first + place).flatten(), gradients.flatten(0, 1))
    return found, rows.view_as(gradients)
