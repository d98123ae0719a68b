"""Strategy: requests to Flower messages, Flower replies to judged answers; nothing a site does can stop a round.

in        a Flower Grid, requests by site name
out       one answer a site: an update, a refusal, or how it failed
relies on the Grid returning only replies to the messages it was given
"""

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeVar

from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp import Grid

from server.judgement import Failure, Reply, StatisticsAnswer
from shared.errors import RunError, WireError
from shared.messages import (
    PROTOCOL_VERSION,
    Hello,
    Refusal,
    Shapes,
    StatisticsHeader,
    StatisticsReply,
    TrainReply,
    TrainRequest,
)
from shared.wire import decode_hello, decode_reply, decode_statistics, encode_request, encode_statistics_request

Said = TypeVar("Said", TrainReply | Refusal, StatisticsReply | Refusal)
_POLL_S = 0.5
_HELLO_TIMEOUT_S = 300.0
"""for nodes that are connected: on a busy machine their first process takes minutes to import all it needs"""


class FlowerTransport:
    """Sites behind a Flower Grid, known by the names their owners gave them; node ids stay in here."""

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._nodes: dict[str, int] = {}

    def hello(self, *, expected: int, min_sites: int, timeout_s: float) -> list[Hello]:
        """Wait for `expected` nodes, at most `timeout_s`; then ask all there are who they are.

        Raises:
            RunError: fewer than `min_sites` sites answered, or two bear one name.
        """
        nodes, deadline = sorted(self._grid.get_node_ids()), time.monotonic() + timeout_s
        while len(nodes) < expected and time.monotonic() < deadline:
            time.sleep(_POLL_S)
            nodes = sorted(self._grid.get_node_ids())
        messages = [Message(RecordDict(), node, MessageType.QUERY) for node in nodes]
        found: list[Hello] = []
        for reply in self._grid.send_and_receive(messages, timeout=_HELLO_TIMEOUT_S) if messages else ():
            hello = _introduction(reply)
            if hello is not None:
                if hello.site in self._nodes:
                    raise RunError(f"two sites are called {hello.site!r}; every site.toml needs a name of its own")
                self._nodes[hello.site] = reply.metadata.src_node_id
                found.append(hello)
        if len(found) < min_sites:
            raise RunError(
                f"{len(found)} of {len(nodes)} connected sites introduced themselves within {_HELLO_TIMEOUT_S:.0f} s; "
                f"federation.min_sites asks for {min_sites}. Start the missing sites, or look into their logs"
            )
        return sorted(found, key=lambda hello: hello.site)

    def statistics(
        self, requests: Mapping[str, StatisticsHeader], *, num_counts: int, timeout_s: float
    ) -> dict[str, StatisticsAnswer]:
        """One answer for every request for noisy counts, within `timeout_s`."""
        messages = {
            site: Message(encode_statistics_request(header), self._nodes[site], MessageType.QUERY)
            for site, header in requests.items()
        }
        answers: dict[str, StatisticsAnswer] = dict.fromkeys(requests, Failure("late", "no-reply"))
        for site, reply in self._replies(messages, timeout_s=timeout_s).items():
            answers[site] = _answer(reply, decode=partial(decode_statistics, num_counts=num_counts))
        return answers

    def train(
        self, requests: Mapping[str, TrainRequest], *, shapes: Mapping[str, Shapes], timeout_s: float
    ) -> dict[str, Reply]:
        """One answer for every request, within `timeout_s`."""
        messages = {
            site: Message(
                encode_request(request), self._nodes[site], MessageType.TRAIN, group_id=str(request.header.round_number)
            )
            for site, request in requests.items()
        }
        answers: dict[str, Reply] = dict.fromkeys(requests, Failure("late", "no-reply"))
        for site, reply in self._replies(messages, timeout_s=timeout_s).items():
            answers[site] = _answer(reply, decode=partial(decode_reply, shapes=shapes[site]))
        return answers

    def _replies(self, messages: Mapping[str, Message], *, timeout_s: float) -> dict[str, Message]:
        """The replies that came, by site."""
        if not messages:
            return {}
        replies = list(self._grid.send_and_receive(list(messages.values()), timeout=timeout_s))
        # Flower gives a message its id when it is sent. By the id a reply finds its site also where the SuperLink
        # answers in place of one that is gone, and no other site knows it
        asked = {message.metadata.message_id: site for site, message in messages.items()}
        found: dict[str, Message] = {}
        for reply in replies:
            site = asked.get(reply.metadata.reply_to_message_id)
            if site is not None and (reply.has_error() or reply.metadata.src_node_id == self._nodes[site]):
                found[site] = reply
        return found


def _introduction(reply: Message) -> Hello | None:
    """Who answered; None for one that refuses, failed or speaks another version."""
    if not reply.has_content():
        return None
    try:
        hello = decode_hello(reply.content)
    except WireError:
        return None
    return hello if isinstance(hello, Hello) and hello.protocol_version == PROTOCOL_VERSION else None


def _answer(reply: Message, *, decode: Callable[[RecordDict], Said]) -> Said | Failure:
    if not reply.has_content():
        # Flower's own error text is not repeated: a site's exception may have put its data into it
        return Failure("failed", f"flower-{reply.error.code}")
    try:
        return decode(reply.content)
    except WireError as error:
        return Failure("invalid", error.code)
