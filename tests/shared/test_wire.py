"""A message is what was agreed, or it is refused with the reason."""

import copy
import io
import pickle
from collections.abc import Callable

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, Metadata, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.supercore.inflatable.inflatable_object import (
    UnexpectedObjectContentError,
    get_all_nested_objects,
    get_object_id,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents, validate_object_content

from shared.errors import WireError
from shared.local_array import LocalArray
from shared.messages import (
    PROTOCOL_VERSION,
    Hello,
    PrivacyStatement,
    Refusal,
    ReplyHeader,
    StatisticsHeader,
    StatisticsReply,
    TrainReply,
    reply_fields,
)
from shared.record_names import ARRAYS
from shared.wire import (
    LARGEST_VALUE,
    LocalReply,
    array_shapes,
    decode_arrays,
    decode_hello,
    decode_reply,
    decode_statistics,
    decode_statistics_header,
    decode_train_message,
    encode_reply,
    encode_statistics_request,
    local_array_record,
)
from tests.tiny import tiny_config

STATEMENT = PrivacyStatement(
    unit="record", epsilon=1.5, delta=1e-5, clip_norm=1.0, noise_multiplier=1.1, sample_rate=0.1, steps_per_round=2,
    accountant="rdp", reproducible_noise=False,
)  # fmt: skip
HEADER = ReplyHeader(protocol_version=PROTOCOL_VERSION, run_id="r", round_number=3, nominal_size=40, privacy=STATEMENT)
SHAPES = {"w": (2, 3), "scale": ()}


def reply() -> TrainReply:
    return TrainReply(header=HEADER, update={"w": torch.arange(6.0).view(2, 3), "scale": torch.tensor(0.5)})


def with_arrays(**arrays: Array) -> RecordDict:
    return RecordDict({"header": ConfigRecord({"json": HEADER.model_dump_json()}), "arrays": ArrayRecord(dict(arrays))})


def array(values: np.ndarray) -> Array:
    return Array(values)


GOOD = {"w": np.zeros((2, 3), np.float32), "scale": np.zeros((), np.float32)}


def test_a_reply_survives_the_protobuf_of_a_real_deployment_bit_for_bit() -> None:
    sent = reply()
    came = decode_reply(recorddict_from_proto(recorddict_to_proto(encode_reply(sent))), shapes=SHAPES)
    assert isinstance(came, TrainReply)
    assert came.header == sent.header
    assert all(torch.equal(came.update[name], sent.update[name]) for name in SHAPES)


def arrays_of(records: RecordDict) -> ArrayRecord:
    found = records[ARRAYS]
    assert isinstance(found, ArrayRecord)
    return found


def inflated(records: RecordDict) -> RecordDict:
    """As Flower 1.41 sends a message: every object in it by itself, and put together again on the other side."""
    contents = {name: found.deflate() for name, found in get_all_nested_objects(records).items()}
    for content in contents.values():
        validate_object_content(content)
    came = inflate_object_from_contents(records.object_id, contents)
    assert isinstance(came, RecordDict)
    return came


@pytest.mark.parametrize(
    "carry",
    [
        lambda records: recorddict_from_proto(recorddict_to_proto(records)),
        inflated,
        lambda records: RecordDict({ARRAYS: pickle.loads(pickle.dumps(records[ARRAYS]))}),
        copy.deepcopy,
    ],
    ids=["protobuf", "objects", "pickle", "copy"],
)
def test_only_plain_arrays_come_out_of_another_process(carry: Callable[[RecordDict], RecordDict]) -> None:
    """A tensor that is taken as it is was put there in this process, and never came over a network."""
    sent = encode_reply(reply())
    came = carry(sent)
    assert {type(array) for array in arrays_of(sent).values()} == {LocalArray}
    assert {type(array) for array in arrays_of(came).values()} == {Array}
    assert all(np.array_equal(arrays_of(came)[name].numpy(), value.numpy()) for name, value in reply().update.items())


def test_an_object_that_claims_to_be_a_local_array_is_no_message() -> None:
    content = LocalArray(torch.zeros(2)).deflate()
    assert content.startswith(b"Array ")
    forged = content.replace(b"Array ", b"LocalArray ", 1)
    with pytest.raises(UnexpectedObjectContentError, match="not supported"):
        validate_object_content(forged)
    with pytest.raises(KeyError, match="LocalArray"):
        inflate_object_from_contents(get_object_id(forged), {get_object_id(forged): forged})


def test_what_stays_in_the_process_is_the_tensor_itself_and_never_becomes_bytes() -> None:
    sent = reply()
    records = encode_reply(sent)
    came = decode_reply(records, shapes=SHAPES)
    assert isinstance(came, TrainReply)
    assert all(came.update[name].data_ptr() == value.data_ptr() for name, value in sent.update.items())
    for array in arrays_of(records).values():
        assert not {"data", "_plain"} & set(vars(array))
        assert array.data is array.data
    assert array_shapes(records) == SHAPES


def test_a_local_array_keeps_what_it_was_made_of() -> None:
    array = LocalArray(torch.zeros(2))
    for name, value in (("shape", (3,)), ("data", b""), ("dtype", "int8"), ("stype", "x"), ("tensor", torch.ones(2))):
        with pytest.raises(AttributeError, match="cannot be changed"):
            setattr(array, name, value)
    with pytest.raises(AttributeError):
        _ = array.colour


def in_a_row(values: list[float]) -> dict[str, torch.Tensor]:
    """The parameters as views of one row, as a cohort's are."""
    row = torch.tensor(values)
    return {"w": row[:6].view(2, 3), "scale": row[6]}


@pytest.mark.parametrize("place", range(7))
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1.01e9, -1.01e9])
@pytest.mark.parametrize("is_row", [True, False])
def test_one_number_that_cannot_be_is_found_wherever_it_stands(place: int, value: float, is_row: bool) -> None:
    numbers = [0.5, -LARGEST_VALUE, LARGEST_VALUE, 0.0, 1.0, 2.0, 3.0]
    assert decode_reply(encode_reply(TrainReply(HEADER, in_a_row(numbers))), shapes=SHAPES)
    numbers[place] = value
    arrays = in_a_row(numbers) if is_row else {name: part.clone() for name, part in in_a_row(numbers).items()}
    with pytest.raises(WireError, match=f"'{'scale' if place == 6 else 'w'}' holds NaN, infinity or a size"):
        decode_reply(encode_reply(TrainReply(HEADER, arrays)), shapes=SHAPES)


def local(said: TrainReply) -> LocalReply:
    return LocalReply(said, metadata=Metadata(1, "reply-1", 7, 1, "message-1", "3", 0.0, 60.0, "train"))


def test_an_update_that_stays_in_the_process_never_becomes_records() -> None:
    sent = reply()
    message = local(sent)
    came = decode_train_message(message, shapes=SHAPES)
    assert isinstance(came, TrainReply)
    assert message.unread is sent
    assert message.has_content()
    assert came.header == sent.header
    assert all(came.update[name] is value for name, value in sent.update.items())
    assert not decode_train_message(local(with_gradient()), shapes=SHAPES).update["w"].requires_grad  # type: ignore[union-attr]


def with_gradient() -> TrainReply:
    return TrainReply(HEADER, {"w": torch.zeros(2, 3, requires_grad=True), "scale": torch.tensor(0.5)})


@pytest.mark.parametrize(
    ("header", "changed", "said"),
    [
        (HEADER, {"w": torch.zeros(3, 2)}, r"'w' is float32 \[3, 2\]; allowed: float32 \[2, 3\]"),
        (HEADER, {"w": torch.zeros(2, 3, dtype=torch.float64)}, r"'w' is float64 \[2, 3\]"),
        (HEADER, {"w": torch.full((2, 3), np.nan)}, "'w' holds NaN"),
        (HEADER, {"scale": torch.tensor(-2e9)}, "'scale' holds NaN, infinity or a size"),
        (HEADER, {"v": torch.zeros(1)}, r"unknown \['v'\]"),
        (ReplyHeader.model_construct(**{**dict(HEADER), "nominal_size": 0}), {}, "nominal_size"),
        (ReplyHeader.model_construct(**{**dict(HEADER), "unclipped_share": np.nan, "run_id": None}), {}, "run_id"),
        (ReplyHeader.model_construct(**{**dict(HEADER), "run_id": "r" * 1_100_000}), {}, "no header of at most"),
    ],
)
@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
def test_an_update_that_never_became_records_is_checked_as_one_that_did(
    header: ReplyHeader, changed: dict[str, torch.Tensor], said: str
) -> None:
    message = local(TrainReply(header, reply().update | changed))
    with pytest.raises(WireError, match=said):
        decode_train_message(message, shapes=SHAPES)
    # and again, as records
    assert message.content is message.content
    assert message.unread is None
    with pytest.raises(WireError, match=said):
        decode_train_message(message, shapes=SHAPES)
    if changed.keys() <= SHAPES.keys() and changed:
        one_less = {name: value for name, value in reply().update.items() if name not in changed}
        with pytest.raises(WireError, match="missing"):
            decode_train_message(local(TrainReply(header, one_less)), shapes=SHAPES)


def test_records_that_were_looked_at_are_what_a_local_reply_says() -> None:
    """Who holds them may have written into them."""
    message = local(reply())
    message.content["log"] = ConfigRecord({"loss": 0.25})
    with pytest.raises(WireError, match="log"):
        decode_train_message(message, shapes=SHAPES)
    message = local(reply())
    message.content = encode_reply(Refusal("refused"))
    assert decode_train_message(message, shapes=SHAPES) == Refusal("refused")


def test_a_local_reply_is_a_plain_message_in_another_process_and_in_a_copy() -> None:
    for came in (copy.deepcopy(local(reply())), pickle.loads(pickle.dumps(local(reply())))):
        assert type(came) is Message
        assert {type(array) for array in arrays_of(came.content).values()} == {Array}
        decoded = decode_train_message(came, shapes=SHAPES)
        assert isinstance(decoded, TrainReply)
        assert torch.equal(decoded.update["w"], reply().update["w"])


def test_headers_of_one_text_are_one_object_and_another_text_is_another() -> None:
    other = TrainReply(HEADER.model_copy(update={"nominal_size": 41}), reply().update)
    first, second, third = (decode_reply(encode_reply(said), shapes=SHAPES) for said in (reply(), reply(), other))
    assert isinstance(first, TrainReply)
    assert isinstance(second, TrainReply)
    assert isinstance(third, TrainReply)
    assert first.header is second.header
    assert (first.header.nominal_size, third.header.nominal_size) == (40, 41)


@pytest.mark.parametrize(
    "tensor", [torch.zeros(3, 2), torch.zeros(2, 3, dtype=torch.float64), torch.zeros(6), torch.zeros(2, 3, dtype=torch.int32)]
)  # fmt: skip
def test_a_local_array_that_is_not_as_agreed_is_refused(tensor: torch.Tensor) -> None:
    records = RecordDict(
        {
            "header": ConfigRecord({"json": HEADER.model_dump_json()}),
            ARRAYS: local_array_record({"w": tensor, "scale": torch.tensor(0.5)}),
        }
    )
    with pytest.raises(WireError, match="'w' is"):
        decode_arrays(records, shapes=SHAPES)


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        ("w", np.zeros((3, 2), np.float32), r"\[3, 2\]"),
        ("w", np.zeros((2, 3), np.float64), "float64"),
        ("w", np.full((2, 3), np.nan, np.float32), "NaN, infinity"),
        ("scale", np.array(np.inf, np.float32), "NaN, infinity"),
        ("scale", np.array(-3e38, np.float32), "a size above"),
        ("extra", np.zeros(1, np.float32), "unknown"),
    ],
)
def test_an_array_that_is_not_as_agreed_is_refused(name: str, values: np.ndarray, said: str) -> None:
    arrays = {key: array(value) for key, value in {**GOOD, name: values}.items()}
    with pytest.raises(WireError, match=said):
        decode_arrays(with_arrays(**arrays), shapes=SHAPES)


def test_a_missing_parameter_is_refused() -> None:
    with pytest.raises(WireError, match=r"missing \['scale'\]"):
        decode_arrays(with_arrays(w=array(GOOD["w"])), shapes=SHAPES)


def lying(data: bytes) -> Array:
    return Array(dtype="float32", shape=(2, 3), stype="numpy.ndarray", data=data)


def saved(values: np.ndarray, *, allow_pickle: bool = False) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=allow_pickle)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "data",
    [b"", b"not numpy at all", saved(np.zeros((5, 1), np.float32)), saved(np.array([{}], object), allow_pickle=True),
     saved(np.zeros((2, 3), np.float32))[:-4], b"\0" * 100_000],
)  # fmt: skip
def test_bytes_that_do_not_hold_what_is_claimed_are_refused(data: bytes) -> None:
    with pytest.raises(WireError):
        decode_arrays(with_arrays(w=lying(data), scale=array(GOOD["scale"])), shapes=SHAPES)


@pytest.mark.parametrize(
    "text", ["", "{}", "[1]", HEADER.model_dump_json().replace('"run_id"', '"rows":[1],"run_id"'), "x" * 2_000_000]
)
def test_a_header_that_is_not_the_allow_list_is_refused(text: str) -> None:
    records = RecordDict({"header": ConfigRecord({"json": text}), "arrays": ArrayRecord({})})
    with pytest.raises(WireError):
        decode_reply(records, shapes={})


def test_an_additional_record_beside_the_agreed_ones_is_refused() -> None:
    records = encode_reply(reply())
    records["metrics"] = ConfigRecord({"train_loss": 0.1})
    with pytest.raises(WireError, match="metrics"):
        decode_reply(records, shapes=SHAPES)


def test_a_refusal_is_a_code_and_nothing_else() -> None:
    assert decode_reply(encode_reply(Refusal("refused")), shapes=SHAPES) == Refusal("refused")
    talkative = RecordDict({"refusal": ConfigRecord({"code": "refused", "text": "row 17 says joy"})})
    with pytest.raises(WireError, match="more than a code"):
        decode_reply(talkative, shapes=SHAPES)
    with pytest.raises(WireError, match="small letters"):
        decode_hello(RecordDict({"refusal": ConfigRecord({"code": "Patient 17"})}))


def test_a_hello_with_a_name_that_could_break_a_report_is_refused() -> None:
    text = (
        Hello(protocol_version=PROTOCOL_VERSION, site="ward", modalities=("image",))
        .model_dump_json()
        .replace("ward", "<script>")
    )
    with pytest.raises(WireError):
        decode_hello(RecordDict({"header": ConfigRecord({"json": text})}))


def test_every_value_of_a_reply_is_named_among_its_fields() -> None:
    fields = reply_fields(reply())
    assert {"update.w", "update.scale", "privacy.epsilon", "nominal_size"} <= set(fields)
    said = len(STATEMENT.model_dump(exclude_none=True)) + len(HEADER.model_dump(exclude_none=True))
    assert len(fields) == said - 1 + len(SHAPES)


COUNTS = StatisticsReply(
    protocol_version=PROTOCOL_VERSION, run_id="r", counts=(12.25, -0.5, LARGEST_VALUE), privacy=STATEMENT
)


def over_the_wire(records: RecordDict) -> RecordDict:
    return recorddict_from_proto(recorddict_to_proto(records))


def test_counts_survive_the_protobuf_of_a_real_deployment_bit_for_bit() -> None:
    assert decode_statistics(over_the_wire(encode_reply(COUNTS)), num_counts=3) == COUNTS
    assert decode_statistics(encode_reply(Refusal("refused")), num_counts=3) == Refusal("refused")


def test_a_request_for_counts_survives_and_holds_nothing_else() -> None:
    asked = StatisticsHeader(
        protocol_version=PROTOCOL_VERSION,
        run=tiny_config(private=True, statistics={"noise_multiplier": 2.0}),
        run_id="r",
        planned_rounds=3,
    )
    assert decode_statistics_header(over_the_wire(encode_statistics_request(asked))) == asked
    more = encode_statistics_request(asked)
    more["weights"] = ArrayRecord({})
    with pytest.raises(WireError, match="weights"):
        decode_statistics_header(more)
    with pytest.raises(WireError, match="no header"):
        decode_statistics_header(RecordDict({"header": ConfigRecord({"text": "counts, please"})}))


@pytest.mark.parametrize("count", ["1e10", "-2e9", "NaN", "Infinity", "1e999", '"many"', "null"])
def test_a_count_that_is_no_number_of_agreed_size_is_refused(count: str) -> None:
    text = COUNTS.model_dump_json().replace("12.25", count)
    assert count in text
    with pytest.raises(WireError):
        decode_statistics(RecordDict({"header": ConfigRecord({"json": text})}), num_counts=3)


@pytest.mark.parametrize("num_counts", [1, 2, 4])
def test_counts_of_another_number_of_classes_are_refused(num_counts: int) -> None:
    with pytest.raises(WireError, match=f"allowed: {num_counts}"):
        decode_statistics(encode_reply(COUNTS), num_counts=num_counts)


def test_a_record_beside_the_counts_is_refused() -> None:
    records = encode_reply(COUNTS)
    records["metrics"] = ConfigRecord({"rows": 40})
    with pytest.raises(WireError, match="metrics"):
        decode_statistics(records, num_counts=3)
