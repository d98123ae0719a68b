"""Pulling: the replies to messages, each pulled by itself: one that cannot be read is one site's and no other's.

in        a Flower Grid, messages
out       the id of each message that was answered, with the reply, or None where none can be made of what came
relies on the SuperLink for which reply belongs to which message; on nothing that a site's node has put into it

Flower's own `send_and_receive` over a network pulls all replies of a round in one call, and what it cannot decode it
raises: a SuperNode that was rewritten could end the run of all sites with a few bytes.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence

import httpx
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from flwr.superlink.grid import HttpGrid

from shared.wire import packed

log = logging.getLogger("motet.server")
_POLL_S, _LONG_S = 0.5, 2.0


def send_and_receive(
    messages: Sequence[Message], *, grid: Grid, timeout_s: float, meanwhile: Callable[[], None] = lambda: None
) -> Iterator[tuple[str, Message | None]] | Sequence[tuple[str, Message | None]]:
    """What comes within the time; a sequence where the Grid has gathered all of it.

    `meanwhile` is called between two looks over a network; it must not wait.
    """
    if isinstance(grid, HttpGrid):
        waiting = [name for name in grid.push_messages(_packed(messages)) if name]
        return _pulled(waiting, grid=grid, timeout_s=timeout_s, meanwhile=meanwhile)
    replies = grid.send_and_receive(messages, timeout=timeout_s)
    if isinstance(replies, Sequence):
        return [(reply.metadata.reply_to_message_id, reply) for reply in replies]
    # not held here: the next update is made once whoever asked has let go of this one
    return map(_named, replies)


def _packed(messages: Sequence[Message]) -> Sequence[Message]:
    """The messages with their arrays in one; those that share what they say go on sharing it."""
    made = dict[int, RecordDict]()
    for message in messages:
        content = message.content
        if id(content) not in made:
            made[id(content)] = packed(content)
        message.content = made[id(content)]
    return messages


def _named(reply: Message) -> tuple[str, Message | None]:
    return reply.metadata.reply_to_message_id, reply


def _pulled(
    waiting: Sequence[str], *, grid: HttpGrid, timeout_s: float, meanwhile: Callable[[], None]
) -> Iterator[tuple[str, Message | None]]:
    deadline = time.monotonic() + timeout_s
    while waiting:
        began, left = time.monotonic(), []
        for name in waiting:
            replies = pull(name, grid=grid)
            if replies is not None and not replies:
                left.append(name)
                continue
            # by the id that was asked for: the reply's own word for what it answers is its site's
            yield name, replies.pop() if replies else None
        waiting = left
        if waiting:
            meanwhile()
        now = time.monotonic()
        if not waiting or now >= deadline:
            return
        # the SuperLink has one core for all that it does: a fifth of it goes into looking, or a half with many sites
        looked = now - began
        time.sleep(min(deadline - now, max(_POLL_S, looked, min(4 * looked, _LONG_S))))


def pull(name: str, *, grid: Grid) -> list[Message] | None:
    """The reply to one message, if there is one; None where what came is no message."""
    try:
        replies = list(grid.pull_messages([name]))
        if all(isinstance(reply, Message) for reply in replies):
            return replies
    except (httpx.HTTPError, OSError):
        # the SuperLink, not a site: Flower has tried again for as long as it does
        raise
    except Exception as error:  # noqa: BLE001  Flower's decoders raise what they like
        # PRIVACY: whatever a site sent is that site's failure; its words are not repeated.
        # test_a_reply_that_flower_cannot_decode_is_one_sites_failure
        log.warning("a reply cannot be read: %s", type(error).__name__)
    return None
