"""Frames, parts and records: what is written is read, and nothing else is."""

import socket
import struct
import threading
import time
import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

from client.resident.conversion import parts_of, records_of
from client.resident.frames import MAGIC, MOST_HEAD_BYTES, Frame, receive_frame, send_frame
from client.resident.protocol import Parts, read_reply, read_request, reply_frame, request_frame
from shared.errors import WireError
from shared.float32_file import MOST_NAMES_BYTES


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    first, second = socket.socketpair()
    with first, second:
        yield first, second


def soon(seconds: float = 5.0) -> float:
    return time.monotonic() + seconds


def test_a_frame_comes_as_it_was_sent(pair: tuple[socket.socket, socket.socket]) -> None:
    """Larger than what the kernel holds, so that it comes in pieces."""
    sent = Frame(b'{"a": 1}', bytes(range(256)) * 20_000)
    thread = threading.Thread(target=send_frame, args=(pair[0], sent), kwargs={"deadline": soon()})
    thread.start()
    came = receive_frame(pair[1], most_body_bytes=1 << 23, deadline=soon())
    thread.join()
    assert (came.head, bytes(came.body)) == (sent.head, sent.body)


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (struct.pack(">8sIQ", b"GET / HT", 1, 0), "begins with"),
        (struct.pack(">8sIQ", MAGIC[:-1] + b"\x02", 1, 0), "begins with"),
        (struct.pack(">8sIQ", MAGIC, MOST_HEAD_BYTES + 1, 0), "bytes; allowed"),
        (struct.pack(">8sIQ", MAGIC, 2, 10_000_000_000), "bytes; allowed"),
        (struct.pack(">8sIQ", MAGIC, 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF), "bytes; allowed"),
        (struct.pack(">8sIQ", MAGIC, 9, 0) + b"{}", "cut off after 2 of 9"),
        (MAGIC, "cut off after 8 of 20"),
        (b"", "cut off after 0 of 20"),
    ],
)
def test_what_is_no_frame_is_refused_before_memory_is_taken(
    raw: bytes, said: str, pair: tuple[socket.socket, socket.socket]
) -> None:
    pair[0].sendall(raw)
    pair[0].shutdown(socket.SHUT_WR)
    with pytest.raises(WireError, match=said):
        receive_frame(pair[1], most_body_bytes=1000, deadline=soon())


def test_memory_grows_with_what_comes_and_not_with_what_is_announced(pair: tuple[socket.socket, socket.socket]) -> None:
    pair[0].sendall(struct.pack(">8sIQ", MAGIC, 2, 1 << 30) + b"{}" + bytes(1000))
    pair[0].shutdown(socket.SHUT_WR)
    tracemalloc.start()
    try:
        with pytest.raises(WireError, match="cut off after 1000 of 1073741824"):
            receive_frame(pair[1], most_body_bytes=1 << 30, deadline=soon())
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_a_body_in_pieces_comes_as_one(pair: tuple[socket.socket, socket.socket]) -> None:
    send_frame(pair[0], Frame(b"{}", b"ab", (memoryview(b"cde"), b"", b"f")), deadline=soon())
    assert receive_frame(pair[1], most_body_bytes=6, deadline=soon()) == Frame(b"{}", b"abcdef")


def test_a_frame_that_does_not_come_in_time_is_given_up(pair: tuple[socket.socket, socket.socket]) -> None:
    pair[0].sendall(struct.pack(">8sIQ", MAGIC, 9, 0) + b"{}")
    with pytest.raises(WireError, match="did not come whole"):
        receive_frame(pair[1], most_body_bytes=1000, deadline=soon(0.05))


def test_a_reply_that_is_not_taken_in_time_is_given_up(pair: tuple[socket.socket, socket.socket]) -> None:
    with pytest.raises(WireError, match="does not take"):
        send_frame(pair[0], Frame(b"{}", bytes(1 << 24)), deadline=soon(0.05))


def test_a_head_that_nobody_would_take_is_not_sent(pair: tuple[socket.socket, socket.socket]) -> None:
    with pytest.raises(WireError, match="a head of"):
        send_frame(pair[0], Frame(b" " * (MOST_HEAD_BYTES + 1)), deadline=soon())


ARRAYS = st.dictionaries(
    st.text(min_size=1, max_size=20), st.lists(st.floats(width=32, allow_nan=False), max_size=5), max_size=4
)


@settings(max_examples=40, deadline=None)
@given(header=st.text(max_size=200), arrays=st.one_of(st.none(), ARRAYS))
def test_a_message_is_the_same_after_the_socket(header: str, arrays: dict[str, list[float]] | None) -> None:
    """As Flower's records, as parts, as bytes and back."""
    held = None if arrays is None else {name: np.array(values, np.float32) for name, values in arrays.items()}
    if held is not None and any(name == "__metadata__" for name in held):
        return
    frame = request_frame("train", Parts(header=header, arrays=held))
    kind, parts = read_request(Frame(frame.head, b"".join(frame.pieces)))
    again = parts_of(records_of(parts))
    assert (kind, again.header, again.code) == ("train", header, None)
    came = again.read() or {}
    assert came.keys() == (held or {}).keys()
    assert all(np.array_equal(came[name], values) for name, values in (held or {}).items())
    # what only passes through is not taken apart
    assert b"".join(request_frame("train", again).pieces) == b"".join(frame.pieces)


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b'{"agent_protocol": 2, "kind": "train"}',
        b'{"agent_protocol": 1, "kind": "delete"}',
        b'{"agent_protocol": 1, "kind": "train", "path": "/etc/passwd"}',
        b'{"agent_protocol": 1, "kind": "train", "header": 7}',
        b"[" * 100_000,
    ],
)
def test_a_head_that_is_no_request_is_refused(head: bytes) -> None:
    with pytest.raises(WireError):
        read_request(Frame(head))


@pytest.mark.parametrize("body", [b"x", b"\x80\x04cos\nsystem\n", bytes(100), b"\xff" * 8 + b"{}"])
def test_a_body_that_holds_no_arrays_is_refused(body: bytes) -> None:
    """A pickle among them: nothing here reads one."""
    with pytest.raises(WireError):
        read_request(Frame(b'{"agent_protocol": 1, "kind": "train"}', body))


def test_a_reply_is_a_header_or_a_code() -> None:
    assert read_reply(reply_frame(Parts(code="refused"))) == Parts(code="refused")
    for head in (b'{"agent_protocol": 1}', b'{"agent_protocol": 1, "code": "a", "header": "b"}',
                 b'{"agent_protocol": 1, "code": "Traceback: row 17"}'):  # fmt: skip
        with pytest.raises(WireError):
            read_reply(Frame(head))


@pytest.mark.parametrize(
    "records",
    [
        RecordDict({"rows": ConfigRecord()}),
        RecordDict({"header": ConfigRecord({"json": "{}"}), "more": MetricRecord({"loss": 1.0})}),
        RecordDict({"header": ConfigRecord({"json": 7})}),
        RecordDict({"header": ConfigRecord({"json": "{}", "loss": 1.0})}),
        RecordDict({"header": MetricRecord({"json": 1.0})}),
        RecordDict({"refusal": ConfigRecord({"code": "a"}), "header": ConfigRecord({"json": "{}"})}),
        RecordDict(
            {
                "header": ConfigRecord({"json": "{}"}),
                "arrays": ArrayRecord({"w": Array("object", (1,), "numpy.ndarray", b"\x80\x04cos\nsystem\n")}),
            }
        ),
    ],
)
def test_a_message_that_is_none_of_motets_is_not_carried(records: RecordDict) -> None:
    with pytest.raises(WireError):
        parts_of(records)


def test_a_list_of_names_that_is_too_long_is_not_read() -> None:
    """A million arrays of nothing are 60 MB on the socket, and were 2 GB once they were read."""
    entry = '"%x":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    held = "{" + ",".join(entry % number for number in range(MOST_NAMES_BYTES // 50)) + "}"
    body = len(held).to_bytes(8, "little") + held.encode()
    head = b'{"agent_protocol":1,"kind":"train","header":"{}"}'
    with pytest.raises(WireError, match="arrays whose names and shapes take"):
        read_request(Frame(head, body))
    with pytest.raises(WireError, match="not readable"):
        read_request(Frame(head, b"\x01"))
    few = "{" + entry % 1 + "}"
    _, parts = read_request(Frame(head, len(few).to_bytes(8, "little") + few.encode()))
    assert parts.arrays is not None
    assert list(parts.arrays) == ["1"]
