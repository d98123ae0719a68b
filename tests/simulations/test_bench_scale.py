"""What the benches of many sites count: memory that is shared once, CPU of what has ended, bytes both ways, what fits."""

import asyncio
import contextlib
import gc
import json
import os
import socket
import threading
from pathlib import Path

import httpx
import numpy as np
import pytest
from flwr.app import Message, MessageType, Metadata, RecordDict
from flwr.app.message import make_message
from flwr.superlink.main import create_app

from server.enrolment import enrol
from server.handshake import Enrolled, judge_introduction
from server.judgement import Failure, judge
from shared.keys import PrivateKey, new_key, public_line, public_pem
from shared.messages import PROTOCOL_VERSION, HelloRequest, RequestHeader, TrainReply, TrainRequest
from shared.version import VERSION
from shared.wire import decode_hello, decode_reply, encode_hello_request, encode_request
from simulations.bench import crowd, many_updates, superlink_requests
from simulations.bench.crowd import MadeUpSite, Seen, reply_to
from simulations.bench.machine import machine
from simulations.bench.many_sites import asked_a_second, total
from simulations.bench.process_table import Held, Peaks, cpu_in, growth, held_in, memory_of, name_of
from simulations.bench.relay import relayed
from simulations.bench.scale import (
    SERVER_BYTES,
    SITE_BYTES,
    KindUse,
    Scaled,
    Sent,
    refuse_what_does_not_fit,
    render,
    training_seconds,
)
from simulations.bench.soak_site import free_port
from tests.server.conftest import small_run
from tests.server.test_hostile_site import WEIGHTS

MIB = 2**20
ASKED = TrainRequest(
    RequestHeader(protocol_version=PROTOCOL_VERSION, run=small_run(), run_id="r", round_number=3, planned_rounds=4),
    WEIGHTS,
)


def test_memory_is_read_from_what_the_kernel_tells() -> None:
    rollup = (
        "55-7f ---p 00000000 00:00 0    [rollup]\nRss:    2048 kB\nPss:    1024 kB\nPss_Dirty:   9 kB\nSwapPss:  7 kB\n"
    )
    assert held_in(rollup) == Held(pss=MIB, rss=2 * MIB)
    assert held_in("55-7f ---p 00000000 00:00 0    [rollup]\n") is None
    mine = memory_of(os.getpid())
    assert mine is not None
    assert 0 < mine.pss <= mine.rss


def test_cpu_is_a_processes_own_and_that_of_its_children_that_ended() -> None:
    """Its name may hold brackets and blanks."""
    ticks = os.sysconf("SC_CLK_TCK")
    fields = ["S", *map(str, range(4, 14)), str(3 * ticks), str(ticks), str(20 * ticks), str(2 * ticks), "0"]
    assert cpu_in(f"77 (a) b (c) {' '.join(fields)}") == (4.0, 22.0)


def test_growth_is_told_for_each_round_or_minute() -> None:
    assert growth({"a": 1.0}, {"a": 5.0, "b": 2.0}, per=4.0) == {"a": 1.0, "b": 0.5}


def test_commands_that_end_are_told_from_those_that_supervise() -> None:
    said = {"python -m motet node start /x": "supervisor", "python -m motet run a --on b": "command"}
    assert {name_of(command) for command in said} == {"supervisor", "command"}
    assert name_of("python -m motet agent start /x") == "agent"


def test_peaks_are_of_each_process_and_sums_of_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    held = {1: Held(10, 100), 2: Held(30, 300), 3: Held(5, 50)}
    monkeypatch.setattr("simulations.bench.process_table.memory_of", held.get)
    peaks = Peaks()
    peaks.look({1: "site agent", 2: "site agent", 3: "server superlink"})
    held |= {1: Held(20, 80), 2: Held(4, 40)}
    peaks.look({1: "site agent", 2: "site agent", 4: "site clientapp"})
    assert peaks.most_pss == 45
    assert peaks.most_processes == 3
    # the larger of both looks, each by itself; the process that was gone at once counts for nothing
    assert peaks.of_one() == {"server superlink": (1, Held(5, 50)), "site agent": (2, Held(25, 200))}


def test_what_does_not_fit_is_refused_with_how_many_would() -> None:
    refuse_what_does_not_fit(2, available=SERVER_BYTES + 2 * SITE_BYTES)
    with pytest.raises(SystemExit, match=r"at most 2 sites \(--sites 2\)"):
        refuse_what_does_not_fit(3, available=SERVER_BYTES + 3 * SITE_BYTES - 1)


def test_training_is_the_middle_of_what_agents_wrote_down() -> None:
    lines = [
        json.dumps({"event": "answer", "kind": kind, "seconds": seconds})
        for kind, seconds in (("train", 9.0), ("train", 1.0), ("hello", 70.0), ("train", 2.0))
    ]
    assert training_seconds([*lines, json.dumps({"event": "started"})]) == 2.0
    assert training_seconds([]) == 0.0


def test_a_relay_counts_what_passes_each_way() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            taken, _ = server.accept()
            with taken:
                assert len(taken.recv(10, socket.MSG_WAITALL)) == 10
                taken.sendall(b"x" * 300)

        thread = threading.Thread(target=answer)
        thread.start()
        with relayed(free_port(), to=server.getsockname()[1]) as relay:
            with socket.create_connection(("127.0.0.1", relay.port)) as there:
                there.sendall(b"y" * 10)
                assert len(there.recv(300, socket.MSG_WAITALL)) == 300
            thread.join()
            assert (relay.to_server, relay.from_server, relay.num_opened) == (10, 300, 1)


def test_the_table_says_what_one_site_sends_and_one_that_waits_holds() -> None:
    kinds = tuple(
        KindUse(
            kind=kind, most=4, pss_bytes=held * MIB, rss_bytes=2 * held * MIB, cpu_s_round=1.0, cpu_s_idle_minute=0.5
        )
        for kind, held in (
            ("site agent", 300),
            ("site clientapp", 90),
            ("site supernode", 100),
            ("server superlink", 70),
        )
    )
    sent = Sent(to_server=8000, from_server=4000, connections_opened=2)
    found = Scaled(
        sites=4, rounds=2, machine=machine(), versions={}, commit="", set_up_s=1, first_round_s=9, round_s=(5.0,),
        training_s=1, updates_used=8, updates_asked=8, kinds=kinds, most_processes=9, most_pss_bytes=MIB,
        idle_pss_bytes=MIB, idle_processes=5, most_connections=4, idle_connections=4, round_sent=sent, idle_sent=sent,
    )  # fmt: skip
    text = render(found)
    assert "a site that waits: 400 MiB" in text
    assert "a round, one site: 2.0 kB to the server, 1.0 kB from it, 0.5 connections" in text
    assert "| site clientapp | 4 | 90 | 180 | 1.00 | 0.50 |" in text


def _asked(kind: str) -> Message:
    metadata = Metadata(
        run_id=5, message_id="m", src_node_id=1, dst_node_id=2, reply_to_message_id="", group_id="1", created_at=1.0,
        ttl=100.0, message_type=kind,
    )  # fmt: skip
    return make_message(metadata=metadata, content=RecordDict())


def test_a_made_up_site_is_taken_for_a_real_one(tmp_path: Path) -> None:
    """Its introduction is signed, its update has the form that was asked for, and no two are alike."""
    key: PrivateKey = new_key()
    (tmp_path / "a.pub").write_text(public_line(key.public_key(), name="a"), encoding="utf-8")
    enrol(tmp_path / "a.pub", folder=tmp_path / "enrolled", days=None)
    request = HelloRequest(protocol_version=PROTOCOL_VERSION, version=VERSION, nonce="0" * 64)
    said = reply_to(encode_hello_request(request), asked=_asked(MessageType.QUERY), name="a", key=key)
    judged = judge_introduction(
        decode_hello(said.content), nonce=request.nonce, enrolled=Enrolled(tmp_path / "enrolled"), taken=()
    )
    assert judged.code is None
    assert (said.metadata.src_node_id, said.metadata.dst_node_id, said.metadata.reply_to_message_id) == (2, 1, "m")

    made = [
        decode_reply(
            reply_to(encode_request(ASKED), asked=_asked(MessageType.TRAIN), name="a", key=key).content,
            shapes=ASKED.update_shapes,
        )
        for _ in range(2)
    ]
    for each in made:
        assert isinstance(each, TrainReply)
        assert not isinstance(judge(each, request=ASKED), Failure)
    one, other = (each.update["w"].numpy() for each in made if isinstance(each, TrainReply))
    assert not np.array_equal(one, other)


def test_requests_are_counted_whatever_they_were_for() -> None:
    seen = Seen()
    seen.requests.update({"pull-messages": 4, "get-run": 1})
    seen.failed["pull-messages: ReadTimeout"] += 1
    assert total(seen.told(), "requests") == 5
    assert total(seen.told(), "failed") == 1
    assert total({}, "requests") == 0
    assert asked_a_second(1000) == pytest.approx(375)


def test_an_aggregation_is_measured_and_told_beside_what_its_updates_hold(capsys: pytest.CaptureFixture[str]) -> None:
    many_updates.main(["--one", "median", "--sites", "5", "--parameters", "10"])
    seconds, grown = json.loads(capsys.readouterr().out)
    assert seconds > 0
    assert grown >= 0
    told = many_updates.line("mean", sites=1000, parameters=MIB, seconds=1.0, grown=5 * MIB)
    assert told.endswith("| 1.0 | 5 | 4,000 |")


@pytest.mark.filterwarnings("ignore:No path_separator")
def test_a_waiting_sites_requests_are_answered_by_flowers_own_app_and_add_up_to_a_core() -> None:
    took = superlink_requests.measure(sites=2, times=3)
    assert {path: len(seconds) for path, seconds in took.items()} == dict.fromkeys(superlink_requests.ASKED, 3)
    # a site that looks every 3 s at 3 ms and tells every 24 s at 24 ms takes 2 ms of each second
    assert superlink_requests.sites_of_a_core({"pull-messages": 0.003, "send-node-heartbeat": 0.024}) == pytest.approx(
        500
    )


@pytest.mark.filterwarnings("ignore:No path_separator")
# what the framework leaves behind of a request that is cancelled; it is gone before the test is
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
def test_a_made_up_site_speaks_as_flowers_own_app_expects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is let in by its signature, looks for messages and stays on line; nothing that it asks fails."""
    monkeypatch.setenv("FLWR_DATABASE", str(tmp_path / "superlink.db"))
    monkeypatch.setattr(crowd, "POLL_S", 0.05)
    monkeypatch.setattr(crowd, "HEARTBEAT_S", 0.1)
    app, key, seen = create_app(), new_key(), Seen()
    state = app.state.linkstate_factory.state()
    node = state.create_node("owner", "owner", public_pem(key.public_key()).encode(), 30.0)

    async def live() -> None:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app)) as http:
            site = MadeUpSite("a", key=key, server="superlink", http=http, work_s=0.0, seen=seen)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(site.live(), timeout=1.5)

    asyncio.run(live())
    gc.collect()
    assert not seen.failed
    assert seen.online == 1
    assert {"activate-node", "pull-messages", "send-node-heartbeat"} == seen.requests.keys()
    assert state.get_node_info(node_ids=[node])[0].status == "online"
