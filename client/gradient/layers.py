"""Layers: what a layer's activations and output gradients say of its weights' gradients, row by row, for many sites.

in        K*R rows, site by site, through one layer whose weights [K, *shape] every site has of its own
out       outputs; after the backward pass squared norms [K, U] of each unit's gradient, and weighted sums [K, *shape]
relies on torch's kernels; stacked.py puts these in the place of a model's own layers for a while

Source: per-sample norms of a linear layer: Goodfellow 2015, arXiv:1510.01799; with positions, and for convolutions and
embeddings: Li et al. 2022, arXiv:2110.05679, section 4; one backward pass for norms and sums: Bu et al. 2023,
arXiv:2210.00038 (book-keeping). Ours differs: sites side by side, and where a layer sees several positions its per-unit
gradient is formed and kept, which costs less than the product of its Gram matrices for all but the largest layers.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

Sums = dict[str, Tensor]
"""the layer's own name of a parameter ("weight", "bias") -> [K, *shape]"""
FEW_PATCH_NUMBERS = 16
"""kernel places times input channels up to which a convolution's gradient is cheaper from its patches"""


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

    def __init__(self, module: nn.Module, *, weights: Sums, trained: frozenset[str], rows: Rows) -> None:
        """Takes the layer's weights, [K, *shape] each; gradients are made of the `trained` ones only."""
        self.module, self.weights, self.trained, self.rows = module, weights, trained, rows

    def enter(self, values: Tensor) -> Tensor:
        """What of the layer has no weights and comes first; autograd follows it by itself."""
        return values

    @abstractmethod
    def forward(self, values: Tensor) -> Tensor:
        """Outputs of the part with weights."""

    @abstractmethod
    def input_gradient(self, values: Tensor, gradient: Tensor) -> Tensor:
        """Gradient of the inputs, from that of the outputs."""

    @abstractmethod
    def note(self, values: Tensor, gradient: Tensor) -> None:
        """Keeps what a call of the layer says of its weights; a layer may be called several times in a pass."""

    @abstractmethod
    def square_norms(self) -> Float[Tensor, "K U"]:
        """Squared L2 norm of each unit's gradient over the trained parameters, float64; after all calls."""

    @abstractmethod
    def sums(self, factors: Float[Tensor, "K U"] | None, *, finite: Tensor | None) -> Sums:
        """Sum over each site's units of factor times gradient; without factors, of the gradients themselves.

        Args:
            factors: of each unit.
            finite: [K, U] bool where some unit's gradient is not finite: nothing of such a unit enters, for zero times
                NaN is NaN.
        """


class _FormedLayer(WatchedLayer):
    """A layer whose per-unit gradients are formed: each parameter's as [K, U, n]."""

    def __init__(self, module: nn.Module, *, weights: Sums, trained: frozenset[str], rows: Rows) -> None:
        super().__init__(module, weights=weights, trained=trained, rows=rows)
        self._formed: Sums = {}

    def _add(self, name: str, gradients: Tensor) -> None:
        if name in self._formed:
            self._formed[name] += gradients
        else:
            self._formed[name] = gradients

    def square_norms(self) -> Float[Tensor, "K U"]:
        """As promised by WatchedLayer."""
        total = _no_norms(self.rows, like=next(iter(self.weights.values())))
        for gradients in self._formed.values():
            total += torch.linalg.vector_norm(gradients, dim=2).double().square()
        return total

    def sums(self, factors: Float[Tensor, "K U"] | None, *, finite: Tensor | None) -> Sums:
        """As promised by WatchedLayer."""
        return {
            name: _weighted(gradients, factors=factors, finite=finite).view_as(self.weights[name])
            for name, gradients in self._formed.items()
        }


class LinearLayer(WatchedLayer):
    """nn.Linear: [..., d] to [..., p]; a unit has S positions, its rows' and calls' together."""

    def __init__(self, module: nn.Module, *, weights: Sums, trained: frozenset[str], rows: Rows) -> None:
        super().__init__(module, weights=weights, trained=trained, rows=rows)
        self._calls: list[tuple[Tensor, Tensor]] = []
        self._formed: Tensor | None = None
        """[K, U, p, d], where the units' gradients are formed"""

    def forward(self, values: Tensor) -> Tensor:
        """Outputs [..., p]."""
        weight, bias = self.weights["weight"], self.weights.get("bias")
        if self.rows.sites == 1:
            return F.linear(values, weight[0], None if bias is None else bias[0])
        flat, turned = values.reshape(self.rows.sites, -1, values.shape[-1]), weight.transpose(1, 2)
        outputs = torch.bmm(flat, turned) if bias is None else torch.baddbmm(bias[:, None], flat, turned)
        return outputs.reshape(*values.shape[:-1], weight.shape[1])

    def input_gradient(self, values: Tensor, gradient: Tensor) -> Tensor:
        """Gradient [..., d]."""
        weight = self.weights["weight"]
        if self.rows.sites == 1:
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
        total = _no_norms(self.rows, like=self.weights["weight"])
        if not self._calls:
            return total
        inputs, gradients = self._all()
        if inputs.shape[2] == 1:
            # an outer product's norm is the product of the norms: sums of squares, in which nothing cancels
            of_inputs = torch.linalg.vector_norm(inputs[:, :, 0], dim=2).double().square()
            of_gradients = torch.linalg.vector_norm(gradients[:, :, 0], dim=2).double().square()
            if "weight" in self.trained:
                total += of_inputs * of_gradients
            return total + of_gradients if "bias" in self.trained else total
        if "weight" in self.trained:
            formed = torch.matmul(gradients.transpose(2, 3), inputs)
            total += torch.linalg.vector_norm(formed.flatten(2), dim=2).double().square()
            self._formed = formed
        if "bias" in self.trained:
            total += torch.linalg.vector_norm(gradients.sum(dim=2), dim=2).double().square()
        return total

    def sums(self, factors: Float[Tensor, "K U"] | None, *, finite: Tensor | None) -> Sums:
        """As promised by WatchedLayer."""
        if not self._calls:
            return {}
        inputs, gradients = self._all()
        found: Sums = {}
        if finite is not None:
            inputs, gradients = (values.masked_fill(~finite[:, :, None, None], 0) for values in (inputs, gradients))
        if factors is not None:
            gradients = gradients * factors[:, :, None, None].to(gradients.dtype)
        gradients = gradients.flatten(1, 2)
        if "weight" in self.trained:
            if self._formed is not None:
                formed = _weighted(self._formed.flatten(2), factors=factors, finite=finite)
                found["weight"] = formed.view_as(self.weights["weight"])
            else:
                found["weight"] = torch.bmm(gradients.transpose(1, 2), inputs.flatten(1, 2))
        if "bias" in self.trained:
            found["bias"] = gradients.sum(dim=1)
        return found

    def _all(self) -> tuple[Tensor, Tensor]:
        """All calls' positions behind one another."""
        if len(self._calls) > 1:
            inputs, gradients = zip(*self._calls, strict=True)
            self._calls = [(torch.cat(inputs, dim=2), torch.cat(gradients, dim=2))]
        return self._calls[0]


class ConvolutionLayer(_FormedLayer):
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
        if "weight" in self.trained:
            groups = self.module.groups
            patches = _patches(values, self.module).reshape(len(values) * groups, -1, gradient[0, 0].numel())
            spread = gradient.reshape(len(values) * groups, -1, patches.shape[2])
            formed = torch.bmm(spread, patches.transpose(1, 2)).reshape(sites, units, each, -1)
            self._add("weight", formed[:, :, 0] if each == 1 else formed.sum(dim=2))
        if "bias" in self.trained:
            by_unit = gradient.reshape(sites, units, each, gradient.shape[1], -1)
            self._add("bias", by_unit.sum(dim=(2, 4)))

    def plain_sums(self, values: Tensor, gradient: Tensor) -> Sums:
        """Sums over all rows of each site, without forming any unit's gradient."""
        with_bias = "bias" in self.trained
        _, weight, bias = self._backward(values, gradient, which=(False, True, with_bias))
        found = {"weight": weight.view_as(self.weights["weight"])} if "weight" in self.trained else {}
        if with_bias:
            found["bias"] = bias.view_as(self.weights["bias"])
        return found

    @property
    def has_few_patch_numbers(self) -> bool:
        """Whether forming gradients from patches is cheaper than torch's kernel for weight gradients."""
        return self.module.weight[0].numel() <= FEW_PATCH_NUMBERS

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


class EmbeddingLayer(WatchedLayer):
    """nn.Embedding: no unit's dense gradient is ever made, only the rows of the tokens it has."""

    module: nn.Embedding

    def __init__(self, module: nn.Module, *, weights: Sums, trained: frozenset[str], rows: Rows) -> None:
        super().__init__(module, weights=weights, trained=trained, rows=rows)
        self._calls: list[tuple[Tensor, Tensor]] = []
        self._by_token: tuple[Tensor, Tensor] | None = None
        """(unit * V + token) of each token a unit has, and the gradient of its row, [T, D]"""

    def forward(self, values: Tensor) -> Tensor:
        """Rows of the tables [..., D]."""
        table = self.weights["weight"]
        if self.rows.sites == 1:
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
        total = _no_norms(self.rows, like=self.weights["weight"])
        if not self._calls:
            return total
        keys, rows = self._rows_by_token()
        squares = torch.linalg.vector_norm(rows, dim=1).double().square()
        units = total.view(-1).index_add(0, keys // self.weights["weight"].shape[1], squares)
        return units.view_as(total)

    def sums(self, factors: Float[Tensor, "K U"] | None, *, finite: Tensor | None) -> Sums:
        """As promised by WatchedLayer."""
        if not self._calls:
            return {}
        keys, rows = self._rows_by_token()
        num_tokens = self.weights["weight"].shape[1]
        unit = keys // num_tokens
        if finite is not None:
            rows = rows.masked_fill(~finite.reshape(-1)[unit][:, None], 0.0)
        if factors is not None:
            rows = rows * factors.reshape(-1)[unit][:, None].to(rows.dtype)
        place = unit // self.rows.units * num_tokens + keys % num_tokens
        total = rows.new_zeros(self.rows.sites * num_tokens, rows.shape[1]).index_add_(0, place, rows)
        return {"weight": total.view_as(self.weights["weight"])}

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


class NormLayer(_FormedLayer):
    """Scale and shift of nn.LayerNorm and nn.GroupNorm; what comes before them has no weights."""

    module: nn.LayerNorm | nn.GroupNorm

    def enter(self, values: Tensor) -> Tensor:
        """The normalised values."""
        if isinstance(self.module, nn.LayerNorm):
            return F.layer_norm(values, self.module.normalized_shape, None, None, self.module.eps)
        return F.group_norm(values, self.module.num_groups, None, None, self.module.eps)

    def forward(self, values: Tensor) -> Tensor:
        """Scaled and shifted."""
        by_site = self._by_site(values)
        scaled = by_site * self._spread("weight", by_site)
        if "bias" in self.weights:
            scaled += self._spread("bias", by_site)
        return scaled.view_as(values)

    def input_gradient(self, values: Tensor, gradient: Tensor) -> Tensor:
        """Gradient of the normalised values."""
        by_site = self._by_site(gradient)
        return (by_site * self._spread("weight", by_site)).view_as(values)

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


KINDS: dict[type[nn.Module], type[WatchedLayer]] = {
    nn.Linear: LinearLayer,
    nn.Conv1d: ConvolutionLayer,
    nn.Conv2d: ConvolutionLayer,
    nn.Embedding: EmbeddingLayer,
    nn.LayerNorm: NormLayer,
    nn.GroupNorm: NormLayer,
}


def why_not_watched(module: nn.Module) -> str | None:
    """Why a layer with weights of its own cannot be followed; None where it can."""
    kind = type(module)
    if kind not in KINDS or module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__:
        return f"{kind.__name__} is none of {', '.join(known.__name__ for known in KINDS)}, or has hooks"
    if isinstance(module, nn.Conv1d | nn.Conv2d) and (
        module.padding_mode != "zeros" or isinstance(module.padding, str)
    ):
        return f"{kind.__name__} pads with {module.padding_mode!r}, {module.padding!r}"
    if isinstance(module, nn.Embedding) and (module.max_norm or module.scale_grad_by_freq or module.sparse):
        return f"{kind.__name__} has max_norm, scale_grad_by_freq or sparse"
    return None


def _no_norms(rows: Rows, *, like: Tensor) -> Tensor:
    return torch.zeros(rows.sites, rows.units, dtype=torch.float64, device=like.device)


def _weighted(gradients: Tensor, *, factors: Tensor | None, finite: Tensor | None) -> Tensor:
    """[K, U, n] summed over U to [K, n]."""
    if finite is not None:
        gradients = gradients.masked_fill(~finite[:, :, None], 0.0)
    if factors is None:
        return gradients.sum(dim=1)
    return torch.bmm(factors[:, None].to(gradients.dtype), gradients)[:, 0]


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
