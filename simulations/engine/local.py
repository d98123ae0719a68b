"""Local engine: a Flower Grid in this process that calls the client app itself, one site after another.

in        the server app, the client app, the site files
out       the server app has run; an exception of its own comes through
relies on names that Flower keeps to itself, all of them in this file: holds for the versions in FLOWER_VERSIONS
"""

import itertools
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, Metadata, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from client.app import SITE_KEY
from shared.local_array import LocalArray
from shared.messages import TrainReply
from shared.wire import LocalReply

FLOWER_VERSIONS = ("1.41",)
"""versions under which the private names above are known to behave as used here"""
_FIRST_NODE_ID = 1000


def run_locally(server_app: ServerApp, client_app: ClientApp, *, sites: Sequence[Path]) -> None:
    """Run a federation to its end in this process."""
    run_over(LocalGrid(client_app, sites=sites), server_app)


def run_over(grid: "LocalGrid", server_app: ServerApp) -> None:
    """Run the server app over a grid in this process, to its end."""
    server_app(grid, Context(grid.run.run_id, SUPERLINK_NODE_ID, {}, RecordDict(), {}))


class LocalGrid(Grid):
    """Delivers messages by calling the client app; a site that raises costs its own reply only.

    Replies are made one by one, as they are asked for, so that no more than one of them need be held.
    """

    def __init__(self, client_app: ClientApp, *, sites: Sequence[Path], run_id: int = 1) -> None:
        self._run, self._app = Run.create_empty(run_id=run_id), client_app
        self._sites = dict(enumerate(sites, start=_FIRST_NODE_ID))
        self._contexts: dict[int, Context] = {}
        """of the sites whose app has noted something there; others get a new one with every message"""
        self._numbers = itertools.count(1)
        self._pending: dict[str, Message] = {}
        # Message() reads these class attributes and raises where they are not set
        TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = run_id, 1, SUPERLINK_NODE_ID

    def set_run(self, run: Run) -> None:
        """Replace the run that messages belong to."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run that messages belong to."""
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """A message to one site."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """All sites; they are always there."""
        return list(self._sites)

    def get_nodes(self) -> Iterable[NodeInfo]:
        """All sites, as Flower describes nodes."""
        return [NodeInfo(node_id=node) for node in self._sites]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Take messages; they are delivered when their replies are asked for."""
        ids = []
        for message in messages:
            ids.append(f"message-{next(self._numbers)}")
            message.metadata.__dict__["_message_id"] = ids[-1]
            self._pending[ids[-1]] = message
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterator[Message]:
        """Deliver and collect, in the order of the ids, each when it is asked for."""
        return self.replies([self._pending.pop(name) for name in message_ids if name in self._pending])

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:  # noqa: ARG002
        """Deliver and collect; a call in this process cannot be late, so `timeout` has no part in it."""
        return self.pull_messages(self.push_messages(messages))

    def replies(self, messages: Sequence[Message]) -> Iterator[Message]:
        """A reply to each message, in their order."""
        for message in messages:
            yield self._deliver(message)

    def site_of(self, message: Message) -> Path | None:
        """The site file of the node that a message goes to; None where there is no such node."""
        return self._sites.get(message.metadata.dst_node_id)

    def answered(self, message: Message, reply: TrainReply) -> Message:
        """A reply that is read in this process, with an id of its own; its metadata is what Flower would write."""
        asked, now, metadata = vars(message.metadata), time.time(), Metadata.__new__(Metadata)
        # past Metadata's own __init__ and properties, which would take as long as all else here
        vars(metadata).update(
            asked,
            _message_id=self._reply_id(),
            _src_node_id=asked["_dst_node_id"],
            _dst_node_id=asked["_src_node_id"],
            _reply_to_message_id=asked["_message_id"],
            _created_at=now,
            _ttl=asked["_created_at"] + asked["_ttl"] - now,
            _src_task_id=asked["_dst_task_id"],
            _dst_task_id=asked["_src_task_id"],
        )
        return LocalReply(reply, metadata=metadata)

    def failed(self, message: Message) -> Message:
        """The reply in place of a client app that raised; its words stay here."""
        return self.numbered(
            Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, "client app failed"), reply_to=message)
        )

    def numbered(self, reply: Message) -> Message:
        """A reply with an id of its own."""
        reply.metadata.__dict__["_message_id"] = self._reply_id()
        return reply

    def _reply_id(self) -> str:
        return f"reply-{next(self._numbers)}"

    def _deliver(self, message: Message) -> Message:
        site, node = self.site_of(message), message.metadata.dst_node_id
        if site is None:
            return self.numbered(Message(Error(ErrorCode.NODE_UNAVAILABLE, "no such site"), reply_to=message))
        context = self._contexts.get(node)
        if context is None:
            context = Context(self._run.run_id, node, {SITE_KEY: str(site)}, RecordDict(), {})
        try:
            # new shells around the same bytes: a site that writes into its message writes into nobody else's
            return self.numbered(self._app(_copied(message), context))
        except Exception:  # noqa: BLE001  as Flower's own workers do: an error reply, the round goes on
            return self.failed(message)
        finally:
            if context.state:
                self._contexts[node] = context


def _copied(message: Message) -> Message:
    copied = Message(_shells(message.content), message.metadata.dst_node_id, message.metadata.message_type)
    copied.__dict__["_metadata"] = message.metadata
    return copied


def _shells(records: RecordDict) -> RecordDict:
    copied = RecordDict()
    for name, record in records.items():
        match record:
            case ArrayRecord():
                copied[name] = _shells_of_arrays(record)
            case MetricRecord():
                copied[name] = MetricRecord(dict(record))
            case ConfigRecord():
                copied[name] = ConfigRecord(dict(record))
    return copied


def _shells_of_arrays(arrays: ArrayRecord) -> ArrayRecord:
    copied = ArrayRecord({name: array for name, array in arrays.items() if not isinstance(array, LocalArray)})
    for name, array in arrays.items():
        if isinstance(array, LocalArray):
            copied[name] = LocalArray(array.tensor.clone())
    return copied
