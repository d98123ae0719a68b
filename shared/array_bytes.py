"""Array bytes: the numbers of one array from the bytes that came; whatever they are, numbers or one kind of error.

in        bytes in numpy's own format, from anybody
out       a float32 array
relies on nothing of numpy's reader, which also opens archives, evaluates the header as Python and takes the memory
          that the header claims before it has looked at how much there is
"""

import re
from math import prod

import numpy as np
from numpy.typing import NDArray

from shared.errors import WireError

NUMPY = "numpy.ndarray"
"""how Flower says that an array's bytes are numpy's"""
_MAGIC = b"\x93NUMPY\x01\x00"
_HEADER = re.compile(
    rb"\{'descr': '<f4', 'fortran_order': (False|True), 'shape': \(((?:\d{1,15}, ?){0,32}(?:\d{1,15})?)\), \} *\n"
)
_FORM = "allowed: float32 numbers as numpy.save writes them, format 1.0"


def read_float32(data: bytes) -> NDArray[np.float32]:
    """The array that the bytes are, in memory of its own.

    Raises:
        WireError: they are not exactly one array of float32 numbers.
    """
    start = len(_MAGIC) + 2
    end = start + int.from_bytes(data[len(_MAGIC) : start], "little")
    # PRIVACY: an error of another kind would end the round for all sites, or show in Flower's own error text.
    # test_bytes_that_numpy_would_stumble_over_are_refused
    found = _HEADER.fullmatch(data[start:end]) if data.startswith(_MAGIC) and len(data) >= end else None
    if found is None:
        raise WireError(f"an array's bytes do not begin as an array's; {_FORM}")
    shape = tuple(int(size) for size in re.findall(rb"\d+", found[2]))
    if len(data) - end != 4 * prod(shape):
        raise WireError(f"an array of {list(shape)} holds {len(data) - end} bytes; {_FORM}")
    flat = np.frombuffer(memoryview(data)[end:], dtype="<f4") if prod(shape) else np.empty(0, np.float32)
    return np.array(flat.reshape(shape, order="F" if found[1] == b"True" else "C"), dtype=np.float32, order="C")
