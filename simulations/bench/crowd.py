"""Crowd: made-up sites that speak to a real SuperLink as SuperNodes do, many in one process; they train nothing.

in        a folder of private keys (NAME.key), the server's address and authority
out       connections that pull every 3 s, send heartbeats and answer each message; what they saw, in a JSON file
relies on Flower 1.41's Fleet API over HTTP, as supernode/fleet_http_connection.py and start_client_internal.py use it

Each site has a connection and a key of its own. In place of a client app there is a wait, and an update of small random
numbers that no other site sends. Run as a program: python -m simulations.bench.crowd KEYS --server HOST:PORT --ca CA.
"""

import argparse
import asyncio
import json
import random
import signal
import ssl
import time
from base64 import b64encode
from collections import Counter, deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar, cast, runtime_checkable

import httpx
import numpy as np
import torch
from flwr.app import Message, MessageType, Metadata, RecordDict
from flwr.app.message import make_message, remove_content_from_message
from flwr.common.constant import MAX_RETRY_DELAY
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.fab_pb2 import GetFabRequest, GetFabResponse
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    ActivateNodeResponse,
    PullMessagesRequest,
    PullMessagesResponse,
    PushMessagesRequest,
    PushMessagesResponse,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest, SendNodeHeartbeatResponse
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    ConfirmMessageReceivedResponse,
    PullObjectRequest,
    PullObjectResponse,
    PushObjectRequest,
    PushObjectResponse,
)
from flwr.proto.node_pb2 import Node
from flwr.proto.run_pb2 import GetRunRequest, GetRunResponse
from flwr.supercore.constant import PULL_BACKOFF_CAP
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree, iterate_object_tree
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.primitives.asymmetric import sign_message
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from flwr.supercore.retry import exponential, full_jitter

from shared.keys import PrivateKey, public_pem, read_private, sign
from shared.messages import PROTOCOL_VERSION, Hello, ReplyHeader, TrainReply
from shared.record_names import HEADER
from shared.wire import array_shapes, encode_reply, packed

POLL_S, HEARTBEAT_S, SAID_S = 3.0, 24.0, 30.0
"""as Flower 1.41 has it: 0.8 of the 30 s that it says"""
_HEARTBEAT_TIMEOUT_S, _TIMEOUT_S, _SIGNED_FOR_S = 5.0, 30.0, 60.0
_MODALITY, _TOLD_S = "sensor", 60.0


@runtime_checkable
class Protobuf(Protocol):
    """A message of Flower's API."""

    def SerializeToString(self, *, deterministic: bool = ...) -> bytes:  # noqa: N802
        """Its bytes."""

    def ParseFromString(self, serialized: bytes) -> int:  # noqa: N802
        """Takes on what the bytes say."""


Answer = TypeVar("Answer", bound=Protobuf)


@dataclass
class Seen:
    """What all sites of a crowd saw."""

    requests: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    """by path and kind of failure; each was tried again"""
    seconds: deque[tuple[float, float]] = field(default_factory=deque)
    """of every request that was answered in the last minute: when, and how long it took"""
    answered: Counter[str] = field(default_factory=Counter)
    """messages, by type"""
    online: int = 0

    def told(self) -> dict[str, object]:
        """For the file."""
        while self.seconds and self.seconds[0][0] < time.monotonic() - _TOLD_S:
            self.seconds.popleft()
        slow = sorted(seconds for _, seconds in self.seconds)
        return {
            "online": self.online,
            "requests": dict(self.requests),
            "failed": dict(self.failed),
            "answered": dict(self.answered),
            "median_s": slow[len(slow) // 2] if slow else 0.0,
            "p99_s": slow[int(0.99 * len(slow))] if slow else 0.0,
        }


class MadeUpSite:
    """One of them."""

    def __init__(self, name: str, *, key: PrivateKey, server: str, http: httpx.AsyncClient, work_s: float, seen: Seen):
        """Connects to nothing yet.

        Args:
            http: of this site alone.
            work_s: between a message and its answer.
        """
        self._name, self._key, self._server, self._work_s, self._seen = name, key, server, work_s, seen
        self._http = http
        self._public = public_pem(key.public_key()).encode()
        self._node, self._runs = Node(), set[int]()
        self._signed_at, self._signed = 0.0, dict[str, str]()

    async def live(self) -> None:
        """Until it is cancelled."""
        # not all at once: owners start their nodes when they like
        await asyncio.sleep(random.random() * POLL_S)  # noqa: S311  no secret
        told = await self._ask(
            "activate-node",
            ActivateNodeRequest(public_key=self._public, heartbeat_interval=SAID_S),
            ActivateNodeResponse,
        )
        self._node = Node(node_id=told.node_id)
        self._seen.online += 1
        beating = asyncio.create_task(self._beat())
        try:
            while True:
                pulled = await self._ask("pull-messages", PullMessagesRequest(node=self._node), PullMessagesResponse)
                if pulled.messages_list:
                    await self._serve(pulled)
                else:
                    await asyncio.sleep(POLL_S)
        finally:
            beating.cancel()

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            request = SendNodeHeartbeatRequest(node=self._node, heartbeat_interval=SAID_S)
            await self._ask("send-node-heartbeat", request, SendNodeHeartbeatResponse, timeout_s=_HEARTBEAT_TIMEOUT_S)

    async def _serve(self, pulled: PullMessagesResponse) -> None:
        asked, tree = message_from_proto(pulled.messages_list[0]), pulled.message_object_trees[0]
        run_id, contents = asked.metadata.run_id, dict[str, bytes]()
        if run_id not in self._runs:
            run = await self._ask("get-run", GetRunRequest(node=self._node, run_id=run_id), GetRunResponse)
            fab = GetFabRequest(node=self._node, hash_str=run.run.fab_hash, run_id=run_id)
            await self._ask("get-fab", fab, GetFabResponse)
            self._runs.add(run_id)
        for each in iterate_object_tree(tree):
            request = PullObjectRequest(node=self._node, run_id=run_id, object_id=each.object_id)
            # a message is there before all of its objects are
            pauses = exponential(max_delay=PULL_BACKOFF_CAP)
            while not (found := await self._ask("pull-object", request, PullObjectResponse)).object_available:
                await asyncio.sleep(next(pauses) * random.uniform(0.8, 1.2))  # noqa: S311  no secret
            contents[each.object_id] = found.object_content
        received = ConfirmMessageReceivedRequest(
            node=self._node, run_id=run_id, message_object_id=asked.metadata.message_id
        )
        await self._ask("confirm-message-received", received, ConfirmMessageReceivedResponse)
        message = cast(Message, inflate_object_from_contents(tree.object_id, contents))
        await asyncio.sleep(self._work_s)
        await self._push(reply_to(message.content, asked=asked, name=self._name, key=self._key))
        self._seen.answered[asked.metadata.message_type] += 1

    async def _push(self, reply: Message) -> None:
        objects, run_id = get_all_nested_objects(reply), reply.metadata.run_id
        request = PushMessagesRequest(
            node=self._node,
            messages_list=[message_to_proto(remove_content_from_message(reply))],
            message_object_trees=[get_object_tree(reply)],
            clientapp_runtime_list=[self._work_s],
        )
        told = await self._ask("push-messages", request, PushMessagesResponse)
        for name in told.objects_to_push:
            pushed = PushObjectRequest(
                node=self._node,
                run_id=run_id,
                object_id=name,
                object_content=objects[name].deflate(),
                session_id=told.session_id,
            )
            await self._ask("push-object", pushed, PushObjectResponse)

    async def _ask(self, path: str, request: Protobuf, kind: type[Answer], *, timeout_s: float = _TIMEOUT_S) -> Answer:
        """Again and again until it is answered, after the pauses that Flower's SuperNode makes."""
        content, pauses = request.SerializeToString(deterministic=True), exponential(max_delay=MAX_RETRY_DELAY)
        while True:
            began = time.monotonic()
            self._seen.requests[path] += 1
            try:
                answer = await self._http.post(
                    f"https://{self._server}/v1/fleet/{path}",
                    content=content,
                    headers=self._headers(),
                    timeout=timeout_s,
                )
                answer.raise_for_status()
            except httpx.HTTPError as error:
                self._seen.failed[f"{path}: {type(error).__name__}"] += 1
                await asyncio.sleep(full_jitter(next(pauses)))
                continue
            self._seen.seconds.append((time.monotonic(), time.monotonic() - began))
            found = kind()
            found.ParseFromString(answer.content)
            return found

    def _headers(self) -> dict[str, str]:
        """Signed once a minute, where a SuperNode signs each request: the SuperLink's part of the work is the same."""
        if time.monotonic() - self._signed_at > _SIGNED_FOR_S:
            from flwr.common.constant import TIMESTAMP_HEADER
            from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
            from flwr.supercore.date import now

            stamp, self._signed_at = now().isoformat(), time.monotonic()
            self._signed = {
                "content-type": PROTOBUF_MEDIA_TYPE,
                "accept": PROTOBUF_MEDIA_TYPE,
                FLEET_HTTP_PUBLIC_KEY_HEADER: b64encode(self._public).decode(),
                TIMESTAMP_HEADER: stamp,
                FLEET_HTTP_SIGNATURE_HEADER: b64encode(sign_message(self._key, stamp.encode())).decode(),
            }
        return self._signed


def reply_to(content: RecordDict, *, asked: Message, name: str, key: PrivateKey) -> Message:
    """A signed introduction, or an update in the form that was asked for."""
    header = json.loads(str(cast("dict[str, str]", content[HEADER])["json"]))
    if asked.metadata.message_type == MessageType.QUERY:
        hello = Hello(protocol_version=PROTOCOL_VERSION, site=name, modalities=(_MODALITY,), nominal_size=24)
        said = encode_reply(hello.model_copy(update={"signature": sign(key, hello.signed_text(header["nonce"]))}))
    else:
        drawn = np.random.default_rng()
        update = {
            each: torch.from_numpy(drawn.normal(scale=1e-3, size=shape).astype(np.float32))
            for each, shape in array_shapes(content).items()
        }
        told = ReplyHeader(
            protocol_version=PROTOCOL_VERSION,
            run_id=header["run_id"],
            round_number=header["round_number"],
            nominal_size=24,
            privacy=None,
        )
        said = encode_reply(TrainReply(told, update))
    return _message(packed(said), asked=asked.metadata)


def _message(content: RecordDict, *, asked: Metadata) -> Message:
    now = time.time()
    metadata = Metadata(
        run_id=asked.run_id,
        message_id="",
        src_node_id=asked.dst_node_id,
        dst_node_id=asked.src_node_id,
        reply_to_message_id=asked.message_id,
        group_id=asked.group_id,
        created_at=now,
        ttl=asked.created_at + asked.ttl - now,
        message_type=asked.message_type,
    )
    made = make_message(metadata=metadata, content=content)
    made.metadata.__dict__["_message_id"] = made.object_id
    return made


async def crowd(keys: Path, *, server: str, ca: Path, work_s: float, out: Path) -> None:
    """All sites of a folder, until SIGTERM."""
    trust, seen, ended = ssl.create_default_context(cafile=str(ca)), Seen(), asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    sites = [
        MadeUpSite(
            path.stem,
            key=read_private(path),
            server=server,
            http=httpx.AsyncClient(verify=trust),
            work_s=work_s,
            seen=seen,
        )
        for path in sorted(keys.glob("*.key"))
    ]
    lives = [asyncio.create_task(site.live()) for site in sites]
    while not ended.is_set():
        half = out.with_suffix(".half")
        half.write_text(json.dumps(seen.told()), encoding="utf-8")
        half.replace(out)
        done, _ = await asyncio.wait(
            [asyncio.create_task(ended.wait()), *lives], timeout=1.0, return_when="FIRST_EXCEPTION"
        )
        for task in done & set(lives):
            task.result()
    for task in lives:
        task.cancel()
    await asyncio.gather(*lives, return_exceptions=True)


def main() -> None:
    """From the command line."""
    parser = argparse.ArgumentParser(prog="python -m simulations.bench.crowd", description=__doc__)
    parser.add_argument("keys", type=Path, help="folder of NAME.key files")
    parser.add_argument("--server", required=True, help="HOST:PORT")
    parser.add_argument("--ca", type=Path, required=True)
    parser.add_argument("--work-s", type=float, default=5.0)
    parser.add_argument("--out", type=Path, required=True)
    told = parser.parse_args()
    asyncio.run(crowd(told.keys, server=told.server, ca=told.ca, work_s=told.work_s, out=told.out))


if __name__ == "__main__":
    main()
