"""Protocol: what the process that Flower starts may say to the site agent, and what it is told; nothing else.

in        frames from the socket
out       requests and replies as typed records, with arrays by name
relies on frames.py for the bytes, on safetensors for arrays: numbers, and nothing that could be executed
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from client.resident.frames import Frame, Pieces
from shared.errors import ConfigError, WireError
from shared.float32_file import as_pieces, read_file
from shared.record_names import MAX_HEADER_CHARACTERS, REFUSAL_CODE
from shared.settings import AnySettings, Settings, parse_settings_json

AGENT_PROTOCOL: Literal[1] = 1
Kind = Literal["query", "train", "health"]


class AgentRequest(Settings):
    """What is asked of the agent; the agent names no file by it and runs nothing of it."""

    agent_protocol: Literal[1]
    kind: Kind = Field(description="query: who is there, or noisy counts; train: a round; health: is the agent well")
    header: str | None = Field(default=None, max_length=MAX_HEADER_CHARACTERS, description="the message's own, as JSON")


class AgentReply(Settings):
    """What the agent lets out: the reply's header with its arrays behind it, or the code of a refusal."""

    agent_protocol: Literal[1]
    header: str | None = Field(default=None, max_length=MAX_HEADER_CHARACTERS)
    code: str | None = Field(default=None, pattern=f"^{REFUSAL_CODE}$")

    @model_validator(mode="after")
    def _is_one_of_two(self) -> "AgentReply":
        if (self.header is None) == (self.code is None):
            raise ValueError("header or code; allowed: one of them")
        return self


@dataclass(frozen=True)
class Parts:
    """A message taken apart: what Flower's records hold, without Flower and without torch."""

    header: str | None = None
    code: str | None = None
    arrays: Mapping[str, np.ndarray] | None = None
    """name -> float32 array; None where the message has no record of arrays, or they are in `file`"""
    file: bytes | None = None
    """the arrays as the safetensors file that came, for who only passes them on"""

    def read(self) -> Mapping[str, np.ndarray] | None:
        """The arrays, whichever way they are held.

        Raises:
            WireError: the file is none.
        """
        return self.arrays if self.file is None else read_file(self.file)


def request_frame(kind: Kind, parts: Parts) -> Frame:
    """A request as bytes."""
    head = AgentRequest(agent_protocol=AGENT_PROTOCOL, kind=kind, header=parts.header)
    return Frame(head.model_dump_json().encode(), pieces=_body(parts))


def reply_frame(parts: Parts) -> Frame:
    """A reply as bytes."""
    head = AgentReply(agent_protocol=AGENT_PROTOCOL, header=parts.header, code=parts.code)
    return Frame(head.model_dump_json().encode(), pieces=_body(parts))


def read_request(frame: Frame) -> tuple[Kind, Parts]:
    """What was asked.

    Raises:
        WireError: it is no request, or its arrays are not readable.
    """
    head = _head(AgentRequest, frame)
    return head.kind, Parts(header=head.header, arrays=read_file(frame.body) if frame.body else None)


def read_reply(frame: Frame) -> Parts:
    """What was answered; its arrays are not looked at.

    Raises:
        WireError: it is no reply.
    """
    head = _head(AgentReply, frame)
    return Parts(header=head.header, code=head.code, file=frame.body or None)


def _head(kind: type[AnySettings], frame: Frame) -> AnySettings:
    try:
        return parse_settings_json(kind, frame.head.decode("utf-8"), place=f"socket {kind.__name__}")
    except (UnicodeDecodeError, ConfigError) as error:
        raise WireError(str(error)) from None


def _body(parts: Parts) -> Pieces:
    if parts.file is not None:
        return (parts.file,)
    return () if parts.arrays is None else as_pieces(parts.arrays)
