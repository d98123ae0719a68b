"""Convolutions: the channels of K sites stand side by side, as groups of one convolution.

in        rows [N, C, *places] of K sites
out       outputs [N, O, *places], norms and sums
relies on base.py

Source: Rochette et al. 2019, arXiv:1912.06015: a row's weight gradient is a product of its patches. Ours differs: the
patches are made by copying whole stretches.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from client.gradient.layers.base import FormedLayer

FEW_PATCH_NUMBERS = 16
"""kernel places times input channels up to which a convolution's gradient is cheaper from its patches"""


class ConvolutionLayer(FormedLayer):
    """nn.Conv1d and nn.Conv2d: the sites' channels stand side by side, as groups of one convolution."""

    module: nn.Conv1d | nn.Conv2d

    def forward(self, values: Tensor) -> Tensor:
        """Outputs [N, O, *places]."""
        return self._apart(self._convolve(self._side_by_side(values)), channels=self.module.out_channels)

    def input_gradient(self, values: Tensor, gradient: Tensor) -> Tensor:
        """Gradient [N, C, *places]."""
        found = self._backward(values, gradient, which=(True, False, False))[0]
        return self._apart(found, channels=self.module.in_channels)

    def note(self, values: Tensor, gradient: Tensor) -> None:
        """Every unit's gradient, from the patches that each output looked at."""
        sites, units, each = self.rows.sites, self.rows.units, self.rows.rows_per_unit
        if not self.keeps_units and self.module.weight[0].numel() > FEW_PATCH_NUMBERS:
            self._note_sums(values, gradient)
            return
        if "weight" in self.trained:
            groups = self.module.groups
            patches = _patches(values, self.module).reshape(len(values) * groups, -1, gradient[0, 0].numel())
            spread = gradient.reshape(len(values) * groups, -1, patches.shape[2])
            formed = torch.bmm(spread, patches.transpose(1, 2)).reshape(sites, units, each, -1)
            self._add("weight", formed[:, :, 0] if each == 1 else formed.sum(dim=2))
        if "bias" in self.trained:
            by_unit = gradient.reshape(sites, units, each, gradient.shape[1], -1)
            self._add("bias", by_unit.sum(dim=(2, 4)))

    def _note_sums(self, values: Tensor, gradient: Tensor) -> None:
        """The sum over all rows of each site as if they were one unit, from torch's kernel for weight gradients."""
        _, weight, bias = self._backward(values, gradient, which=(False, True, "bias" in self.trained))
        for name, found in (("weight", weight), ("bias", bias)):
            if name in self.trained:
                self._add(name, found.reshape(self.rows.sites, 1, -1))

    def _side_by_side(self, values: Tensor) -> Tensor:
        """[K*R, C, *places] as [R, K*C, *places]."""
        if self.rows.sites == 1:
            return values
        split = values.reshape(self.rows.sites, self.rows.per_site, *values.shape[1:])
        return split.transpose(0, 1).flatten(1, 2)

    def _apart(self, values: Tensor, *, channels: int) -> Tensor:
        """[R, K*C, *places] as [K*R, C, *places]."""
        if self.rows.sites == 1:
            return values
        split = values.reshape(self.rows.per_site, self.rows.sites, channels, *values.shape[2:])
        return split.transpose(0, 1).flatten(0, 1)

    def _convolve(self, values: Tensor) -> Tensor:
        bias = self.weights.get("bias")
        convolve = F.conv1d if isinstance(self.module, nn.Conv1d) else F.conv2d
        return convolve(
            values,
            self.weights["weight"].flatten(0, 1),
            None if bias is None else bias.flatten(),
            self.module.stride,
            self.module.padding,
            self.module.dilation,
            self.module.groups * self.rows.sites,
        )

    def _backward(
        self, values: Tensor, gradient: Tensor, *, which: tuple[bool, bool, bool]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of inputs, weights and biases, those that are asked for."""
        module, dims = self.module, len(self.module.kernel_size)
        found: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward(
            self._side_by_side(gradient),
            self._side_by_side(values),
            self.weights["weight"].flatten(0, 1),
            [self.rows.sites * module.out_channels],
            module.stride,
            module.padding,
            module.dilation,
            False,
            [0] * dims,
            module.groups * self.rows.sites,
            which,
        )
        return found


def _patches(values: Tensor, module: nn.Conv1d | nn.Conv2d) -> Tensor:
    """What each output of a convolution looked at: [N, C * kernel places, output places].

    As F.unfold, which takes four times as long: here whole stretches are copied.
    """
    dims = len(module.kernel_size)
    padding = cast("tuple[int, ...]", module.padding)
    sides = [side for each in reversed(padding) for side in (each, each)]
    windows = F.pad(values, sides)
    for place in range(dims):
        kernel, stride, dilation = (module.kernel_size[place], module.stride[place], module.dilation[place])
        windows = windows.unfold(2 + place, dilation * (kernel - 1) + 1, stride)[..., ::dilation]
    order = (0, 1, *range(2 + dims, 2 + 2 * dims), *range(2, 2 + dims))
    return windows.permute(order).reshape(len(values), values.shape[1] * module.weight[0, 0].numel(), -1)
