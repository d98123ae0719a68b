"""Arrays laid down piece by piece are read by safetensors' own readers as they were, whatever they look like in memory."""

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from shared.float32_file import as_pieces

SHAPES = st.one_of(array_shapes(min_dims=0, min_side=0, max_dims=4, max_side=5), st.just((0, 3)))
NAMED = st.dictionaries(st.text(max_size=9).filter(lambda name: name != "__metadata__"), arrays(np.float32, SHAPES))


@given(NAMED, st.booleans())
def test_what_is_laid_down_is_what_the_library_reads(named: dict[str, np.ndarray], is_turned: bool) -> None:
    if is_turned:
        named = {name: values.T for name, values in named.items()}
    whole = b"".join(as_pieces(named))
    for read in (safetensors.numpy.load(whole), safetensors.torch.load(whole)):
        assert read.keys() == named.keys()
        for name, values in named.items():
            found = np.asarray(read[name])
            assert (found.shape, found.dtype) == (values.shape, values.dtype)
            assert found.tobytes() == values.tobytes()


def test_no_array_is_copied() -> None:
    values = np.zeros(3, np.float32)
    _, piece = as_pieces({"a": values})
    values[1] = 1.0
    assert bytes(piece) == values.tobytes()


@pytest.mark.parametrize("kind", [np.float64, np.int64, np.bool_])
def test_other_numbers_are_refused_by_name(kind: type) -> None:
    with pytest.raises(TypeError, match="b: numbers of"):
        as_pieces({"a": np.zeros(1, np.float32), "b": np.zeros(1, kind)})
