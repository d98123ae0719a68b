"""Wire: typed messages to Flower's records and back, every array checked against what the model expects.

in        train and statistics requests and replies, introductions, Refusal; or a RecordDict, trusted in nothing
out       the other of the two; WireError for anything that does not have the agreed form
relies on array_bytes.py for what Flower's arrays hold: numpy's format, read without numpy's reader

What stays in this process is never made into bytes: a `LocalArray` hands the tensor itself over, a `LocalReply` the
update. Nobody writes into a tensor that came in a message: all that were sent the same message share it.
"""

import re
from collections.abc import Mapping
from functools import lru_cache

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, Metadata, RecordDict
from flwr.app.message.message import make_message
from torch import Tensor

from shared.array_bytes import NUMPY, read_float32
from shared.errors import ConfigError, VersionMismatch, WireError
from shared.local_array import LocalArray
from shared.messages import (
    PROTOCOL_VERSION,
    Hello,
    HelloRequest,
    OtherVersion,
    Refusal,
    ReplyHeader,
    RequestHeader,
    Shapes,
    Spoken,
    StatisticsHeader,
    StatisticsReply,
    TrainReply,
    TrainRequest,
)
from shared.packed_arrays import is_packed, pack, unpack
from shared.record_names import ARRAYS, HEADER, MAX_HEADER_CHARACTERS, REFUSAL, REFUSAL_CODE
from shared.row import view_of_all
from shared.settings import AnySettings, parse_settings_json
from shared.version import VERSION, release_of

LARGEST_VALUE = 1e9
"""of a weight, a change or a count; float32 ends at 3e38, and a mean of such numbers is infinite"""
_HELD_HEADER_CHARACTERS = 4096


class LocalReply(Message):
    """A site's update on its way through this process; made into records where somebody asks for its content.

    A reply that came from another process is always a plain `Message`: pickle is told to make one.
    """

    def __init__(self, reply: TrainReply, *, metadata: Metadata) -> None:
        """Takes the update as it is, without a copy; nobody may write into it from now on."""
        # past Flower's own, which looks at every argument's type, for each site of a round
        self.__dict__.update(_metadata=metadata, _content=None, _error=None, _reply=reply)

    @property
    def unread(self) -> TrainReply | None:
        """The update, until somebody has asked for its records: these may have been written into since."""
        reply: TrainReply | None = self.__dict__["_reply"]
        return reply

    @property
    def content(self) -> RecordDict:
        """The update as records, made once."""
        reply = self.unread
        if reply is not None:
            self.__dict__.update(_content=encode_reply(reply), _reply=None)
        made: RecordDict = self.__dict__["_content"]
        return made

    @content.setter
    def content(self, value: RecordDict) -> None:
        self.__dict__.update(_content=value, _reply=None)

    def has_content(self) -> bool:
        """Always."""
        return True

    def __reduce__(self) -> tuple[object, ...]:
        """As a Message, in every other process and in every copy."""
        return make_message, (self.metadata, self.content)


def encode_request(request: TrainRequest) -> RecordDict:
    """A train request as records, which any number of messages may share."""
    return _encode(request.header.model_dump_json(), request.weights)


def encode_hello_request(asked: HelloRequest) -> RecordDict:
    """The question who a site is as records."""
    return RecordDict({HEADER: ConfigRecord({"json": asked.model_dump_json()})})


def encode_statistics_request(header: StatisticsHeader) -> RecordDict:
    """A request for noisy counts as records."""
    return RecordDict({HEADER: ConfigRecord({"json": header.model_dump_json()})})


def encode_reply(reply: TrainReply | StatisticsReply | Hello | OtherVersion | Refusal) -> RecordDict:
    """Anything a site may say as records."""
    if isinstance(reply, Refusal):
        return RecordDict({REFUSAL: ConfigRecord({"code": reply.code})})
    if isinstance(reply, Hello | OtherVersion | StatisticsReply):
        return RecordDict({HEADER: ConfigRecord({"json": reply.model_dump_json()})})
    return _encode(reply.header.model_dump_json(), reply.update)


def decode_request_header(records: RecordDict) -> RequestHeader:
    """The settings of a train request; its weights follow once the model says what they must look like.

    Raises:
        WireError: not a train request, or its settings are not allowed.
    """
    return _header(RequestHeader, records)


def decode_statistics_header(records: RecordDict) -> StatisticsHeader:
    """A request for noisy counts.

    Raises:
        WireError: not such a request, more than one, or its settings are not allowed.
    """
    _only_header(records)
    return _header(StatisticsHeader, records)


def decode_query(records: RecordDict) -> HelloRequest | StatisticsHeader:
    """What a query asks: who the site is, or for noisy counts.

    Raises:
        VersionMismatch: the server's Motet does not work with this one.
        WireError: neither of the two.
    """
    _only_header(records)
    spoken = _header(Spoken, records)
    if spoken.purpose != HelloRequest.model_fields["purpose"].default:
        return _header(StatisticsHeader, records)
    if not is_of_this_version(spoken):
        raise VersionMismatch(
            f"the server runs Motet {spoken.version or 'of an unknown version'} (protocol {spoken.protocol_version}), "
            f"this site {VERSION} (protocol {PROTOCOL_VERSION}); install the same release on both"
        )
    return _header(HelloRequest, records)


def decode_hello(records: RecordDict) -> Hello | OtherVersion | Refusal:
    """A site's introduction, what it says where its Motet does not work with this one, or its refusal.

    Raises:
        WireError: none of the three.
    """
    refusal = _refusal(records)
    if refusal is not None:
        return refusal
    _only_header(records)
    spoken = _header(Spoken, records)
    if not is_of_this_version(spoken):
        return OtherVersion(protocol_version=spoken.protocol_version, version=spoken.version)
    return _header(Hello, records)


def is_of_this_version(spoken: Spoken) -> bool:
    """Whether who says this works with this Motet: the same protocol, and the same release but for patches."""
    # one that does not say its release is of a protocol from before releases were compared
    return spoken.protocol_version == PROTOCOL_VERSION and release_of(spoken.version) == release_of(VERSION)


def decode_reply(records: RecordDict, *, shapes: Shapes) -> TrainReply | Refusal:
    """A site's update, or its refusal.

    Args:
        records: what came.
        shapes: the parameters that this site may send, all of them and no other.

    Raises:
        WireError: a header or an array is not of the agreed form, or a number in it is not finite.
    """
    refusal = _refusal(records)
    if refusal is not None:
        return refusal
    return _of_small_numbers(TrainReply(header=_header(ReplyHeader, records), update=_arrays(records, shapes=shapes)))


def decode_train_message(message: Message, *, shapes: Shapes) -> TrainReply | Refusal:
    """What a site answered to a train request, as `decode_reply` reads it; without records where there are none yet.

    Raises:
        WireError: as there.
    """
    reply = message.unread if isinstance(message, LocalReply) else None
    if reply is None:
        return decode_reply(message.content, shapes=shapes)
    # PRIVACY: read from its text here too, so that no field of another kind comes along.
    # test_an_update_that_never_became_records_is_checked_as_one_that_did
    header = _header_of(ReplyHeader, reply.header.model_dump_json())
    _refuse_other_names(reply.update, shapes=shapes)
    for name, values in reply.update.items():
        _refuse_other_form(values, name=name, shape=shapes[name])
    update = {name: values.detach() if values.requires_grad else values for name, values in reply.update.items()}
    return _of_small_numbers(TrainReply(header=header, update=update))


def decode_statistics(records: RecordDict, *, num_counts: int) -> StatisticsReply | Refusal:
    """A site's noisy counts, or its refusal.

    Args:
        records: what came.
        num_counts: how many there must be: the classes of a single-label task, or one for a rating.

    Raises:
        WireError: neither of the two, or another number of counts, or one that is not finite or too large.
    """
    refusal = _refusal(records)
    if refusal is not None:
        return refusal
    _only_header(records)
    reply = _header(StatisticsReply, records)
    # written so that NaN, which no comparison holds for, is refused as well
    if len(reply.counts) != num_counts or not all(abs(count) <= LARGEST_VALUE for count in reply.counts):
        raise WireError(
            f"{len(reply.counts)} counts; allowed: {num_counts}, each finite and of a size up to {LARGEST_VALUE:g}"
        )
    return reply


def decode_arrays(records: RecordDict, *, shapes: Shapes) -> dict[str, Tensor]:
    """The arrays of a message as float32 tensors, exactly those named in `shapes`; not to be written into.

    Raises:
        WireError: unknown or missing names, another shape or type, more bytes than the shape needs, NaN or infinity.
    """
    tensors = _arrays(records, shapes=shapes)
    _refuse_large(tensors, row=view_of_all(list(tensors.values())))
    return tensors


def _arrays(records: RecordDict, *, shapes: Shapes) -> dict[str, Tensor]:
    """As `decode_arrays`, before the numbers themselves are looked at."""
    arrays = records.get(ARRAYS)
    if not isinstance(arrays, ArrayRecord) or records.keys() != {HEADER, ARRAYS}:
        raise WireError(f"message holds records {sorted(records)[:9]}; allowed: {[ARRAYS, HEADER]}")
    if is_packed(arrays):
        arrays = local_array_record({name: torch.from_numpy(values) for name, values in unpack(arrays).items()})
    _refuse_other_names(arrays, shapes=shapes)
    return {name: _tensor(array, name=name, shape=shapes[name]) for name, array in arrays.items()}


def local_array_record(arrays: Mapping[str, Tensor]) -> ArrayRecord:
    """Tensors in a record, not yet as bytes."""
    record = ArrayRecord()  # not ArrayRecord(arrays), which would make all of them into bytes
    for name, value in arrays.items():
        record[name] = LocalArray(value.detach())
    return record


def array_shapes(records: RecordDict) -> Shapes:
    """The shapes that the arrays of a message say they have, for who cannot know better; empty without arrays."""
    arrays = records.get(ARRAYS)
    if not isinstance(arrays, ArrayRecord):
        return {}
    held = unpack(arrays) if is_packed(arrays) else arrays
    return {name: tuple(array.shape) for name, array in held.items()}


def packed(records: RecordDict) -> RecordDict:
    """A message with all its arrays in one, as it crosses a network; the same message if it holds none."""
    arrays = records.get(ARRAYS)
    if not isinstance(arrays, ArrayRecord) or is_packed(arrays):
        return records
    values = {
        name: array.tensor.cpu().numpy() if isinstance(array, LocalArray) else read_float32(array.data)
        for name, array in arrays.items()
    }
    return RecordDict({**records, ARRAYS: pack(values)})


def _encode(header: str, arrays: Mapping[str, Tensor]) -> RecordDict:
    return RecordDict({HEADER: ConfigRecord({"json": header}), ARRAYS: local_array_record(arrays)})


def _only_header(records: RecordDict) -> None:
    if set(records) != {HEADER}:
        raise WireError(f"message holds records {sorted(records)[:9]}; allowed: {[HEADER]}")


def _header(kind: type[AnySettings], records: RecordDict) -> AnySettings:
    config = records.get(HEADER)
    text = config.get("json") if isinstance(config, ConfigRecord) and set(config) == {"json"} else None
    return _header_of(kind, text)


def _header_of(kind: type[AnySettings], text: object) -> AnySettings:
    if not isinstance(text, str) or len(text) > MAX_HEADER_CHARACTERS:
        raise WireError(
            f"message has no header of at most {MAX_HEADER_CHARACTERS} characters; allowed: one {kind.__name__}"
        )
    try:
        if len(text) <= _HELD_HEADER_CHARACTERS:
            held: AnySettings = _parsed(kind, text)
            return held
        return parse_settings_json(kind, text, place=f"message {kind.__name__}")
    except ConfigError as error:
        raise WireError(str(error)) from None


@lru_cache(maxsize=64)
def _parsed(kind: type[AnySettings], text: str) -> AnySettings:
    """One object for all headers of one text, as those of a round often are; it cannot be changed."""
    return parse_settings_json(kind, text, place=f"message {kind.__name__}")


def _refusal(records: RecordDict) -> Refusal | None:
    record = records.get(REFUSAL)
    if not isinstance(record, ConfigRecord):
        return None
    code = record.get("code")
    if set(records) != {REFUSAL} or set(record) != {"code"} or not isinstance(code, str):
        raise WireError("refusal holds more than a code; allowed: one code")
    if not re.fullmatch(REFUSAL_CODE, code):
        raise WireError("refusal code is not of small letters and hyphens, at most 40 of them")
    return Refusal(code)


def _tensor(array: Array, *, name: str, shape: tuple[int, ...]) -> Tensor:
    if isinstance(array, LocalArray):
        _refuse_other_form(array.tensor, name=name, shape=shape)
        return array.tensor
    allowed = f"allowed: float32 {list(shape)} as {NUMPY}"
    if array.dtype != "float32" or tuple(array.shape) != shape or array.stype != NUMPY:
        raise WireError(f"array {name[:200]!r} is {array.dtype} {list(array.shape)} as {array.stype}; {allowed}")
    try:
        values = read_float32(array.data)
    except WireError as error:
        raise WireError(f"array {name!r} is not readable: {error}") from None
    # the outer description is only a claim: what was read is checked again
    if values.shape != shape:
        raise WireError(f"array {name!r} holds {list(values.shape)}; {allowed}")
    return torch.from_numpy(values)


def _refuse_other_names(arrays: Mapping[str, object], *, shapes: Shapes) -> None:
    if arrays.keys() != shapes.keys():
        unknown, missing = sorted(arrays.keys() - shapes.keys()), sorted(shapes.keys() - arrays.keys())
        raise WireError(
            f"arrays: unknown {unknown[:9]}, missing {missing[:9]}; allowed: the {len(shapes)} parameters asked for"
        )


def _refuse_other_form(tensor: Tensor, *, name: str, shape: tuple[int, ...]) -> None:
    if tensor.dtype != torch.float32 or tensor.shape != shape:
        came = f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
        raise WireError(f"array {name[:200]!r} is {came}; allowed: float32 {list(shape)}")


def _of_small_numbers(reply: TrainReply) -> TrainReply:
    _refuse_large(reply.update, row=reply.row)
    return reply


def _refuse_large(tensors: Mapping[str, Tensor], *, row: Tensor | None) -> None:
    """Every number of an update or a model is finite and of a size that can be; `row` is all of them, or None."""
    if row is not None and _is_small(row):
        return
    for name, values in tensors.items():
        if not _is_small(values):
            raise WireError(
                f"array {name!r} holds NaN, infinity or a size above {LARGEST_VALUE:g}; allowed: smaller numbers"
            )


def _is_small(values: Tensor) -> bool:
    if not values.numel():
        return True
    # a twelfth of the time of torch's norm of order infinity; NaN among the numbers becomes both ends
    least, most = torch.aminmax(values)
    # written so that NaN, which no comparison holds for, is refused as well
    return float(least) >= -LARGEST_VALUE and float(most) <= LARGEST_VALUE
