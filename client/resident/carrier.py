"""Carrier: a message to the site agent and its answer back; all that the code which Flower delivers does at a site.

in        the records of a message, and the path of the agent's socket, from the node's own settings
out       the records of the agent's answer, or a refusal where no agent answers
relies on the agent for every decision; loads no torch, because Flower starts a new process for each message
"""

import logging
import socket
import time
from pathlib import Path

from flwr.app import ConfigRecord, RecordDict

from client.resident.conversion import parts_of, records_of
from client.resident.frames import receive_frame, send_frame
from client.resident.protocol import Kind, Parts, read_reply, request_frame
from shared.errors import WireError
from shared.record_names import REFUSAL

log = logging.getLogger("motet.site")
ANSWER_S = 24 * 3600.0
"""a round may take long; the server has its own bound, after which nobody waits for the answer"""
MOST_REPLY_BYTES = 8 << 30
AGAIN_FOR_S = 60.0
"""an agent that is gone may be started again within this time; a request that is repeated is charged once"""
_PAUSE_S = 0.5


def carry(kind: Kind, records: RecordDict, *, agent: Path, again_for_s: float = AGAIN_FOR_S) -> RecordDict:
    """What the agent answers to a message; a refusal with the code `agent-away` where it cannot be asked.

    Args:
        again_for_s: how long an agent that is away, or goes away before it has answered, is asked again.
    """
    try:
        parts = parts_of(records)
    except WireError as error:
        log.error("%s", error)
        return records_of(Parts(code=error.code))
    deadline = time.monotonic() + again_for_s
    while True:
        try:
            return records_of(ask(kind, parts, agent=agent))
        except (OSError, WireError) as error:
            log.error("the site agent at %s does not answer: %s", agent, error)
        if time.monotonic() >= deadline:
            return RecordDict({REFUSAL: ConfigRecord({"code": "agent-away"})})
        time.sleep(_PAUSE_S)


def ask(kind: Kind, parts: Parts, *, agent: Path, answer_s: float = ANSWER_S) -> Parts:
    """One request to an agent.

    Raises:
        OSError: nobody listens there, or this user may not connect.
        WireError: the agent hung up, or what it said is no reply.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(10.0)
        connection.connect(str(agent))
        deadline = time.monotonic() + answer_s
        send_frame(connection, request_frame(kind, parts), deadline=deadline)
        return read_reply(receive_frame(connection, most_body_bytes=MOST_REPLY_BYTES, deadline=deadline))
