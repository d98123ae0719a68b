"""Fuzz: whatever comes over the socket, a code comes back or nothing, and the next request is answered."""

import json
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from client.resident.carrier import ask
from client.resident.conversion import parts_of
from client.resident.frames import MAGIC, Frame
from client.resident.listener import Limits
from client.resident.protocol import Parts, read_reply, request_frame
from client.resident.serving import Agent
from shared.privacy.accountant import MechanismUse
from shared.privacy.ledger import Ledger
from tests.client.asking import DATA_SET, rows_of, site_file
from tests.client.resident.agents import listening, train_records

FUZZ = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
HEADER = json.loads(parts_of(train_records()).header or "")
ARRAYS = parts_of(train_records()).arrays
FRAME = request_frame("train", parts_of(train_records()))
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)),
    max_leaves=6,
)
FIELDS = st.sampled_from(
    [(name,) for name in HEADER]
    + [("run", name) for name in HEADER["run"]]
    + [("run", part, name) for part in ("model", "training", "federation", "data") for name in HEADER["run"][part]]
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A live agent whose budget is spent before the first round: nothing that is asked may get further."""
    folder = tmp_path_factory.mktemp("fuzz")
    path = site_file(folder)
    Ledger(folder / "ledger.sqlite").reserve(
        data_set=DATA_SET, unit="record", use=MechanismUse(0.3, 1.0, 1000), run_id="spent", round_number=1, attempt=0,
        cap_epsilon=1e9, delta=1e-3, accountant="rdp", mechanism="gaussian",
    )  # fmt: skip
    limits = Limits(most_body_bytes=1 << 16, receive_s=2.0)
    with listening(folder / "agent" / "socket", Agent(path).answer, limits=limits):
        yield folder


def answered(folder: Path, raw: bytes) -> bytes:
    """Whatever comes back before the connection ends."""
    came = b""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(30)
        connection.connect(str(folder / "agent" / "socket"))
        try:
            connection.sendall(raw)
            connection.shutdown(socket.SHUT_WR)
            while piece := connection.recv(1 << 16):
                came += piece
        except ConnectionError:
            pass
    return came


def check(folder: Path, raw: bytes) -> None:
    came = answered(folder, raw)
    if came:
        magic, head_bytes, body_bytes = struct.unpack(">8sIQ", came[:20])
        assert (magic, body_bytes, len(came)) == (MAGIC, 0, 20 + head_bytes)
        assert read_reply(Frame(came[20:])).code in {"message-invalid", "refused", "model-invalid", "internal",
                                                     "version-mismatch", "settings-invalid"}  # fmt: skip
    said = ask("health", Parts(), agent=folder / "agent" / "socket", answer_s=30.0)
    assert said.code is None
    assert [row.run_id for row in rows_of(folder)] == ["spent"]


def framed(frame: Frame) -> bytes:
    body = b"".join((frame.body, *frame.pieces))
    return struct.pack(">8sIQ", MAGIC, len(frame.head), len(body)) + frame.head + body


@FUZZ
@given(raw=st.binary(max_size=200))
def test_any_bytes(raw: bytes, site: Path) -> None:
    check(site, raw)


@FUZZ
@given(head_bytes=st.integers(0, 2**32 - 1), body_bytes=st.integers(0, 2**64 - 1), rest=st.binary(max_size=60))
def test_any_lengths(head_bytes: int, body_bytes: int, rest: bytes, site: Path) -> None:
    check(site, struct.pack(">8sIQ", MAGIC, head_bytes, body_bytes) + rest)


@FUZZ
@given(head=st.one_of(st.binary(max_size=200), VALUES.map(lambda value: json.dumps(value).encode())))
def test_any_head(head: bytes, site: Path) -> None:
    check(site, framed(Frame(head)))


@FUZZ
@given(body=st.binary(max_size=300))
def test_any_body(body: bytes, site: Path) -> None:
    check(site, framed(Frame(FRAME.head, body)))


@FUZZ
@given(flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 255)), min_size=1, max_size=4))
def test_any_flipped_bytes(flips: list[tuple[int, int]], site: Path) -> None:
    raw = bytearray(framed(FRAME))
    for place, flip in flips:
        raw[place % len(raw)] ^= flip
    check(site, bytes(raw))


@FUZZ
@given(length=st.integers(0, 10**6))
def test_any_cut(length: int, site: Path) -> None:
    raw = framed(FRAME)
    check(site, raw[: length % len(raw)])


@FUZZ
@given(field=FIELDS, value=VALUES)
def test_any_field(field: tuple[str, ...], value: object, site: Path) -> None:
    """A field of the header that holds something else; what is still allowed meets a budget that is spent."""
    header = json.loads(json.dumps(HEADER))
    table = header
    for name in field[:-1]:
        table = table[name]
    table[field[-1]] = value
    check(site, framed(request_frame("train", Parts(header=json.dumps(header), arrays=ARRAYS))))
