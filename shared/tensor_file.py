"""Tensor file: named tensors and a few words about them as bytes that run no code when they are read.

in        tensors by name; or the path of a file that somebody wrote
out       bytes for a file; or what is in one
relies on the safetensors format, which holds numbers and text and nothing that could be executed
"""

from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

Named = dict[str, Tensor]


def as_bytes(tensors: Mapping[str, Tensor], *, words: Mapping[str, str] | None = None) -> bytes:
    """The tensors as one file, with words about them if there are any."""
    # a copy each, laid down in order: tensors that share memory, or are views in another order, are refused
    copies = {name: value.detach().clone(memory_format=torch.contiguous_format) for name, value in tensors.items()}
    return safetensors.torch.save(copies, dict(words or {}))


def from_bytes(held: bytes) -> Named:
    """What such bytes hold.

    Raises:
        OSError: they are no such file.
    """
    try:
        return safetensors.torch.load(held)
    except (SafetensorError, ValueError) as error:
        raise OSError(f"no file of tensors: {error}") from None


def read_tensors(path: Path) -> tuple[Named, dict[str, str]]:
    """What a file holds, and the words about it.

    Raises:
        FileNotFoundError: there is none.
        OSError: it cannot be read, or it is no such file.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except SafetensorError as error:
        raise OSError(f"no file of tensors: {error}") from None
