"""Packed arrays: all arrays of a message as one, the bytes of a safetensors file; few objects cross the network.

in        float32 arrays by name; or a record of arrays as it came, from anybody
out       the other of the two; WireError for what is no such file, or holds other numbers
relies on float32_file.py for the bytes; loads no torch, because a site's carrier does without

Flower sends each array of a message as two objects, every one asked for by a request of its own, at some 6 ms of the
SuperLink's only core. A network of sixty arrays costs a site 250 requests a round; packed, a dozen.
"""

from collections.abc import Mapping

import numpy as np
from flwr.app import Array, ArrayRecord

from shared.errors import WireError
from shared.float32_file import as_pieces, read_file

PACKED, SAFETENSORS = "packed", "safetensors"


def pack(arrays: Mapping[str, np.ndarray]) -> ArrayRecord:
    """A record of one array, copied once.

    Raises:
        TypeError: an array holds no float32 numbers.
    """
    return record_of(b"".join(as_pieces(arrays)))


def record_of(file: bytes) -> ArrayRecord:
    """A record of one array that is a safetensors file, which is not looked at."""
    return ArrayRecord({PACKED: Array("uint8", (len(file),), SAFETENSORS, file)})


def file_of(arrays: ArrayRecord) -> bytes:
    """The file in a packed record, as it came."""
    return arrays[PACKED].data


def is_packed(arrays: ArrayRecord) -> bool:
    """Whether a record says that it holds all arrays in one."""
    return set(arrays) == {PACKED} and arrays[PACKED].stype == SAFETENSORS


def unpack(arrays: ArrayRecord) -> dict[str, np.ndarray]:
    """The arrays of a packed record by name, in memory of their own.

    Raises:
        WireError: it is no safetensors file, names too much, or holds other numbers than float32.
    """
    found = read_file(file_of(arrays))
    for name, values in found.items():
        if values.dtype != np.float32:
            raise WireError(f"array {name[:200]!r} is {values.dtype}; allowed: float32")
    return found
