"""SuperLink requests: CPU that Flower's SuperLink takes for a waiting site; so, how many sites one core serves.

in        how many sites it knows
out       a table; nothing is stored
relies on Flower 1.41's own app (routes, authentication, SQLite) called in this process, without a network

What TLS, uvicorn and a run cost comes on top; what the caller costs is in it. The SuperLink is one process, which
Python's lock holds to one core, whatever the machine has.

    python -m simulations.bench.superlink_requests --sites 1000
"""

import argparse
import asyncio
import logging
import os
import statistics
import tempfile
import time
from base64 import b64encode
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import patch

from shared.keys import PrivateKey, new_key, public_pem
from simulations.bench.crowd import HEARTBEAT_S, POLL_S, SAID_S, Protobuf

ASKED = ("activate-node", "pull-messages", "send-node-heartbeat")


def measure(*, sites: int, times: int) -> dict[str, list[float]]:
    """CPU seconds of requests by path, from sites in turn; each signs its own."""
    with tempfile.TemporaryDirectory() as folder:
        told = {"FLWR_DATABASE": str(Path(folder) / "superlink.db"), "FLWR_HOME": folder}
        with patch.dict(os.environ, told):
            return asyncio.run(_measure(sites=sites, times=times))


async def _measure(*, sites: int, times: int) -> dict[str, list[float]]:
    import httpx
    from flwr.common.constant import NOOP_ACCOUNT_NAME, NOOP_FLWR_AID
    from flwr.superlink.main import create_app

    logging.getLogger("flwr").setLevel(logging.ERROR)
    app = create_app()
    state = app.state.linkstate_factory.state()
    nodes = [
        (each, state.create_node(NOOP_FLWR_AID, NOOP_ACCOUNT_NAME, _public(each), SAID_S))
        for each in (new_key() for _ in range(sites))
    ]
    for _, node in nodes:
        state.activate_node(node, SAID_S)
    took: dict[str, list[float]] = {path: [] for path in ASKED}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://superlink") as client:
        for number in range(times):
            asked_by, node = nodes[number % sites]
            state.deactivate_node(node)
            for path in ASKED:
                content = _request(path, key=asked_by, node=node).SerializeToString(deterministic=True)
                headers, began = _signed(asked_by), time.process_time()
                answer = await client.post(f"/v1/fleet/{path}", content=content, headers=headers)
                took[path].append(time.process_time() - began)
                answer.raise_for_status()
    return took


def sites_of_a_core(median_s: dict[str, float]) -> float:
    """How many waiting sites would keep one core busy: a look every 3 s and a heartbeat every 24 s from each."""
    return 1 / (median_s["pull-messages"] / POLL_S + median_s["send-node-heartbeat"] / HEARTBEAT_S)


def _request(path: str, *, key: PrivateKey, node: int) -> Protobuf:
    from flwr.proto.fleet_pb2 import ActivateNodeRequest, PullMessagesRequest
    from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
    from flwr.proto.node_pb2 import Node

    made: dict[str, Protobuf] = {
        "activate-node": ActivateNodeRequest(public_key=_public(key), heartbeat_interval=SAID_S),
        "pull-messages": PullMessagesRequest(node=Node(node_id=node)),
        "send-node-heartbeat": SendNodeHeartbeatRequest(node=Node(node_id=node), heartbeat_interval=SAID_S),
    }
    return made[path]


def _public(key: PrivateKey) -> bytes:
    return public_pem(key.public_key()).encode()


def _signed(key: PrivateKey) -> dict[str, str]:
    from flwr.common.constant import TIMESTAMP_HEADER
    from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
    from flwr.supercore.date import now
    from flwr.supercore.primitives.asymmetric import sign_message
    from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE

    stamp = now().isoformat()
    return {
        "content-type": PROTOBUF_MEDIA_TYPE,
        "accept": PROTOBUF_MEDIA_TYPE,
        FLEET_HTTP_PUBLIC_KEY_HEADER: b64encode(_public(key)).decode(),
        TIMESTAMP_HEADER: stamp,
        FLEET_HTTP_SIGNATURE_HEADER: b64encode(sign_message(key, stamp.encode())).decode(),
    }


def main(words: Sequence[str] | None = None) -> None:
    """From the command line."""
    parser = argparse.ArgumentParser(prog="python -m simulations.bench.superlink_requests", description=__doc__)
    parser.add_argument("--sites", type=int, default=1000)
    parser.add_argument("--times", type=int, default=300, help="each request is made")
    told = parser.parse_args(words)
    took = measure(sites=told.sites, times=told.times)
    middle = {path: statistics.median(seconds) for path, seconds in took.items()}
    print(f"| request, {told.sites:,} sites known | CPU ms, median | quartiles |\n| --- | ---: | ---: |")
    for path, seconds in took.items():
        low, _, high = statistics.quantiles(seconds, n=4)
        print(f"| {path} | {1e3 * middle[path]:.2f} | {1e3 * low:.2f} to {1e3 * high:.2f} |")
    print(f"\none core is busy with the looks and heartbeats of {sites_of_a_core(middle):.0f} waiting sites")


if __name__ == "__main__":
    main()
