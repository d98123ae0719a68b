"""Float32 file: arrays as the bytes of a safetensors file, in the places where they lie already.

in        float32 arrays by name; or bytes that came, from anybody
out       a header and a view of each array's memory; one behind the other they are what safetensors' own readers read
relies on the format's description (https://github.com/huggingface/safetensors#format); loads no torch

The library's own writer copies all arrays twice, which for a model of 80 MB takes longer than to send them.
"""

import json
from collections.abc import Mapping

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from shared.errors import WireError

MOST_NAMES_BYTES = 2 << 20
"""of the list of names before the arrays: what is read of it takes more than thirty times as much memory"""
_ALIGNMENT = 8
"""of the first array's first byte; the header is filled up with spaces"""


def as_pieces(arrays: Mapping[str, np.ndarray]) -> tuple[bytes | memoryview, ...]:
    """The bytes of a file, piece by piece; they change when the arrays do.

    Raises:
        TypeError: an array holds no float32 numbers.
    """
    header, pieces, end = dict[str, object](), list[memoryview](), 0
    for name in sorted(arrays):
        values = arrays[name]
        if values.dtype != np.float32:
            raise TypeError(f"{name}: numbers of {values.dtype}; allowed: float32")
        header[name] = {"dtype": "F32", "shape": list(values.shape), "data_offsets": [end, end + values.nbytes]}
        end += values.nbytes
        if values.nbytes:  # no view of nothing can be had
            flat = np.ascontiguousarray(values, dtype="<f4").reshape(-1)
            pieces.append(flat.view(np.uint8).data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text, *pieces


def read_file(data: bytes) -> dict[str, np.ndarray]:
    """The arrays of a file, of whatever numbers, in memory of their own.

    Raises:
        WireError: it is no safetensors file, or its names take more than `MOST_NAMES_BYTES`.
    """
    if (names := int.from_bytes(data[:8], "little")) > MOST_NAMES_BYTES:
        raise WireError(f"arrays whose names and shapes take {names} bytes; allowed: {MOST_NAMES_BYTES}")
    try:
        return safetensors.numpy.load(data)
    except (SafetensorError, ValueError, TypeError, KeyError) as error:
        raise WireError(f"the arrays of a message are not readable: {error}; allowed: safetensors") from None
