"""Convolutions: the channels of K sites stand side by side, as groups of one convolution.

in        rows [N, C, *places] of K sites
out       outputs [N, O, *places], norms and sums
relies on base.py

Pictures are kept with their channels last, whatever a model's layers make of them: torch's convolutions, poolings and
their gradients are two to seven times as fast there for the few channels that small networks have.

Source: Rochette et al. 2019, arXiv:1912.06015: a row's weight gradient is a product of its patches. Ours differs: the
patches are made by copying whole stretches.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from client.gradient.layers.base import FormedLayer, Rows, Weights, weighted

STRETCH_OF_CHANNELS = 8
"""channels from which on patches are copied channel by channel, not place by place"""


class ConvolutionLayer(FormedLayer):
    """nn.Conv1d and nn.Conv2d."""

    module: nn.Conv1d | nn.Conv2d

    def __init__(self, module: nn.Module, *, weights: Weights, trained: frozenset[str], rows: Rows) -> None:
        super().__init__(module, weights=weights, trained=trained, rows=rows)
        # with one channel torch cannot tell where the channels lie, and takes its slow way
        self.are_shared &= rows.sites == 1 or self.module.in_channels > 1
        self._came_first = False
        """whether the rows came with their channels first, as they come out of a norm layer"""

    def entered(self, values: Tensor) -> Tensor:
        """Rows with their channels last, or side by side, as the backward pass needs them again."""
        self._came_first = values.ndim == 4 and not values.is_contiguous(memory_format=torch.channels_last)
        if self.are_shared:
            return _channels_last(values)
        return values if self.keeps_units else self._side_by_side(values)

    def forward(self, values: Tensor) -> Tensor:
        """Outputs [N, O, *places]."""
        bias = self.weights.get("bias")
        convolve = F.conv1d if isinstance(self.module, nn.Conv1d) else F.conv2d
        if self.are_shared:
            bias, sites = None if bias is None else bias[0], 1
        else:
            bias, sites = None if bias is None else bias.flatten(), self.rows.sites
            values = self._side_by_side(values) if self.keeps_units else values
        module = self.module
        groups = module.groups * sites
        outputs = convolve(values, self._kernel(sites), bias, module.stride, module.padding, module.dilation, groups)
        return outputs if self.are_shared else self._apart(outputs, channels=module.out_channels)

    def backward(self, values: Tensor, gradient: Tensor, *, asked: bool) -> Tensor | None:
        """Notes a call; gradient [N, C, *places] of its inputs where that is asked."""
        if self.keeps_units:
            return super().backward(values, gradient, asked=asked)
        names = [name for name in ("weight", "bias") if name in self.trained]
        of_inputs = asked and not self.are_shared
        which = (of_inputs, "weight" in names, "bias" in names)
        side = self._side_by_side(values) if self.are_shared else values
        found = self._backward(side, self._side_by_side(gradient), which=which, sites=self.rows.sites)
        inputs = self._apart(found.pop(0), channels=self.module.in_channels) if of_inputs else None
        if asked and self.are_shared:
            inputs = self.input_gradient(values, gradient)
        for name, sums in zip(names, found, strict=True):
            self._add(name, sums.reshape(self.rows.sites, 1, -1))
        return inputs

    def input_gradient(self, values: Tensor, gradient: Tensor) -> Tensor:
        """Gradient [N, C, *places]."""
        sites = 1 if self.are_shared else self.rows.sites
        spread = _channels_last(gradient) if self.are_shared else self._side_by_side(gradient)
        # only its shape and layout are looked at
        shape = (len(spread), sites * self.module.in_channels, *values.shape[2:])
        layout = torch.channels_last if values.ndim == 4 else torch.contiguous_format
        inputs = torch.empty(shape, dtype=values.dtype, device=values.device, memory_format=layout)
        (found,) = self._backward(inputs, spread, which=(True, False, False), sites=sites)
        if not self.are_shared:
            return self._apart(found, channels=self.module.in_channels)
        # where channels lie first in one and last in the other, a ReLU before takes twenty times as long
        return found.contiguous() if self._came_first else found

    def note(self, values: Tensor, gradient: Tensor) -> None:
        """Every unit's gradient, from the patches that each output looked at."""
        sites, units, each = self.rows.sites, self.rows.units, self.rows.rows_per_unit
        if "weight" in self.trained:
            formed = self._formed_of_rows(values, gradient).reshape(sites, units, each, -1)
            self._add("weight", formed[:, :, 0] if each == 1 else formed.sum(dim=2))
        if "bias" in self.trained:
            by_unit = gradient.reshape(sites, units, each, gradient.shape[1], -1)
            self._add("bias", by_unit.sum(dim=(2, 4)))

    def _kernel(self, sites: int) -> Tensor:
        """Weights of the first sites, [K*O, C / groups, *kernel]."""
        return _channels_last(self.weights["weight"][:sites].flatten(0, 1))

    def _formed_of_rows(self, values: Tensor, gradient: Tensor) -> Tensor:
        """Every row's weight gradient, [N, O, C / groups, *kernel]; by stretches of channels [N, O, *kernel, C]."""
        module, groups = self.module, self.module.groups
        if self._by_stretches():
            patches = _patches(values, module, channels_last=True).flatten(1, 2).flatten(2)
            spread = gradient.permute(0, 2, 3, 1).flatten(1, 2)
            return torch.bmm(spread.transpose(1, 2), patches)
        patches = _patches(values, module).reshape(len(values) * groups, -1, gradient[0, 0].numel())
        spread = gradient.reshape(len(values) * groups, -1, patches.shape[2])
        return torch.bmm(spread, patches.transpose(1, 2))

    def _by_stretches(self) -> bool:
        """Whether units' gradients have their channels last."""
        module = self.module
        wide = isinstance(module, nn.Conv2d) and module.groups == 1 and module.in_channels >= STRETCH_OF_CHANNELS
        return wide and self.keeps_units

    def _write(self, name: str, formed: Tensor, *, into: Tensor, factors: Tensor | None, finite: Tensor | None) -> None:
        """The sums alone change their order: every unit's would take longer than the product that formed them."""
        if name != "weight" or not self._by_stretches():
            super()._write(name, formed, into=into, factors=factors, finite=finite)
            return
        sums = weighted(formed, factors=factors, finite=finite)
        last = sums.view(len(sums), self.module.out_channels, *self.module.kernel_size, -1)
        into.copy_(last.permute(0, 1, 4, 2, 3))

    def _side_by_side(self, values: Tensor) -> Tensor:
        """[K*R, C, *places] as [R, K*C, *places]."""
        sites, per_site = self.rows.sites, self.rows.per_site
        if sites == 1:
            return _channels_last(values)
        if values.ndim == 3:
            return values.reshape(sites, per_site, *values.shape[1:]).transpose(0, 1).flatten(1, 2)
        last = values.permute(0, 2, 3, 1)
        apart = last.reshape(sites, per_site, *last.shape[1:]).permute(1, 2, 3, 0, 4)
        return apart.flatten(3).contiguous().permute(0, 3, 1, 2)

    def _apart(self, values: Tensor, *, channels: int) -> Tensor:
        """[R, K*C, *places] as [K*R, C, *places]."""
        sites = self.rows.sites
        if sites == 1:
            return values
        if values.ndim == 3:
            return values.reshape(len(values), sites, channels, -1).transpose(0, 1).flatten(0, 1)
        last = values.permute(0, 2, 3, 1)
        together = last.reshape(*last.shape[:3], sites, channels).permute(3, 0, 1, 2, 4)
        return together.flatten(0, 1).contiguous().permute(0, 3, 1, 2)

    def _backward(
        self, values: Tensor, gradient: Tensor, *, which: tuple[bool, bool, bool], sites: int
    ) -> list[Tensor]:
        """Gradients of inputs, weights and biases, those that are asked for; all side by side."""
        module, dims = self.module, len(self.module.kernel_size)
        found = torch.ops.aten.convolution_backward(
            gradient,
            values,
            self._kernel(sites),
            [sites * module.out_channels],
            module.stride,
            module.padding,
            module.dilation,
            False,
            [0] * dims,
            module.groups * sites,
            which,
        )
        return [gradients for gradients, asked in zip(found, which, strict=True) if asked]


def _channels_last(values: Tensor) -> Tensor:
    """Pictures and their kernels with the channels last, signals as they are."""
    return values.contiguous(memory_format=torch.channels_last) if values.ndim == 4 else values


def _patches(values: Tensor, module: nn.Conv1d | nn.Conv2d, *, channels_last: bool = False) -> Tensor:
    """What each output of a convolution looked at: [N, C * kernel places, output places].

    As F.unfold, which takes four times as long: here whole stretches are copied.

    Args:
        channels_last: stretches of channels, not of places: [N, *output places, *kernel places, C], unmerged.
    """
    dims = len(module.kernel_size)
    padding = cast("tuple[int, ...]", module.padding)
    sides = [side for each in reversed(padding) for side in (each, each)]
    if channels_last:
        windows = F.pad(values.permute(0, 2, 3, 1), (0, 0, *sides)).permute(0, 3, 1, 2)
    else:
        windows = F.pad(values.contiguous(), sides)
    for place in range(dims):
        kernel, stride, dilation = (module.kernel_size[place], module.stride[place], module.dilation[place])
        windows = windows.unfold(2 + place, dilation * (kernel - 1) + 1, stride)[..., ::dilation]
    outputs, kernels = range(2, 2 + dims), range(2 + dims, 2 + 2 * dims)
    if channels_last:
        return windows.permute(0, *outputs, *kernels, 1).contiguous()
    taken = windows.permute(0, 1, *kernels, *outputs)
    return taken.reshape(len(values), values.shape[1] * module.weight[0, 0].numel(), -1)
