"""Serving: the resident agent itself, from the owner's settings to a socket that is answered until it is told to end.

in        the path of the owner's site file; requests on the socket
out       replies that client/answering.py let out; what happened, in the owner's log
relies on listener.py for who may ask, on answering.py for what is answered
"""

import json
import logging
import os
import signal
import threading
import time
from pathlib import Path

from client.answering import answer_query, answer_training
from client.resident.conversion import parts_of, records_of
from client.resident.frames import Frame
from client.resident.listener import Limits, Listener, user_ids
from client.resident.protocol import AGENT_PROTOCOL, Parts, read_request, reply_frame
from client.site import SiteConfig, read_site
from shared.errors import WireError
from shared.messages import PROTOCOL_VERSION
from shared.version import VERSION

log = logging.getLogger("motet.site")
_BYTES_A_PARAMETER = 8
"""float32, and as much again for what a model is given beside its parameters"""
_ROOM_BYTES = 16 << 20
"""for the names"""


class Agent:
    """Answers requests, one at a time: training takes the machine, and two runs share one budget."""

    def __init__(self, site_file: Path) -> None:
        self._site_file = site_file
        self._one_at_a_time = threading.Lock()
        self._began = time.monotonic()
        self._busy_since: float | None = None

    def answer(self, frame: Frame) -> Frame:
        """The reply to a request; never an exception."""
        try:
            kind, parts = read_request(frame)
            if kind == "health":
                return reply_frame(Parts(header=json.dumps(self.health())))
            with self._one_at_a_time:
                self._busy_since = time.monotonic()
                try:
                    answer = answer_query if kind == "query" else answer_training
                    return reply_frame(parts_of(answer(records_of(parts), site_file=self._site_file)))
                finally:
                    self._busy_since = None
        except WireError as error:
            log.error("a request that is none: %s", error)
            return reply_frame(Parts(code=error.code))
        except Exception:
            # PRIVACY: whatever it is, its text must not travel. test_an_agent_that_fails_says_only_a_code
            log.exception("the agent failed")
            return reply_frame(Parts(code="internal"))

    def health(self) -> dict[str, object]:
        """What whoever may connect is told of the agent; nothing of the data or the budget."""
        busy = self._busy_since
        return {
            "agent_protocol": AGENT_PROTOCOL,
            "protocol_version": PROTOCOL_VERSION,
            "version": VERSION,
            "pid": os.getpid(),
            "uptime_s": round(time.monotonic() - self._began, 1),
            "busy_s": None if busy is None else round(time.monotonic() - busy, 1),
        }


def run_agent(site_file: Path) -> None:
    """Answer until SIGTERM or SIGINT; a round that is being trained then is finished first.

    Raises:
        ConfigError: the settings are not allowed, or the socket cannot be opened.
    """
    site = read_site(site_file)
    agent = Agent(site_file)
    listener = Listener(
        site.agent.socket, others=user_ids(site.agent.allowed_users), limits=limits_of(site), answer=agent.answer
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: listener.stop())
    log.info("site agent of %s, version %s, answers at %s", site.name, VERSION, site.agent.socket)
    listener.serve()


def limits_of(site: SiteConfig) -> Limits:
    """As much as the largest model that the owner permits."""
    return Limits(most_body_bytes=_BYTES_A_PARAMETER * site.max_parameters + _ROOM_BYTES)
