"""Latecomers: nodes that belong to no site are asked now and then who they are, and no round waits for it.

in        a Flower Grid; the nodes on line that belong to no site
out       what they answered to a nonce of their own; nothing of it is judged here
relies on pulling.py, so that an answer that cannot be read is that node's alone
"""

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass

from flwr.app import Message, MessageType
from flwr.serverapp import Grid

from server.pulling import pull
from shared.messages import Hello, HelloRequest, OtherVersion, Refusal
from shared.wire import encode_hello_request

AGAIN_S = 60.0
"""between an answer of a node that was not accepted, or its silence, and the next question"""
_PATIENCE_S = 150.0
"""with one question; a node without its agent answers after more than a minute"""
_TTL_S = 3600.0
"""not much longer than it is waited for, or a node that was stuck would be asked all of it again; yet the clocks of two
machines may differ"""
_LOOK_S = 5.0
"""between two looks in the middle of a round"""
_MOST_ASKED = 32
"""at a time: strangers must not hold up the rounds of sites that are in"""

Said = Hello | OtherVersion | Refusal


@dataclass(frozen=True)
class Answer:
    """What a node said, unjudged."""

    node: int
    nonce: str
    """what it was sent, and must have signed"""
    said: Said


@dataclass(frozen=True)
class _Question:
    node: int
    nonce: str
    at: float


class Latecomers:
    """Nodes that are asked who they are; remembers no more of them than are on line, and a minute back."""

    def __init__(self, grid: Grid, *, ask: Callable[[], HelloRequest], read: Callable[[Message], Said | None]) -> None:
        """Asks nobody yet.

        Args:
            grid: carries the questions.
            ask: makes a question with a nonce of its own.
            read: what an answer says; None where nothing can be read.
        """
        self._grid, self._ask, self._read = grid, ask, read
        self._questions: dict[str, _Question] = {}
        """by the id of the message; one a node"""
        self._answers: dict[int, Answer] = {}
        self._heard: dict[int, float] = {}
        """node -> when it was asked or has answered last"""
        self._looked = -_LOOK_S

    def asked(self, nodes: Collection[int]) -> None:
        """These were asked by somebody else just now."""
        self._heard |= dict.fromkeys(nodes, time.monotonic())

    def is_due(self) -> bool:
        """Whether the last look is some seconds past."""
        return time.monotonic() - self._looked >= _LOOK_S

    def look(self, strangers: Collection[int]) -> None:
        """Take the answers that have come, and ask whoever is to be asked; waits for nothing.

        Args:
            strangers: nodes on line that belong to no site.
        """
        self._looked = now = time.monotonic()
        self._heard = {n: at for n, at in self._heard.items() if n in strangers or now - at < AGAIN_S}
        self._answers = {node: answer for node, answer in self._answers.items() if node in strangers}
        self._questions = {
            name: each
            for name, each in self._questions.items()
            if each.node in strangers and now - each.at < _PATIENCE_S
        }
        self._hear()
        self._put_questions(strangers, now=now)

    def take(self) -> list[Answer]:
        """The answers that have come since this was called last, by node."""
        taken, self._answers = [self._answers[node] for node in sorted(self._answers)], {}
        return taken

    def _hear(self) -> None:
        for name, question in list(self._questions.items()):
            replies = pull(name, grid=self._grid)
            if replies is not None and not replies:
                continue
            # one answer to one question: its nonce is used with it
            del self._questions[name]
            self._heard[question.node] = time.monotonic()
            said = self._read(replies[0]) if replies else None
            if said is not None:
                self._answers[question.node] = Answer(question.node, question.nonce, said)

    def _put_questions(self, strangers: Collection[int], *, now: float) -> None:
        busy = {question.node for question in self._questions.values()} | self._answers.keys()
        due = [n for n in strangers if n not in busy and now - self._heard.get(n, -AGAIN_S) >= AGAIN_S]
        # whoever has waited longest comes first, so that those that are silent keep nobody out
        due.sort(key=lambda node: (self._heard.get(node, float("-inf")), node))
        due = due[: max(0, _MOST_ASKED - len(self._questions))]
        if not due:
            return
        words = [self._ask() for _ in due]
        messages = [
            Message(encode_hello_request(word), node, MessageType.QUERY, ttl=_TTL_S)
            for node, word in zip(due, words, strict=True)
        ]
        for name, node, word in zip(self._grid.push_messages(messages), due, words, strict=False):
            if name:
                self._questions[name] = _Question(node, word.nonce, now)
        self._heard |= dict.fromkeys(due, now)
