"""Strategy: requests to Flower messages, Flower replies to judged answers; nothing a site does can stop a round.

in        a Flower Grid, requests by site name
out       one answer a site, as they come: an update, a refusal, or how it failed
relies on the Grid for carrying messages, and for nothing else: a reply that belongs to no message is not taken
"""

import logging
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from math import prod
from typing import TypeVar

from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp import Grid

from server.handshake import Enrolled, Introduction, is_not_accepted, judge_introduction
from server.judgement import Failure, Reply, StatisticsAnswer
from server.latecomers import Latecomers
from server.pulling import send_and_receive
from shared.errors import RunError, WireError
from shared.messages import (
    PROTOCOL_VERSION,
    Hello,
    HelloRequest,
    NotAccepted,
    OtherVersion,
    Refusal,
    StatisticsHeader,
    StatisticsReply,
    TrainReply,
    TrainRequest,
)
from shared.threads import threads_for
from shared.version import VERSION
from shared.wire import (
    decode_hello,
    decode_statistics,
    decode_train_message,
    encode_hello_request,
    encode_request,
    encode_statistics_request,
)

Said = TypeVar("Said", TrainReply | Refusal, StatisticsReply | Refusal)
Sent = tuple[RecordDict, Callable[[Message], TrainReply | Refusal], int]
"""records of a request, what reads an answer to it, and how many numbers an update has"""
log = logging.getLogger("motet.server")
_POLL_S = 0.5
_HELLO_TIMEOUT_S = 300.0
"""for nodes that are connected: on a busy machine their first process takes minutes to import all it needs"""


class FlowerTransport:
    """Sites behind a Flower Grid, known by the names their owners gave them; node ids stay in here."""

    def __init__(
        self,
        grid: Grid,
        *,
        enrolled: Enrolled | None = None,
        note: Callable[[list[Introduction]], None] = lambda _: None,
    ) -> None:
        """Takes sites as they come.

        Args:
            grid: carries the messages.
            enrolled: the keys by which a deployment's sites are known; simulated sites have none.
            note: told of all introductions, whenever one has come since the start that says something new.
        """
        self._grid, self._enrolled, self._note = grid, enrolled, note
        self._nodes: dict[str, int] = {}
        self._introductions: dict[int, Introduction] = {}
        self._latecomers = Latecomers(grid, ask=_hello_request, read=_said)

    @property
    def introductions(self) -> list[Introduction]:
        """The last one of each node that answered, those that were not accepted among them."""
        return list(self._introductions.values())

    def hello(self, *, expected: int, min_sites: int, timeout_s: float) -> list[Hello]:
        """Wait for `expected` nodes, at most `timeout_s`; then ask all there are who they are.

        Who is not accepted is told so, and takes no part.

        Raises:
            RunError: fewer than `min_sites` sites were accepted, or two that nobody enrolled bear one name.
        """
        nodes, deadline = sorted(self._grid.get_node_ids()), time.monotonic() + timeout_s
        while len(nodes) < expected and time.monotonic() < deadline:
            time.sleep(_POLL_S)
            nodes = sorted(self._grid.get_node_ids())
        asked = {node: _hello_request() for node in nodes}
        messages = [Message(encode_hello_request(each), node, MessageType.QUERY) for node, each in asked.items()]
        found: dict[str, Hello] = {}
        replies = send_and_receive(messages, grid=self._grid, timeout_s=_HELLO_TIMEOUT_S) if messages else ()
        # by the message that it answers: which node a reply says to be from is that node's own word
        node_of = {message.metadata.message_id: message.metadata.dst_node_id for message in messages}
        for name, reply in replies:
            node = node_of.get(name, 0)
            if node not in asked:
                continue
            said = None if reply is None else _said(reply)
            # one that answers twice finds its nonce used
            judged = judge_introduction(said, nonce=asked.pop(node).nonce, enrolled=self._enrolled, taken=found)
            self._introductions[node] = judged
            if judged.code is None and isinstance(said, Hello):
                self._nodes[said.site], found[said.site] = node, said
            elif is_not_accepted(judged.code):
                self._tell_not_accepted(node, code=judged.code)
        self._latecomers.asked(nodes)
        if len(found) < min_sites:
            why = "".join(f"; {each.line}" for each in self.introductions if each.code is not None)
            raise RunError(
                f"{len(found)} of {len(nodes)} connected sites introduced themselves within {_HELLO_TIMEOUT_S:.0f} s "
                f"and were accepted; federation.min_sites asks for {min_sites}{why}. Start the missing sites, or look "
                "into their logs"
            )
        return [found[site] for site in sorted(found)]

    def newcomers(self) -> list[Hello]:
        """Introductions that were accepted since `hello`, or since this was called last; waits for none.

        A site that is in already is taken from another node only where its own is off line, and by its key as ever.
        Nothing is asked of simulated sites, which are all there from the start.
        """
        if self._enrolled is None:
            return []
        there = frozenset(self._grid.get_node_ids())
        self._latecomers.look(self._strangers(there))
        found, before = dict[str, Hello](), dict(self._introductions)
        for answer in self._latecomers.take():
            # PRIVACY: whose node is on line is in, so that nobody can take its place, nor be asked twice in a round.
            # test_a_site_is_taken_from_another_node_only_while_its_own_is_off_line
            taken = {name for name, node in self._nodes.items() if node in there}
            judged = judge_introduction(answer.said, nonce=answer.nonce, enrolled=self._enrolled, taken=taken)
            self._introductions[answer.node] = judged
            if judged.code is None and isinstance(answer.said, Hello):
                self._nodes[answer.said.site], found[answer.said.site] = answer.node, answer.said
            elif is_not_accepted(judged.code) and before.get(answer.node) != judged:
                self._tell_not_accepted(answer.node, code=judged.code)
        # what the old node of a site has said is not true any more, nor of interest what strangers said who have gone
        held = {*there, *self._nodes.values()}
        self._introductions = {node: each for node, each in self._introductions.items() if node in held}
        if self._introductions != before:
            self._note(self.introductions)
        return [found[site] for site in sorted(found)]

    def _strangers(self, there: frozenset[int]) -> frozenset[int]:
        return there - set(self._nodes.values())

    def _look_meanwhile(self) -> None:
        """In the middle of a round: who comes is asked, and judged once the round is over."""
        if self._enrolled is not None and self._latecomers.is_due():
            self._latecomers.look(self._strangers(frozenset(self._grid.get_node_ids())))

    def _tell_not_accepted(self, node: int, *, code: NotAccepted) -> None:
        """So that its owner can read why; nobody waits for an answer."""
        word = _hello_request().model_copy(update={"not_accepted": code})
        self._grid.push_messages([Message(encode_hello_request(word), node, MessageType.QUERY)])

    def online(self) -> frozenset[str]:
        """Names of the sites whose nodes are connected, of those that introduced themselves."""
        there = set(self._grid.get_node_ids())
        return frozenset(name for name, node in self._nodes.items() if node in there)

    def statistics(
        self, requests: Mapping[str, StatisticsHeader], *, num_counts: int, timeout_s: float
    ) -> dict[str, StatisticsAnswer]:
        """One answer for every request for noisy counts, within `timeout_s`."""
        messages = {
            site: Message(encode_statistics_request(header), self._nodes[site], MessageType.QUERY)
            for site, header in sorted(requests.items())
            if site in self._nodes
        }

        def decode(reply: Message) -> StatisticsReply | Refusal:
            return decode_statistics(reply.content, num_counts=num_counts)

        answers: dict[str, StatisticsAnswer] = dict.fromkeys(requests, Failure("late", "no-reply"))
        for site, reply in self._replies(messages, timeout_s=timeout_s):
            answers[site] = _answer(reply, decode=decode)
        return answers

    def train(self, requests: Mapping[str, TrainRequest], *, timeout_s: float) -> Iterator[tuple[str, Reply]]:
        """One answer for every request, as the Grid gives them; those of sites that gave none within the time at last.

        Sites with the same object as their request are sent the same records, which are encoded once.
        """
        encoded: dict[int, Sent] = {}
        messages: dict[str, Message] = {}
        silent: dict[str, None] = {}
        for site, request in sorted(requests.items()):
            silent[site] = None
            if site not in self._nodes:
                # of the plan of a run that was resumed, and not there since
                continue
            if id(request) not in encoded:
                encoded[id(request)] = _sent(request)
            records, group = encoded[id(request)][0], str(request.header.round_number)
            messages[site] = Message(records, self._nodes[site], MessageType.TRAIN, group_id=group)
        for site, reply in self._replies(messages, timeout_s=timeout_s):
            del silent[site]
            _, decode, num_numbers = encoded[id(requests[site])]
            with threads_for(num_numbers):
                answer = _answer(reply, decode=decode)
            del reply  # or its update would be held while the next one is made
            yield site, answer
            del answer
        for site in silent:
            yield site, Failure("late", "no-reply")

    def _replies(self, messages: Mapping[str, Message], *, timeout_s: float) -> Iterator[tuple[str, Message | None]]:
        """The replies that come, one a site; in the order of the sites' names where the Grid has gathered them all.

        None in place of one that cannot be read. A Grid that gives one after the other gives them in the order of the
        messages.
        """
        if not messages:
            return
        replies = send_and_receive(
            list(messages.values()), grid=self._grid, timeout_s=timeout_s, meanwhile=self._look_meanwhile
        )
        # Flower gives a message its id when it is sent. By the id a reply finds its site also where the SuperLink
        # answers in place of one that is gone, and no other site knows it
        asked = {message.metadata.message_id: site for site, message in messages.items()}
        if isinstance(replies, Sequence):
            replies = sorted(replies, key=lambda named: asked.get(named[0], ""))
        for name, reply in replies:
            site = asked.get(name)
            if site is not None and _is_of(reply, node=self._nodes[site]):
                # PRIVACY: no second reply to one message is taken. test_a_second_reply_to_one_message_is_not_taken
                del asked[name]
                yield site, reply
            del reply


def _is_of(reply: Message | None, *, node: int) -> bool:
    return reply is None or reply.has_error() or reply.metadata.src_node_id == node


def _sent(request: TrainRequest) -> Sent:
    shapes = request.update_shapes
    return encode_request(request), partial(decode_train_message, shapes=shapes), sum(map(prod, shapes.values()))


def _hello_request() -> HelloRequest:
    # PRIVACY: a nonce for each message, from the operating system. test_a_replayed_introduction_is_refused
    return HelloRequest(protocol_version=PROTOCOL_VERSION, version=VERSION, nonce=secrets.token_hex(32))


def _said(reply: Message) -> Hello | OtherVersion | Refusal | None:
    """What a node answered; None for one that failed, or said nothing that can be read."""
    if not reply.has_content():
        return None
    try:
        return decode_hello(reply.content)
    except WireError:
        return None


def _answer(reply: Message | None, *, decode: Callable[[Message], Said]) -> Said | Failure:
    if reply is None:
        return Failure("invalid", "message-unreadable")
    if not reply.has_content():
        # Flower's own error text is not repeated: a site's exception may have put its data into it
        return Failure("failed", f"flower-{reply.error.code if reply.has_error() else 'empty'}")
    try:
        return decode(reply)
    except WireError as error:
        return Failure("invalid", error.code)
    except Exception as error:  # noqa: BLE001  what nobody thought of, in what a site sent, is that site's failure
        log.error("a reply cannot be read: %s; this is a fault of Motet's own too, please tell", type(error).__name__)
        return Failure("invalid", "message-unreadable")
