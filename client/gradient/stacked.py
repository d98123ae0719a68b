"""Stacked: one model with the weights of many sites, their rows one batch, one backward pass for all.

in        a model, its trained weights [K, P] for K sites, a batch of K*R rows site by site
out       each site's gradient, summed [K, P]; with a clip, every unit's clipped first
relies on rows that do not look at each other (preflight), so that only layers with weights need to know whose a row is
"""

import math
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from client.gradient.engine import LARGEST_HELD, SampleModel, only_trained, units_at_once
from client.gradient.layers import KINDS, Rows, WatchedLayer, why_not_watched
from shared.batch import Batch
from shared.errors import ModelError, PrivacyError
from shared.model.recurrence import SITE_WEIGHTS
from shared.privacy.mechanism import clip_factors, layers_of

_SEEN: "weakref.WeakKeyDictionary[nn.Module, dict[_Tried, _Held]]" = weakref.WeakKeyDictionary()
"""what the layers of a model hold of a row; that they take samples for rows was seen then"""


@dataclass(frozen=True)
class StackedClip:
    """How units' contributions are bounded, site by site."""

    norms: Float[Tensor, "K"]
    """largest L2 norm over all parameters, float64"""
    per_layer: bool = False


@dataclass(frozen=True)
class _Tried:
    """What was tried out: trained parameters, and the shapes of a row, which the run's preprocessing sets."""

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]
    rows_per_unit: int


@dataclass(frozen=True)
class _Held:
    """How many numbers the watched layers hold."""

    values: int
    """of a row: inputs and outputs"""
    formed: int
    """of a unit: gradients that are formed"""


@dataclass(frozen=True)
class StackedSum:
    """Sums of every site."""

    sums: Float[Tensor, "K P"]
    """parameters one behind the other, in the order of the names"""
    unclipped: Float[Tensor, "K"]
    """how many units were within the norm already"""


class Stacked:
    """A model whose trained parameters every site has of its own; put on for a batch and taken off again.

    A copy must not be used by two threads at once: while a pass lasts the model's layers are replaced.
    """

    def __init__(self, model: nn.Module, *, names: Sequence[str]) -> None:
        """Takes a model and the names of its trained parameters.

        Raises:
            ModelError: a trained parameter lies in a layer whose gradients cannot be followed; see `why_not_stacked`.
        """
        reason = why_not_stacked(model, names=names)
        if reason is not None:
            raise ModelError(f'{reason}; set gradient_engine = "functional"')
        self.model, self.names = model, tuple(names)
        parameters = dict(model.named_parameters())
        self._parameters = [parameters[name] for name in names]
        self._others = [parameter for name, parameter in parameters.items() if name not in self.names]
        self._owners = [
            _Owner(path, model.get_submodule(path), frozenset(member.rpartition(".")[2] for member in members))
            for path, members in layers_of(self.names).items()
        ]
        self._places: dict[str, tuple[int, int]] = {}
        self._sums: Tensor | None = None
        self.num_weights = 0
        for name, parameter in zip(names, self._parameters, strict=True):
            self._places[name] = (self.num_weights, parameter.numel())
            self.num_weights += parameter.numel()

    def views(self, flat: Float[Tensor, "K P"]) -> dict[str, Tensor]:
        """Parameter -> [K, *shape], on the memory of `flat`."""
        return {
            name: flat[:, start : start + length].view(len(flat), *parameter.shape)
            for (name, (start, length)), parameter in zip(self._places.items(), self._parameters, strict=True)
        }

    def is_of(self, model: nn.Module, *, names: Sequence[str]) -> bool:
        """Whether it was made for the model and the names, and the model's parameters are still the same."""
        if model is not self.model or tuple(names) != self.names:
            return False
        parameters = dict(model.named_parameters())
        return all(parameters.get(name) is own for name, own in zip(self.names, self._parameters, strict=True))

    def units_at_once(self, batch: Batch, *, microbatch_size: int, rows_per_unit: int) -> int:
        """How many units of the model's own weights to pass together, whatever the batch.

        As many as engine.units_at_once allows where their gradients are formed. Where no layer forms any, nothing is
        held but activations: as many as have 32 MB of those.
        """
        held = self._tried(None, batch, rows_per_unit=rows_per_unit)
        if held.formed:
            return units_at_once(held.formed, microbatch_size=microbatch_size, rows_per_unit=rows_per_unit)
        # PRIVACY: memory follows the model and the shape of a row, not how many were drawn.
        # test_each_pass_holds_as_many_rows_as_the_model_says_whatever_was_drawn
        return max(1, LARGEST_HELD // max(1, held.values * rows_per_unit))

    @torch.no_grad()
    def clipped_sums(
        self,
        weights: Float[Tensor, "K P"] | None,
        batch: Batch,
        *,
        rows: Rows,
        real: Bool[Tensor, "K U"],
        clip: StackedClip,
        into: Float[Tensor, "K P"] | None = None,
    ) -> StackedSum:
        """For every site the sum over its units of the gradient of their mean loss, each clipped.

        A gradient that is not finite contributes exactly zero, and so does a unit that is not `real`.

        Args:
            weights: of every site; None are the model's own, of a single one.
            into: where the sums are written to; None is memory that the next call writes to.

        Raises:
            ModelError: a trained parameter is used from outside its layer.
        """
        layers = self._passed(weights, batch, rows=rows, shares=real, keeps_units=True)
        squares = {name: layer.square_norms() for name, layer in layers.items()}
        norms = torch.stack(list(squares.values())).sum(dim=0).sqrt()
        finite = norms.isfinite()
        broken = None if finite.all() else finite
        factors, within = _factors(squares, norms=norms, clip=clip)
        if into is None:
            into = self._room(cast("Tensor", weights))
        each = self.views(into)
        for name, layer in layers.items():
            # PRIVACY: a unit that pads the batch has no part in the sum. test_padding_contributes_exactly_nothing
            layer.sum_into(_own(each, path=name), factors=factors[name] * real, finite=broken)
        return StackedSum(sums=into, unclipped=(within & real).sum(dim=1).double())

    @torch.no_grad()
    def plain_sums(
        self,
        weights: Float[Tensor, "K P"],
        batch: Batch,
        *,
        rows: Rows,
        real: Bool[Tensor, "K U"],
        denominators: Float[Tensor, "K 1"],
    ) -> Float[Tensor, "K P"]:
        """Every site's sum without any clipping, divided: for training without privacy alone."""
        layers = self._passed(weights, batch, rows=rows, shares=real / denominators, keeps_units=False)
        sums = self._room(weights)
        into = self.views(sums)
        for name, layer in layers.items():
            layer.sum_into(_own(into, path=name))
        return sums

    @torch.no_grad()
    def descend(
        self,
        start: Float[Tensor, "K P"],
        batch: Batch,
        *,
        rows: Rows,
        real: Bool[Tensor, "K U"],
        denominators: Float[Tensor, "K 1"],
        rate: float,
        into: Float[Tensor, "K P"],
    ) -> None:
        """Writes `start` minus `rate` times what `plain_sums` gives: a step of plain gradient descent.

        Args:
            into: may be the very memory of `start`.
        """
        layers = self._passed(start, batch, rows=rows, shares=real / denominators, keeps_units=False)
        before, after = self.views(start), self.views(into)
        for name, layer in layers.items():
            layer.descend_into(_own(after, path=name), start=_own(before, path=name), rate=rate)

    def _room(self, weights: Tensor) -> Tensor:
        """Memory for the sums, the same for each call: new pages would cost more than what is written to them."""
        if self._sums is None or len(self._sums) < len(weights) or self._sums.dtype != weights.dtype:
            self._sums = torch.empty_like(weights, memory_format=torch.contiguous_format)
        return self._sums[: len(weights)]

    @torch.enable_grad()
    def _passed(
        self, weights: Tensor | None, batch: Batch, *, rows: Rows, shares: Tensor, keeps_units: bool
    ) -> dict[str, WatchedLayer]:
        """The trained layers after a forward and a backward pass over all rows."""
        if len(batch) != rows.sites * rows.per_site:
            raise PrivacyError(f"a batch of {len(batch)} rows; allowed: {rows.sites} times {rows.per_site}")
        model = cast("SampleModel", self.model)
        self._tried(None if weights is None else weights[:1], batch, rows_per_unit=rows.rows_per_unit)
        with self._only_trained(), self._watched(weights, rows, keeps_units=keeps_units) as layers:
            # what asks for a gradient, so that there is a backward pass though no weight does
            switch = torch.zeros((), requires_grad=True, device=batch.present.device)
            for layer in layers.values():
                self._put_on(layer, switch)
            losses = model.loss(model(batch.inputs, batch.present), batch.targets)
            total = losses @ self._of_rows(shares, rows=rows, dtype=losses.dtype)
            if not total.requires_grad:
                return layers
            _, *outside = torch.autograd.grad(total, [switch, *self._parameters], allow_unused=True)
        # PRIVACY: what a weight adds from outside its layer no norm would count.
        # test_weights_used_from_outside_their_layer_are_refused
        used = [name for name, found in zip(self.names, outside, strict=True) if found is not None]
        if used:
            raise ModelError(f'parameters {used} are used from outside their layer; set gradient_engine = "functional"')
        return layers

    def _tried(self, weights: Tensor | None, batch: Batch, *, rows_per_unit: int) -> _Held:
        """What the layers hold, once they are known to take samples for rows; looked at once a model."""
        shapes = tuple(values.shape[1:] for values in batch.inputs.values())
        key, seen = _Tried(self.names, shapes, rows_per_unit), _SEEN.setdefault(self.model, {})
        if key not in seen:
            seen[key] = self._try_rows(weights, batch, rows_per_unit=rows_per_unit)
        return seen[key]

    @torch.no_grad()
    def _try_rows(self, weights: Tensor | None, batch: Batch, *, rows_per_unit: int) -> _Held:
        """The model's layers see one row, then two.

        Raises:
            ModelError: some layer's rows are not samples.
        """
        # PRIVACY: else a layer that takes time for rows would pass whenever the batch has as many rows as there are
        # times. test_rows_that_are_not_samples_are_refused
        for num in (1, 2):
            few = batch.take(torch.zeros(num, dtype=torch.int64, device=batch.present.device))
            with self._watched(weights, Rows(1, num), keeps_units=False) as layers:
                for layer in layers.values():
                    self._put_on(layer, torch.zeros((), device=batch.present.device))
                cast("SampleModel", self.model)(few.inputs, few.present)
        return _Held(
            values=sum(layer.passed for layer in layers.values()) // num,
            formed=sum(layer.num_formed(rows_per_unit) for layer in layers.values()),
        )

    @staticmethod
    def _of_rows(shares: Tensor, *, rows: Rows, dtype: torch.dtype) -> Tensor:
        """What each row's loss is multiplied with: a unit's loss is the mean over its rows."""
        each = rows.rows_per_unit
        shares = shares.to(dtype)
        return (shares if each == 1 else shares.repeat_interleave(each, dim=1) / each).flatten()

    def _only_trained(self) -> AbstractContextManager[None]:
        """As `only_trained`, at no cost where it holds already."""
        holds = all(each.requires_grad for each in self._parameters) and not any(
            each.requires_grad for each in self._others
        )
        return nullcontext() if holds else only_trained(self.model, self.names)

    @contextmanager
    def _watched(self, weights: Tensor | None, rows: Rows, *, keeps_units: bool) -> Iterator[dict[str, WatchedLayer]]:
        """Layers that are watched while it lasts, by their place in the model."""
        if weights is None:
            stacked = {name: own.detach()[None] for name, own in zip(self.names, self._parameters, strict=True)}
        else:
            stacked = self.views(weights.detach())
        layers: dict[str, WatchedLayer] = {}
        kind_of_device = self._parameters[0].device.type
        narrow = torch.get_autocast_dtype(kind_of_device) if torch.is_autocast_enabled(kind_of_device) else None
        try:
            for owner in self._owners:
                own = {
                    name: stacked[_join(owner.path, name)]
                    if name in owner.trained
                    else value.detach().expand(rows.sites, *value.shape)
                    for name, value in owner.module._parameters.items()
                    if value is not None
                }
                if narrow is not None:
                    own = {name: value.to(narrow) for name, value in own.items()}
                kind = KINDS[type(owner.module)]
                layers[owner.path] = kind(owner.module, weights=own, trained=owner.trained, rows=rows)
                layers[owner.path].keeps_units = keeps_units
            yield layers
        finally:
            for owner in self._owners:
                owner.module.__dict__.pop("forward", None)
                owner.module.__dict__.pop(SITE_WEIGHTS, None)

    @staticmethod
    def _put_on(layer: WatchedLayer, switch: Tensor) -> None:
        layer.module.__dict__["forward"] = partial(_forward, layer=layer, switch=switch)
        if type(layer.module) is nn.Linear:
            layer.module.__dict__[SITE_WEIGHTS] = layer.weights["weight"]


@dataclass(frozen=True)
class _Owner:
    """A layer with trained parameters."""

    path: str
    module: nn.Module
    trained: frozenset[str]
    """the layer's own names of them"""


class _Watch(torch.autograd.Function):
    """A layer's part with weights, whose backward pass notes instead of making weight gradients."""

    @staticmethod
    def forward(ctx: "torch.autograd.function.FunctionCtx", values: Tensor, _: Tensor, layer: WatchedLayer) -> Tensor:
        """Outputs of the layer."""
        entered = layer.entered(values)
        ctx.save_for_backward(entered)
        ctx.layer = layer  # type: ignore[attr-defined]
        outputs = layer.forward(entered)
        # autograd lets nobody change a view that was made in here, as nn.ReLU(inplace=True) does
        return outputs.new_empty(0).set_(outputs) if outputs._is_view() else outputs  # type: ignore[call-overload]

    @staticmethod
    def backward(ctx: "torch.autograd.function.FunctionCtx", *gradients: Tensor) -> tuple[Tensor | None, None, None]:
        """Gradient of the inputs."""
        (entered,) = ctx.saved_tensors  # type: ignore[attr-defined]
        layer: WatchedLayer = ctx.layer  # type: ignore[attr-defined]
        asked = bool(ctx.needs_input_grad[0])  # type: ignore[attr-defined]
        return layer.backward(entered, gradients[0], asked=asked), None, None


def why_not_stacked(model: nn.Module, *, names: Sequence[str]) -> str | None:
    """Why the gradients of a model's trained parameters cannot be followed layer by layer; None where they can."""
    for path in layers_of(tuple(names)):
        reason = why_not_watched(model.get_submodule(path))
        if reason is not None:
            return f"{path or 'the model itself'}: {reason}"
    return None


def gathered(values: Mapping[str, Tensor], *, names: Sequence[str]) -> Float[Tensor, "P"]:
    """The named parameters one behind the other, as a row of `Stacked`."""
    return torch.cat([values[name].detach().reshape(-1) for name in names])


def _forward(values: Tensor, *, layer: WatchedLayer, switch: Tensor) -> Tensor:
    # PRIVACY: a layer that folds tokens or sites into rows would have each counted as another's.
    # test_rows_that_are_not_samples_are_refused
    if len(values) != (asked := layer.rows.sites * layer.rows.per_site):
        raise ModelError(
            f'a layer sees {len(values)} rows where the batch has {asked}; set gradient_engine = "functional"'
        )
    entered = layer.enter(values)
    if entered.is_floating_point() and torch.is_autocast_enabled(entered.device.type):
        entered = entered.to(torch.get_autocast_dtype(entered.device.type))
    outputs: Tensor = _Watch.apply(entered, switch, layer)  # type: ignore[no-untyped-call]
    layer.passed += values.numel() + outputs.numel()
    return outputs


def _factors(
    squares: dict[str, Tensor], *, norms: Tensor, clip: StackedClip
) -> tuple[dict[str, Tensor], Bool[Tensor, "K U"]]:
    """What each unit's gradient of each layer is multiplied with, and whether nothing of the unit is shortened."""
    bound = clip.norms[:, None]
    if not clip.per_layer:
        return dict.fromkeys(squares, clip_factors(norms, clip_norm=bound)), norms <= bound
    # PRIVACY: L layers of this norm have the clip norm together. test_stacked_per_layer_clipping_is_the_references
    share = bound / math.sqrt(len(squares))
    factors, within = {}, torch.ones_like(norms, dtype=torch.bool)
    for name, square in squares.items():
        own = square.sqrt()
        within &= own <= share
        factors[name] = torch.where(norms.isfinite(), clip_factors(own, clip_norm=share), 0.0)
    return factors, within


def _own(into: dict[str, Tensor], *, path: str) -> dict[str, Tensor]:
    """The entries of one layer, under its own names."""
    return {name.rpartition(".")[2]: value for name, value in into.items() if name.rpartition(".")[0] == path}


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
