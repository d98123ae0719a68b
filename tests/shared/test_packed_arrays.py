"""Arrays packed as one come out as they went in; whatever else is in their place is one kind of error."""

import json

import numpy as np
import pytest
import safetensors.numpy
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from shared.errors import WireError
from shared.messages import PROTOCOL_VERSION, ReplyHeader, TrainReply
from shared.packed_arrays import PACKED, SAFETENSORS, is_packed, pack, record_of, unpack
from shared.record_names import ARRAYS, HEADER
from shared.wire import array_shapes as said_shapes
from shared.wire import decode_arrays, decode_reply, encode_reply, packed

NAMED = st.dictionaries(
    st.text(max_size=9).filter(lambda name: name != "__metadata__"),
    arrays(np.float32, array_shapes(min_dims=0, min_side=0, max_dims=3, max_side=4)),
    max_size=5,
)
SHAPES = {"w": (2, 3), "scale": ()}
HEAD = ReplyHeader(protocol_version=PROTOCOL_VERSION, run_id="r", round_number=3, nominal_size=40, privacy=None)
REPLY = TrainReply(header=HEAD, update={"w": torch.arange(6.0).view(2, 3), "scale": torch.tensor(0.5)})


def message_of(data: bytes) -> RecordDict:
    return RecordDict({HEADER: ConfigRecord({"json": HEAD.model_dump_json()}), ARRAYS: record_of(data)})


def file_of(**values: np.ndarray) -> bytes:
    return safetensors.numpy.save(values)


@given(NAMED)
def test_what_is_packed_comes_out_as_it_was(named: dict[str, np.ndarray]) -> None:
    record = pack(named)
    assert is_packed(record)
    came = unpack(record)
    assert came.keys() == named.keys()
    for name, values in named.items():
        assert (came[name].shape, came[name].dtype) == (values.shape, values.dtype)
        assert came[name].tobytes() == values.tobytes()


@given(st.one_of(st.binary(max_size=200), st.binary(max_size=60).map(lambda tail: file_of(w=np.ones(3)) + tail)))
def test_any_bytes_are_arrays_or_refused(data: bytes) -> None:
    try:
        came = unpack(record_of(data))
    except WireError:
        return
    assert all(values.dtype == np.float32 for values in came.values())


def test_a_reply_is_the_same_packed_or_not() -> None:
    sent = encode_reply(REPLY)
    came = decode_reply(packed(sent), shapes=SHAPES)
    assert isinstance(came, TrainReply)
    assert came.header == REPLY.header
    assert all(torch.equal(came.update[name], REPLY.update[name]) for name in SHAPES)
    assert said_shapes(packed(sent)) == said_shapes(sent) == SHAPES
    # what is packed already, or holds no arrays, is itself
    once = packed(sent)
    assert packed(once) is once
    nothing = RecordDict({HEADER: ConfigRecord({"json": "{}"})})
    assert packed(nothing) is nothing


@pytest.mark.parametrize("number", [1, 60])
def test_a_packed_message_is_six_objects_however_many_arrays_it_has(number: int) -> None:
    update = {f"layer-{each}": torch.full((4,), float(each)) for each in range(number)}
    records = packed(encode_reply(TrainReply(header=HEAD, update=update)))
    # with the message that they are in; without being packed, two for each array
    assert len(get_all_nested_objects(records)) + 1 == 6


W, SCALE = np.zeros((2, 3), np.float32), np.zeros((), np.float32)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (file_of(w=W), "missing \\['scale'\\]"),
        (file_of(w=W, scale=SCALE, more=SCALE), "unknown \\['more'\\]"),
        (file_of(w=W.reshape(3, 2), scale=SCALE), "'w' is float32 \\[3, 2\\]"),
        (file_of(w=W.astype(np.float64), scale=SCALE), "'w' is float64"),
        (file_of(w=W + np.float32("nan"), scale=SCALE), "holds NaN"),
        (file_of(w=W, scale=SCALE)[:-1], "not readable"),
        (b"", "not readable"),
        ((1 << 40).to_bytes(8, "little") + b"{}", "names and shapes take"),
    ],
)
def test_a_packed_update_is_judged_as_any_other(data: bytes, why: str) -> None:
    with pytest.raises(WireError, match=why):
        decode_arrays(message_of(data), shapes=SHAPES)
    with pytest.raises(WireError, match=why):
        decode_reply(message_of(data), shapes=SHAPES)


def test_a_parameter_may_bear_the_name() -> None:
    """What is one array by its name alone is not packed."""
    values = np.ones(3, np.float32)
    records = RecordDict({HEADER: ConfigRecord({"json": "{}"}), ARRAYS: ArrayRecord({PACKED: Array(values)})})
    assert not is_packed(ArrayRecord({PACKED: Array(values)}))
    assert decode_arrays(records, shapes={PACKED: (3,)})[PACKED].tolist() == [1.0, 1.0, 1.0]


def test_a_lying_description_changes_nothing() -> None:
    """The outer shape and type are the sender's claim; the file says what there is."""
    data = file_of(w=W, scale=SCALE)
    lying = ArrayRecord({PACKED: Array("float32", (10**9,), SAFETENSORS, data)})
    records = RecordDict({HEADER: ConfigRecord({"json": json.dumps({})}), ARRAYS: lying})
    assert decode_arrays(records, shapes=SHAPES).keys() == SHAPES.keys()
