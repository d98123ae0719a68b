"""Preprocessing: one raw value of a modality becomes one tensor of fixed shape.

in        what media.py opened: an image, a text, a waveform, a clip, an array
out       tensors that dataset.py stacks, caches by `digest` and hands to the encoder of the modality
relies on the run's settings and public weights alone: nothing is ever learned from the values that pass through
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from shared.media import Clip, Waveform
from shared.settings import Settings

RawValue: TypeAlias = Image.Image | str | Waveform | Clip | npt.NDArray[np.generic]


@runtime_checkable
class Preprocessor(Protocol):
    """The way from one raw value to what an encoder takes; the same on every machine with the same `digest`."""

    @property
    def digest(self) -> str:
        """SHA-256 over name, settings, code version and frozen weights: equal digest, equal tensors."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one finished value."""

    def read(self, value: RawValue) -> Tensor:
        """One value as one tensor of a fixed shape, perhaps of a compact type such as uint8."""

    def finish(self, values: Tensor) -> Tensor:
        """Stacked results of `read` ([B, ...]) as [B, *shape]; a frozen network runs here, without gradients."""


def digest_of(name: str, *, version: int, settings: Settings, more: Mapping[str, object] | None = None) -> str:
    """SHA-256 hex over what decides a preprocessor's result.

    Args:
        name: the preprocessor's own name.
        version: raised by whoever changes what the code computes, so that cached results are not mixed.
        settings: its options, defaults included.
        more: what else the result depends on, such as the digest of frozen weights.
    """
    facts = {"name": name, "version": version, "settings": settings.model_dump(mode="json"), "more": dict(more or {})}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def in_pieces(values: Tensor, *, run: Callable[[Tensor], Tensor], shape: tuple[int, ...], rows: int = 32) -> Tensor:
    """`run` over a few rows at a time, so that a frozen network needs little memory; no rows give [0, *shape]."""
    with torch.no_grad():
        pieces = [run(values[start : start + rows]) for start in range(0, len(values), rows)]
    return torch.cat(pieces) if pieces else torch.zeros(0, *shape)


def wrong_kind(value: RawValue, *, wanted: str) -> TypeError:
    """What to raise when a caller hands a preprocessor a value of another kind."""
    return TypeError(f"this preprocessor reads {wanted}; came: {type(value).__name__}")
