"""What numpy writes is read as numpy reads it."""

import io

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from shared.array_bytes import read_float32


@given(arrays(np.float32, array_shapes(min_dims=0, min_side=0, max_dims=4)), st.booleans())
def test_what_numpy_writes_is_read_as_it_was(values: np.ndarray, is_turned: bool) -> None:
    values = values.T if is_turned else values
    file = io.BytesIO()
    np.save(file, values, allow_pickle=False)
    found = read_float32(file.getvalue())
    assert (found.shape, found.dtype) == (values.shape, values.dtype)
    assert found.tobytes() == values.tobytes()
