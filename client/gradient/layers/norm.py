"""Norm layers: scale and shift of what was normalised row by row.

in        rows of K sites
out       normalised, scaled and shifted rows, norms and sums
relies on base.py; autograd follows the normalisation itself, which has no weights
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from client.gradient.layers.base import FormedLayer


class NormLayer(FormedLayer):
    """Scale and shift of nn.LayerNorm and nn.GroupNorm; what comes before them has no weights."""

    module: nn.LayerNorm | nn.GroupNorm

    def enter(self, values: Tensor) -> Tensor:
        """The normalised values."""
        if isinstance(self.module, nn.LayerNorm):
            return F.layer_norm(values, self.module.normalized_shape, None, None, self.module.eps)
        if self.rows.sites == 1:
            # three to ten times as fast as with channels last, forwards and backwards
            values = values.contiguous()
        return F.group_norm(values, self.module.num_groups, None, None, self.module.eps)

    def forward(self, values: Tensor) -> Tensor:
        """Scaled and shifted."""
        by_site = self._by_site(values)
        weight = self._spread("weight", by_site)
        if "bias" not in self.weights:
            return (by_site * weight).reshape(values.shape)
        return torch.addcmul(self._spread("bias", by_site), by_site, weight).reshape(values.shape)

    def input_gradient(self, values: Tensor, gradient: Tensor) -> Tensor:
        """Gradient of the normalised values."""
        by_site = self._by_site(gradient)
        return (by_site * self._spread("weight", by_site)).reshape(values.shape)

    def note(self, values: Tensor, gradient: Tensor) -> None:
        """Every unit's gradient of scale and shift."""
        if "weight" in self.trained:
            self._add("weight", self._summed(values * gradient))
        if "bias" in self.trained:
            self._add("bias", self._summed(gradient))

    def _by_site(self, values: Tensor) -> Tensor:
        return values.reshape(self.rows.sites, self.rows.per_site, *values.shape[1:])

    def _spread(self, name: str, by_site: Tensor) -> Tensor:
        """A site's weights [K, 1, ...] so that they meet the dimensions they belong to."""
        weights = self.weights[name]
        if isinstance(self.module, nn.LayerNorm):
            missing = by_site.ndim - weights.ndim
            return weights.reshape(len(weights), *(1,) * missing, *weights.shape[1:])
        return weights.reshape(len(weights), 1, weights.shape[1], *(1,) * (by_site.ndim - 3))

    def _summed(self, values: Tensor) -> Tensor:
        """Over all places of each unit: [K, U, n]."""
        units = (self.rows.sites, self.rows.units)
        if isinstance(self.module, nn.LayerNorm):
            return values.reshape(*units, -1, self.module.weight.numel()).sum(dim=2)
        by_channel = values.reshape(*units, self.rows.rows_per_unit, self.module.num_channels, -1)
        return by_channel.sum(dim=(2, 4))
