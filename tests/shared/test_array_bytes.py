"""Bytes of our own arrays are numpy's own format: numpy and the reader for what comes from outside read them alike."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from shared.array_bytes import float32_bytes, read_float32
from shared.errors import WireError


@given(arrays(np.float32, array_shapes(min_dims=0, min_side=0, max_dims=4)), st.booleans())
def test_our_bytes_are_numpys(values: np.ndarray, is_turned: bool) -> None:
    values = values.T if is_turned else values
    made = float32_bytes(values)
    for found in (np.load(io.BytesIO(made), allow_pickle=False), read_float32(made)):
        assert (found.shape, found.dtype) == (values.shape, values.dtype)
        assert found.tobytes() == values.tobytes()


def test_other_numbers_are_refused() -> None:
    with pytest.raises(WireError, match="an array of float64"):
        float32_bytes(np.zeros(2))
