"""Watching: for one pass the model's layers give way to layers that note what went through them.

in        a model, its trained weights [K, P] for K sites or its own, the rows of a batch
out       the watched layers by their place in the model, put on while a pass lasts
relies on layers/ for what each kind notes; on stacked.py for asking whether a weight was used from outside its layer
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from client.gradient.layers import KINDS, Rows, WatchedLayer, why_not_watched
from client.gradient.layers.linear import LinearLayer
from shared.errors import ModelError
from shared.model.matching import Matching
from shared.model.parts import parts_of
from shared.model.recurrence import SITE_WEIGHTS
from shared.privacy.mechanism import layers_of


@dataclass(frozen=True)
class Owner:
    """A layer with trained parameters."""

    path: str
    module: nn.Module
    trained: dict[str, int]
    """the layer's own names of them, and where each comes among all trained parameters"""
    way: tuple[tuple[nn.Module, str, nn.Module], ...]
    """from the model to the layer: a module, its name of the next, and the next"""

    def is_in_place(self, parameters: Sequence[nn.Parameter]) -> bool:
        """Whether the model still has the layer there, with these parameters."""
        return all(above._modules.get(name) is below for above, name, below in self.way) and all(
            self.module._parameters.get(name) is parameters[number] for name, number in self.trained.items()
        )


def owners_of(model: nn.Module, *, names: Sequence[str]) -> list[Owner]:
    """The layers in which the named parameters lie.

    Raises:
        ModelError: a layer's gradients cannot be followed; see `why_not_stacked`.
    """
    reason = why_not_stacked(model, names=names)
    if reason is not None:
        raise ModelError(f'{reason}; set gradient_engine = "functional"')
    number = {name: place for place, name in enumerate(names)}
    return [
        Owner(
            path,
            model.get_submodule(path),
            {member.rpartition(".")[2]: number[member] for member in members},
            _way(model, path),
        )
        for path, members in layers_of(tuple(names)).items()
    ]


def why_not_stacked(model: nn.Module, *, names: Sequence[str]) -> str | None:
    """Why the gradients of a model's trained parameters cannot be followed layer by layer; None where they can."""
    task = getattr(model, "task", None)
    if isinstance(task, Matching) and not task.has_independent_rows:
        # PRIVACY: one site's pairs must not be another's negatives.
        # test_sites_with_in_batch_negatives_are_trained_one_by_one
        return "the rows of a batch are each other's negatives, so that no row has a gradient of its own"
    for path in layers_of(tuple(names)):
        reason = why_not_watched(model.get_submodule(path))
        if reason is not None:
            return f"{path or 'the model itself'}: {reason}"
    return None


def watched(
    owners: Sequence[Owner], *, stacked: Sequence[Float[Tensor, "K ..."]], rows: Rows, keeps_units: bool
) -> list[WatchedLayer]:
    """A layer for each owner, to put on for one pass.

    Args:
        stacked: every site's trained parameters, in order.
        keeps_units: whether units are told apart.
    """
    device = stacked[0].device.type
    narrow = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    layers = list[WatchedLayer]()
    for owner in owners:
        weights = {
            name: stacked[owner.trained[name]] if name in owner.trained else _for_all(value, sites=rows.sites)
            for name, value in owner.module._parameters.items()
            if value is not None
        }
        if narrow is not None:
            weights = {name: value.to(narrow) for name, value in weights.items()}
        parts = parts_of(owner.module)
        # PRIVACY: a sample's parts belong to its unit, all of them. test_parts_of_a_sample_are_clipped_together
        mine = replace(rows, rows_per_unit=rows.rows_per_unit * parts) if parts > 1 else rows
        layer = KINDS[type(owner.module)](owner.module, weights=weights, trained=frozenset(owner.trained), rows=mine)
        layer.keeps_units, layer.narrow = keeps_units, narrow
        layers.append(layer)
    return layers


@contextmanager
def put_on(layers: Sequence[WatchedLayer], switch: Tensor) -> Iterator[None]:
    """The model's layers are the watched ones while it lasts.

    Args:
        switch: what asks for a gradient, so that there is a backward pass though no weight does.
    """
    try:
        for layer in layers:
            layer.module.__dict__["forward"] = _forward_of(layer, switch)
            if isinstance(layer, LinearLayer):
                layer.module.__dict__[SITE_WEIGHTS] = layer.take_weights
        yield
    finally:
        for layer in layers:
            layer.module.__dict__.pop("forward", None)
            layer.module.__dict__.pop(SITE_WEIGHTS, None)


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


def _forward_of(layer: WatchedLayer, switch: Tensor) -> Callable[..., Tensor]:
    """What stands for the module's `forward`."""
    num_rows = layer.rows.sites * layer.rows.per_site

    def forward(*given: Tensor, **named: Tensor) -> Tensor:
        if len(given) != 1 or named:
            raise ModelError(
                f"a layer is called with {len(given)} values and {sorted(named)}; one without a name can be "
                'followed; set gradient_engine = "functional"'
            )
        (values,) = given
        # PRIVACY: a layer that folds tokens or sites into rows would have each counted as another's.
        # test_rows_that_are_not_samples_are_refused
        if values.shape[0] != num_rows:
            raise ModelError(
                f"a layer sees {values.shape[0]} rows where the batch has {num_rows}; "
                'set gradient_engine = "functional"'
            )
        entered = layer.enter(values)
        if layer.narrow is not None and entered.is_floating_point():
            entered = entered.to(layer.narrow)
        outputs: Tensor = _Watch.apply(entered, switch, layer)  # type: ignore[no-untyped-call]
        layer.passed += values.numel() + outputs.numel()
        return outputs

    return forward


def _for_all(value: Tensor, *, sites: int) -> Float[Tensor, "K ..."]:
    """A parameter that no site has of its own."""
    return value.detach().expand(sites, *value.shape)


def _way(model: nn.Module, path: str) -> tuple[tuple[nn.Module, str, nn.Module], ...]:
    steps, above = list[tuple[nn.Module, str, nn.Module]](), model
    for name in path.split(".") if path else ():
        below = above.get_submodule(name)
        steps.append((above, name, below))
        above = below
    return tuple(steps)
