"""Run model: the model that a run's settings describe, built once and looked up in each round by each site.

in        a permitted run
out       its key, its size before memory is taken, what a site is sent and trains, the model itself
relies on equal settings building equal models, whose weights every request brings anew
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import prod

import torch
from torch import Tensor

from client.unchanged import Same
from shared.config import RunConfig
from shared.errors import WireError
from shared.messages import Shapes
from shared.model.exchange import exchange_of
from shared.model.multimodal import MultimodalModel, build_model
from shared.model.parameters import tensor_of


@dataclass(frozen=True)
class ExchangedShapes:
    """Tensor -> shape of what a request brings a site, and of what its update will hold."""

    sent: Shapes
    """of all that the request holds; one object for all sites alike"""
    trained: Shapes
    """of what trains here, in the model's order"""
    personal: tuple[str, ...]
    """of those, what stays here; the rest is the update"""


@dataclass(frozen=True)
class RunKey:
    """A run's settings as a key: equal settings are equal keys."""

    digest: str
    run: RunConfig

    def __hash__(self) -> int:
        return hash(self.digest)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RunKey) and self.digest == other.digest


def key_of(run: RunConfig) -> RunKey:
    """The key of a run; its settings are gone through once for each object."""
    return _key_of(Same(run))


@lru_cache(maxsize=2)
def num_parameters(key: RunKey) -> int:
    """How large the model is, with what it is given; nothing of that size is made."""
    with torch.device("meta"):
        model = build_model(key.run)
    given = exchange_of(model, key.run.modalities).given
    tensors = {name: tensor_of(model, name) for name in given} | dict(model.named_parameters())
    return sum(tensor.numel() for tensor in tensors.values())


@lru_cache(maxsize=2)
def built_model(key: RunKey) -> MultimodalModel:
    """The model, the same object each time: whoever sets its weights uses them before the next one does."""
    return build_model(key.run)


@lru_cache(maxsize=64)
def exchanged_shapes(
    key: RunKey, modalities: tuple[str, ...], *, tasks: tuple[str, ...] | None = None, frozen: tuple[str, ...] = ()
) -> ExchangedShapes:
    """The shapes of what a site is sent and trains; arguments as `exchange_of`."""
    model = built_model(key)
    exchange = exchange_of(model, modalities, tasks=tasks, frozen=frozen)
    sent = {name: tuple(tensor_of(model, name).shape) for name in exchange.sent}
    trains = {*exchange.updated, *exchange.personal}
    trained = {name: sent[name] for name, _ in model.named_parameters() if name in trains}
    return ExchangedShapes(sent=sent, trained=trained, personal=exchange.personal)


def num_numbers(shapes: Shapes) -> int:
    """How many numbers tensors of these shapes hold; counted once for each object."""
    return _num_numbers(Same(shapes))


def model_with(key: RunKey, weights: Mapping[str, Tensor]) -> MultimodalModel:
    """The model with weights in place of those it had, and the others as they were."""
    model = built_model(key)
    with torch.no_grad():
        for name, value in weights.items():
            tensor_of(model, name).copy_(value)
    return model


def check_weights(weights: dict[str, Tensor], *, shapes: Shapes) -> None:
    """Weights that were decoded for somebody are those that a site must be sent, of its model's shapes.

    Raises:
        WireError: unknown or missing names, another shape or type.
    """
    came = {name: tuple(value.shape) for name, value in weights.items()}
    if came != shapes:
        differing = sorted(name for name in {*came, *shapes} if came.get(name) != shapes.get(name))
        raise WireError(
            f"arrays {differing[:9]}: allowed: the {len(shapes)} tensors of this site's request, in their shapes"
        )
    kinds = {str(value.dtype) for value in weights.values()}
    if kinds != {"torch.float32"}:
        raise WireError(f"arrays of types {sorted(kinds)}; allowed: float32")


@lru_cache(maxsize=64)
def _num_numbers(shapes: Same[Shapes]) -> int:
    return sum(prod(shape) for shape in shapes.it.values())


@lru_cache(maxsize=1024)
def _key_of(run: Same[RunConfig]) -> RunKey:
    return RunKey(run.it.digest, run.it)
