"""Embeddings: a unit's gradient is the rows of the tokens it has, and is never made dense.

in        token numbers [N, ...] of K sites
out       rows of their tables [N, ..., D], norms and sums
relies on base.py

Source: Li et al. 2022, arXiv:2110.05679, section 4.1. Ours differs: gradients of a token that comes several times are
added up first, so that the cost is that of the tokens and not of their square.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from client.gradient.layers.base import Rows, WatchedLayer, Weights, no_norms


class EmbeddingLayer(WatchedLayer):
    """nn.Embedding: no unit's dense gradient is ever made, only the rows of the tokens it has."""

    module: nn.Embedding

    def __init__(self, module: nn.Module, *, weights: Weights, trained: frozenset[str], rows: Rows) -> None:
        super().__init__(module, weights=weights, trained=trained, rows=rows)
        self._calls: list[tuple[Tensor, Tensor]] = []
        self._by_token: tuple[Tensor, Tensor] | None = None
        """(unit * V + token) of each token a unit has, and the gradient of its row, [T, D]"""

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
        total = no_norms(self.rows, like=self.weights["weight"])
        if not self._calls:
            return total
        keys, rows = self._rows_by_token()
        squares = torch.linalg.vector_norm(rows, dim=1).double().square()
        units = total.view(-1).index_add(0, keys // self.weights["weight"].shape[1], squares)
        return units.view_as(total)

    def sum_into(
        self, into: Weights, *, factors: Float[Tensor, "K U"] | None = None, finite: Bool[Tensor, "K U"] | None = None
    ) -> None:
        """As promised by WatchedLayer."""
        if not self._calls:
            into["weight"].zero_()
            return
        keys, rows = self._rows_by_token()
        num_tokens = self.weights["weight"].shape[1]
        unit = keys // num_tokens
        if finite is not None:
            rows = rows.masked_fill(~finite.reshape(-1)[unit][:, None], 0.0)
        if factors is not None:
            rows = rows * factors.reshape(-1)[unit][:, None].to(rows.dtype)
        place = unit // self.rows.units * num_tokens + keys % num_tokens
        total = rows.new_zeros(self.rows.sites * num_tokens, rows.shape[1]).index_add_(0, place, rows)
        into["weight"].copy_(total.view_as(into["weight"]))

    def _rows_by_token(self) -> tuple[Tensor, Tensor]:
        if self._by_token is None:
            tokens = torch.cat([values for values, _ in self._calls], dim=1)
            gradients = torch.cat([gradient for _, gradient in self._calls], dim=1).flatten(0, 1)
            first = torch.arange(len(tokens), device=tokens.device)[:, None] * self.weights["weight"].shape[1]
            keys, place = torch.unique(first + tokens, return_inverse=True)
            self._by_token = (
                keys,
                gradients.new_zeros(len(keys), gradients.shape[1]).index_add_(0, place.flatten(), gradients),
            )
        return self._by_token
