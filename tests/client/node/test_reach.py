"""A server that is away is told of on the terminal of the node, once, and once more when it is back."""

import logging
import socket
import time
from pathlib import Path

import pytest

from client.node import reach
from client.node.reach import PATIENCE_S, Reach, watched, why_silent
from tests.system.machine import free_port

RETRYING = "WARNING : Connection attempt failed, retrying in 1.75 seconds\n"


def test_a_server_that_does_not_answer_is_told_of_once_and_once_more_when_it_does(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, logger="motet.site")
    answers: list[str | None] = ["connection refused"]
    clock = [100.0]
    looking = Reach("localhost:18600", is_troubled=lambda: True, asked=lambda _: answers[0], now=lambda: clock[0])
    looking.look()
    clock[0] += PATIENCE_S - 0.1
    looking.look()
    assert caplog.messages == []
    clock[0] += 0.2
    looking.look()
    looking.look()
    assert caplog.messages == [
        "localhost:18600 does not answer (connection refused); tried again until it does; is the server started, "
        "is the port open?"
    ]
    answers[0] = None
    looking.look()
    looking.look()
    assert caplog.messages[1:] == ["localhost:18600 answers; the node connects within half a minute"]


def test_a_server_is_not_asked_while_the_node_is_connected_nor_told_of_where_it_answers(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, logger="motet.site")
    asked: list[str] = []
    troubled = [False]

    def answers(server: str) -> None:
        asked.append(server)

    looking = Reach("a:1", is_troubled=lambda: troubled[0], asked=answers)
    looking.look()
    assert asked == []
    troubled[0] = True
    looking.look()
    assert (asked, caplog.messages) == (["a:1"], [])


def test_why_a_server_is_silent_is_said_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    assert why_silent(f"127.0.0.1:{free_port()}") == "connection refused"
    with socket.create_server(("127.0.0.1", 0)) as found:
        assert why_silent(f"127.0.0.1:{found.getsockname()[1]}") is None

    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    def slow(*_: object, **__: object) -> None:
        raise TimeoutError

    monkeypatch.setattr(socket, "create_connection", unknown)
    assert why_silent("nowhere:1") == "no machine of the name nowhere is known here"
    monkeypatch.setattr(socket, "create_connection", slow)
    assert why_silent("nowhere:1") == "nothing came in 5 s"
    monkeypatch.undo()
    assert why_silent("127.0.0.1:99999") is not None


def test_the_nodes_log_is_what_makes_it_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(reach, "_LOOK_S", 0.01)
    monkeypatch.setattr(reach, "PATIENCE_S", 0.0)
    path, deadline = tmp_path / "supernode.log", time.monotonic() + 20
    with watched(f"127.0.0.1:{free_port()}", said_in=path):
        path.write_text(RETRYING, encoding="utf-8")
        while "does not answer (connection refused)" not in caplog.text:
            assert time.monotonic() < deadline
            time.sleep(0.02)
