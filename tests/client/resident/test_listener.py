"""Listener: who may connect, how long and how large a request may be, and that nobody holds up anybody else."""

import os
import socket
import stat
import threading
import time
from pathlib import Path

import pytest

from client.resident.carrier import ask
from client.resident.frames import MAGIC, Frame
from client.resident.listener import MOST_CONNECTIONS, Limits, Listener, user_ids
from client.resident.protocol import Parts, reply_frame
from shared.errors import ConfigError, WireError
from tests.client.resident.agents import as_nobody, listening, needs_other_users, open_folder

HELLO = Parts(header="{}")
ASKING = """
import socket, sys
with socket.socket(socket.AF_UNIX) as connection:
    connection.settimeout(20)
    try:
        connection.connect(sys.argv[1])
        connection.sendall(bytes.fromhex(sys.argv[2]))
        print("answered" if connection.recv(8) else "hung up")
    except ConnectionError:
        print("hung up")
    except PermissionError:
        print("not allowed to connect")
"""


def greeting(_: Frame) -> Frame:
    return reply_frame(HELLO)


def asks(path: Path) -> Parts:
    return ask("health", Parts(), agent=path, answer_s=20.0)


def asked_by_nobody(path: Path) -> str:
    head = b'{"agent_protocol":1,"kind":"health","header":null}'
    request = MAGIC + len(head).to_bytes(4, "big") + bytes(8) + head
    return as_nobody(ASKING, str(path), request.hex(), before="import socket")


def test_a_request_is_answered_and_the_socket_goes_with_the_listener(tmp_path: Path) -> None:
    path = tmp_path / "agent" / "socket"
    with listening(path, greeting):
        assert asks(path) == HELLO
        assert asks(path) == HELLO
    assert not path.exists()


def test_nobody_else_can_open_the_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not for a moment: as it is bound its mode is the owner's alone, whatever the umask."""
    path, seen, real = tmp_path / "agent" / "socket", [], Path.chmod

    def watched(self: Path, mode: int) -> None:
        seen.append(stat.S_IMODE(self.stat().st_mode))
        real(self, mode)

    monkeypatch.setattr(Path, "chmod", watched)
    before = os.umask(0)
    try:
        with listening(path, greeting):
            found = path.stat()
            assert stat.S_ISSOCK(found.st_mode)
            assert (stat.S_IMODE(found.st_mode), found.st_uid) == (0o600, os.geteuid())
    finally:
        os.umask(before)
    assert seen == [0o600]


@needs_other_users
def test_a_user_who_is_turned_away_again_and_again_gets_one_line(caplog: pytest.LogCaptureFixture) -> None:
    with open_folder() as folder, listening(folder / "agent" / "socket", greeting, others=user_ids(["daemon"])):
        for _ in range(3):
            assert asked_by_nobody(folder / "agent" / "socket") == "hung up"
    assert [each for each in caplog.messages if "is refused" in each] == [
        "a connection of user 65534 is refused (times: 1)"
    ]


@needs_other_users
def test_a_user_whom_the_owner_does_not_name_is_hung_up_on() -> None:
    """The mode lets them connect, as it has to for the one who is named; the kernel's word does not."""
    with open_folder() as folder:
        path = folder / "agent" / "socket"
        with listening(path, greeting, others=user_ids(["daemon"])):
            assert stat.S_IMODE(path.stat().st_mode) == 0o666
            assert asked_by_nobody(path) == "hung up"
            assert asks(path) == HELLO
        with listening(path, greeting, others=user_ids(["nobody"])):
            assert asked_by_nobody(path) == "answered"
        with listening(path, greeting):
            assert asked_by_nobody(path) == "not allowed to connect"


def test_a_folder_that_others_may_write_to_is_refused(tmp_path: Path) -> None:
    for mode in (0o777, 0o770, 0o702):
        (tmp_path / "open").mkdir(exist_ok=True)
        (tmp_path / "open").chmod(mode)
        with pytest.raises(ConfigError, match="can be written to by others"):
            Listener(tmp_path / "open" / "socket", others=frozenset(), limits=Limits(1), answer=greeting)


@needs_other_users
def test_a_folder_of_another_user_is_refused(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir(mode=0o700)
    os.chown(tmp_path / "theirs", 65534, 65534)
    done = tmp_path / "theirs" / "socket"
    with pytest.raises(ConfigError, match="allowed: a folder of the agent's own user"):
        Listener(done, others=frozenset(), limits=Limits(1), answer=greeting)


def test_a_path_that_is_taken_missing_or_too_long_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for name, said in (("file", "is there and no socket"), ("link", "is there and no socket"),
                       ("no/socket", "make the folder first"), ("x" * 108, "is longer than")):  # fmt: skip
        with pytest.raises(ConfigError, match=said):
            Listener(tmp_path / name, others=frozenset(), limits=Limits(1), answer=greeting)
    assert (tmp_path / "file").read_text(encoding="utf-8") == "mine"


def test_a_socket_in_use_is_left_alone_and_one_left_behind_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "agent" / "socket"
    with listening(path, greeting):
        with pytest.raises(ConfigError, match=r"answers at .* already"):
            Listener(path, others=frozenset(), limits=Limits(1), answer=greeting)
        assert asks(path) == HELLO
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    with listening(path, greeting):
        assert asks(path) == HELLO


def test_a_user_who_is_not_there_cannot_be_named() -> None:
    assert user_ids(["4711"]) == {4711}
    with pytest.raises(ConfigError, match="is no user of this machine"):
        user_ids(["nobody-of-this-name"])


def test_slow_and_silent_peers_are_cut_off_and_hold_up_nobody(tmp_path: Path) -> None:
    path = tmp_path / "agent" / "socket"
    with listening(path, greeting, limits=Limits(most_body_bytes=100, receive_s=0.6, send_s=0.6)):
        peers = [socket.socket(socket.AF_UNIX) for _ in range(MOST_CONNECTIONS - 1)]
        for number, peer in enumerate(peers):
            peer.settimeout(20)
            peer.connect(str(path))
            peer.sendall(MAGIC[: number + 1])
        assert asks(path) == HELLO  # while all of them are waiting
        for peer in peers:
            assert peer.recv(1) == b""
            peer.close()
        assert asks(path) == HELLO


def test_more_peers_than_there_is_room_for_are_hung_up_on(tmp_path: Path) -> None:
    path, gate, busy = tmp_path / "agent" / "socket", threading.Event(), threading.Semaphore(0)

    def slow(frame: Frame) -> Frame:
        busy.release()
        gate.wait(20)
        return greeting(frame)

    with listening(path, slow):
        threads = [threading.Thread(target=asks, args=(path,)) for _ in range(MOST_CONNECTIONS)]
        for thread in threads:
            thread.start()
        for _ in threads:
            assert busy.acquire(timeout=20)
        with pytest.raises((WireError, OSError)):
            asks(path)
        gate.set()
        for thread in threads:
            thread.join()
        deadline = time.monotonic() + 20
        while True:  # the last thread gives its place back after it has answered
            try:
                assert asks(path) == HELLO
                break
            except (WireError, OSError):
                assert time.monotonic() < deadline
                time.sleep(0.05)


def test_who_does_not_take_the_reply_is_cut_off(tmp_path: Path) -> None:
    def long(_: Frame) -> Frame:
        return Frame(b"{}", bytes(1 << 24))

    path = tmp_path / "agent" / "socket"
    with listening(path, long, limits=Limits(most_body_bytes=100, send_s=0.3)):
        with socket.socket(socket.AF_UNIX) as peer:
            peer.settimeout(20)
            peer.connect(str(path))
            head = b"{}"
            peer.sendall(MAGIC + len(head).to_bytes(4, "big") + bytes(8) + head)
            time.sleep(0.6)
            came = 0
            while piece := peer.recv(1 << 20):
                came += len(piece)
        assert came < 1 << 24
