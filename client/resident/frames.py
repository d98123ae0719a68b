"""Frames: one request or reply on a Unix socket, as a head of JSON and a body of bytes, both of a length said first.

in        a connected socket, and how much and how long to read at most
out       head and body as they came, nothing in them read yet
relies on nothing that loads torch: the process that Flower starts for each message uses it too

    8 bytes   MAGIC, whose last one is the version of this form
    4 bytes   length of the head, big-endian
    8 bytes   length of the body, big-endian
    the head, UTF-8 JSON; the body, a safetensors file or nothing
"""

import socket
import struct
import time
from dataclasses import dataclass
from io import BytesIO

from shared.errors import WireError

MAGIC = b"motet\x00\x00\x01"
MOST_HEAD_BYTES = 6_000_000
"""a header of a million characters, each written as an escape of six"""
_LENGTHS = struct.Struct(">8sIQ")
_PIECE_BYTES = 1 << 20
Pieces = tuple[bytes | memoryview, ...]
"""bytes in several places, one behind the other; of views the format is "B" """


@dataclass(frozen=True, slots=True)
class Frame:
    """One message on the socket."""

    head: bytes
    body: bytes = b""
    pieces: Pieces = ()
    """what is sent behind `body`, as it lies in memory: no copy is made of a model; empty in what came"""


def send_frame(connection: socket.socket, frame: Frame, *, deadline: float) -> None:
    """Write one frame.

    Args:
        deadline: of time.monotonic().

    Raises:
        WireError: the head is too long, or the other side does not take it in time or has gone.
    """
    if len(frame.head) > MOST_HEAD_BYTES:
        raise WireError(f"a head of {len(frame.head)} bytes; allowed: {MOST_HEAD_BYTES}")
    try:
        body = (frame.body, *frame.pieces)
        for part in (_LENGTHS.pack(MAGIC, len(frame.head), sum(map(len, body))), frame.head, *body):
            rest = memoryview(part)
            while rest:
                connection.settimeout(_left(deadline))
                rest = rest[connection.send(rest[:_PIECE_BYTES]) :]
    except OSError as error:
        raise WireError(f"the other side of the socket does not take the message: {error}") from None


def receive_frame(connection: socket.socket, *, most_body_bytes: int, deadline: float) -> Frame:
    """Read one frame; the memory taken grows with what has come, and not with what was announced.

    Raises:
        WireError: it is of another form or version, longer than allowed, cut off, or late.
    """
    magic, head_bytes, body_bytes = _LENGTHS.unpack(_exactly(connection, _LENGTHS.size, deadline=deadline))
    if magic != MAGIC:
        raise WireError(f"a message begins with {magic!r}; allowed: {MAGIC!r}, of the same Motet on both sides")
    if head_bytes > MOST_HEAD_BYTES or body_bytes > most_body_bytes:
        raise WireError(
            f"a message of {head_bytes} and {body_bytes} bytes; allowed: {MOST_HEAD_BYTES} and {most_body_bytes}"
        )
    head = _exactly(connection, head_bytes, deadline=deadline)
    return Frame(head=head, body=_exactly(connection, body_bytes, deadline=deadline))


def _exactly(connection: socket.socket, size: int, *, deadline: float) -> bytes:
    # grows as bytes come, in place, and gives them up without a copy
    came, left = BytesIO(), size
    try:
        while left:
            connection.settimeout(_left(deadline))
            piece = connection.recv(min(_PIECE_BYTES, left))
            if not piece:
                raise WireError(f"a message is cut off after {size - left} of {size} bytes")
            came.write(piece)
            left -= len(piece)
    except OSError as error:
        raise WireError(f"a message did not come whole: {error}") from None
    return came.getvalue()


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("its time is over")
    return left
