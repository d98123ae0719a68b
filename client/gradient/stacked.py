"""Stacked: one model with the weights of many sites, their rows one batch, one backward pass for all.

in        a model, its trained weights [K, P] for K sites, a batch of K*R rows site by site
out       each site's gradient, summed [K, P]; with a clip, every unit's clipped first
relies on rows that do not look at each other (preflight), so that only layers with weights need to know whose a row is
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from client.gradient.engine import LARGEST_HELD, SampleModel, only_trained, units_at_once
from client.gradient.layers import Rows, WatchedLayer
from client.gradient.trial import Held, Tried, held_by
from client.gradient.watching import owners_of, put_on, watched, why_not_stacked
from shared.batch import Batch
from shared.errors import ModelError, PrivacyError
from shared.privacy.mechanism import clip_factors

__all__ = ["Stacked", "StackedClip", "StackedSum", "gathered", "why_not_stacked"]


@dataclass(frozen=True)
class StackedClip:
    """How units' contributions are bounded, site by site."""

    norms: Float[Tensor, "K"]
    """largest L2 norm over all parameters, float64"""
    per_layer: bool = False


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
        self._owners = owners_of(model, names=names)
        self.model, self.names = model, tuple(names)
        parameters = dict(model.named_parameters())
        self._parameters = [parameters[name] for name in names]
        self._others = [parameter for name, parameter in parameters.items() if name not in self.names]
        self._lengths = [parameter.numel() for parameter in self._parameters]
        self._held: dict[tuple[int, tuple[torch.Size, ...]], Held] = {}
        self._sums: Tensor | None = None
        self.num_weights = sum(self._lengths)

    def views(self, flat: Float[Tensor, "K P"]) -> dict[str, Tensor]:
        """Parameter -> [K, *shape], on the memory of `flat`."""
        return dict(zip(self.names, self._each(flat), strict=True))

    def of_site(self, flat: Float[Tensor, "1 P"]) -> dict[str, Tensor]:
        """Parameter -> [*shape] of the only site, on the memory of `flat`."""
        parts = flat[0].split_with_sizes(self._lengths)
        each = [part.view(own.shape) for part, own in zip(parts, self._parameters, strict=True)]
        return dict(zip(self.names, each, strict=True))

    def zeros(self) -> Float[Tensor, "1 P"]:
        """Of one site, to be written over."""
        return self._parameters[0].new_zeros(1, self.num_weights, requires_grad=False)

    def is_of(self, model: nn.Module, *, names: Sequence[str]) -> bool:
        """Whether it was made for the model and the names, and the model's parameters are still the same."""
        if model is not self.model or tuple(names) != self.names:
            return False
        return all(owner.is_in_place(self._parameters) for owner in self._owners)

    def _each(self, flat: Tensor) -> list[Tensor]:
        """Every parameter of `views`, in order."""
        num, parts = flat.shape[0], flat.split_with_sizes(self._lengths, 1)
        return [part.view(num, *own.shape) for part, own in zip(parts, self._parameters, strict=True)]

    def _by_layer(self, flat: Tensor) -> list[dict[str, Tensor]]:
        """The parameters of each layer under its own names, in the order of the layers."""
        each = self._each(flat)
        return [{name: each[number] for name, number in owner.trained.items()} for owner in self._owners]

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
        if into is None:
            into = self._room(cast("Tensor", weights))
        with self._in_full():
            squares = torch.stack([layer.square_norms() for layer in layers])
            norms = squares.sum(dim=0).sqrt_()
            # a sum of lengths is finite where each is; what overflows it is told apart unit by unit
            broken = None if math.isfinite(float(norms.sum())) else norms.isfinite()
            factors, within = _factors(squares, norms=norms, clip=clip)
            # PRIVACY: a unit that pads the batch has no part in the sum. test_padding_contributes_exactly_nothing
            factors = (factors * real).to(self._parameters[0].dtype).expand(len(layers), -1, -1)
            with _not_rounded():
                for layer, own, of_units in zip(layers, self._by_layer(into), factors, strict=True):
                    layer.sum_into(own, factors=of_units, finite=broken)
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
        with self._in_full():
            for layer, own in zip(layers, self._by_layer(sums), strict=True):
                layer.sum_into(own)
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
        with self._in_full():
            for layer, after, before in zip(layers, self._by_layer(into), self._by_layer(start), strict=True):
                layer.descend_into(after, start=before, rate=rate)

    def _in_full(self) -> AbstractContextManager[object]:
        """No product is rounded further than its factors, whatever the model was told to compute in."""
        # PRIVACY: a clipped sum that is rounded to bfloat16 may be longer than the norm.
        # test_in_bf16_a_unit_still_moves_the_sum_by_at_most_the_clip_norm
        kind = self._parameters[0].device.type
        return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()

    def _room(self, weights: Tensor) -> Tensor:
        """Memory for the sums, the same for each call: new pages would cost more than what is written to them."""
        if self._sums is None or len(self._sums) < len(weights) or self._sums.dtype != weights.dtype:
            self._sums = torch.empty_like(weights, memory_format=torch.contiguous_format)
        return self._sums[: len(weights)]

    @torch.enable_grad()
    def _passed(
        self, weights: Tensor | None, batch: Batch, *, rows: Rows, shares: Tensor, keeps_units: bool
    ) -> list[WatchedLayer]:
        """The trained layers after a forward and a backward pass over all rows."""
        if len(batch) != rows.sites * rows.per_site:
            raise PrivacyError(f"a batch of {len(batch)} rows; allowed: {rows.sites} times {rows.per_site}")
        model = cast("SampleModel", self.model)
        self._tried(None if weights is None else weights[:1], batch, rows_per_unit=rows.rows_per_unit)
        layers = self._layers(weights, rows=rows, keeps_units=keeps_units)
        switch = torch.zeros((), requires_grad=True, device=batch.present.device)
        with self._only_trained(), put_on(layers, switch):
            losses = model.loss(model(batch.inputs, batch.present), batch.targets)
            total = losses @ self._of_rows(shares, rows=rows, dtype=losses.dtype)
            found: Sequence[Tensor | None] = [None] * (1 + len(self.names))
            if total.requires_grad:
                with self._in_full():
                    found = torch.autograd.grad(total, [switch, *self._parameters], allow_unused=True)
        # PRIVACY: what a weight adds from outside its layer no norm would count.
        # test_weights_used_from_outside_their_layer_are_refused
        used = [name for name, outside in zip(self.names, found[1:], strict=True) if outside is not None]
        # those that were taken to compute with apart show in no graph: the call that belongs to it must have come
        used += [owner.path for owner, layer in zip(self._owners, layers, strict=True) if layer.is_unnoted]
        if used:
            raise ModelError(f'parameters {used} are used from outside their layer; set gradient_engine = "functional"')
        return layers

    def _tried(self, weights: Tensor | None, batch: Batch, *, rows_per_unit: int) -> Held:
        """What the layers hold, once they are known to take samples for rows."""
        shapes = tuple(values.shape[1:] for values in batch.inputs.values())
        held = self._held.get((rows_per_unit, shapes))
        if held is None:
            held = self._held[(rows_per_unit, shapes)] = held_by(
                self.model,
                batch,
                tried=Tried(self.names, shapes, rows_per_unit),
                layers_for=lambda rows: self._layers(weights, rows=rows, keeps_units=False),
            )
        return held

    def _layers(self, weights: Tensor | None, *, rows: Rows, keeps_units: bool) -> list[WatchedLayer]:
        """Layers that are watched for one pass, in the order of their owners."""
        if weights is None:
            each = [own.detach().unsqueeze(0) for own in self._parameters]
        else:
            each = self._each(weights.detach())
        return watched(self._owners, stacked=each, rows=rows, keeps_units=keeps_units)

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
def _not_rounded() -> Iterator[None]:
    """Products of float32 numbers on a card are not rounded to TF32, whatever was asked of the model's own."""
    # PRIVACY: measured in full and summed rounded, a contribution may be a thousandth longer than the norm.
    # test_in_tf32_a_unit_still_moves_the_sum_by_at_most_the_clip_norm
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def gathered(values: Mapping[str, Tensor], *, names: Sequence[str]) -> Float[Tensor, "P"]:
    """The named parameters one behind the other, as a row of `Stacked`."""
    return torch.cat([values[name].detach().reshape(-1) for name in names])


def _factors(
    squares: Float[Tensor, "L K U"], *, norms: Float[Tensor, "K U"], clip: StackedClip
) -> tuple[Float[Tensor, "_ K U"], Bool[Tensor, "K U"]]:
    """What each unit's gradient of each layer, or of all, is multiplied with; whether nothing of it is shortened."""
    bound = clip.norms[:, None]
    if not clip.per_layer:
        return clip_factors(norms, clip_norm=bound)[None], norms <= bound
    # PRIVACY: L layers of this norm have the clip norm together. test_stacked_per_layer_clipping_is_the_references
    share, own = bound / math.sqrt(len(squares)), squares.sqrt()
    factors = torch.where(norms.isfinite(), clip_factors(own, clip_norm=share), 0.0)
    return factors, (own <= share).all(dim=0)
