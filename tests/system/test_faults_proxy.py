"""The proxy of the fault tests does what it says, or those tests would show nothing."""

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from tests.system.machine import free_port
from tests.system.proxy import Proxy, proxied


@pytest.fixture
def echo() -> Iterator[int]:
    """A server that sends back what it gets; its port."""
    listening = socket.create_server(("127.0.0.1", 0))

    def serve(connection: socket.socket) -> None:
        with connection:
            try:
                while data := connection.recv(4096):
                    connection.sendall(data)
            except OSError:
                return

    def take() -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    threading.Thread(target=take, daemon=True).start()
    yield int(listening.getsockname()[1])
    listening.shutdown(socket.SHUT_RDWR)
    listening.close()


@pytest.fixture
def proxy(echo: int) -> Iterator[Proxy]:
    with proxied(free_port(), to=echo) as made:
        yield made


def connected(proxy: Proxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=5)


def everything(connection: socket.socket) -> bytes:
    """All that comes until the other side has gone, whether it says farewell or not."""
    found = b""
    try:
        while data := connection.recv(4096):
            found += data
    except ConnectionResetError:
        pass
    return found


def test_bytes_pass_later_where_it_delays(proxy: Proxy) -> None:
    proxy.delay_s = 0.2
    began = time.monotonic()
    with connected(proxy) as connection:
        connection.sendall(b"hello")
        assert connection.recv(5) == b"hello"
    assert time.monotonic() - began >= 0.4


def test_a_connection_is_cut_in_the_middle_of_what_is_sent(proxy: Proxy) -> None:
    proxy.cut_after = 3
    with connected(proxy) as connection:
        connection.sendall(b"hello")
        assert everything(connection) in (b"", b"hel")
    assert proxy.num_cut == 1


def test_all_connections_are_cut_and_the_next_one_is_taken(proxy: Proxy) -> None:
    with connected(proxy) as first:
        first.sendall(b"a")
        assert first.recv(1) == b"a"
        proxy.cut()
        assert everything(first) == b""
    with connected(proxy) as second:
        second.sendall(b"b")
        assert second.recv(1) == b"b"


def test_what_is_dropped_does_not_come_and_who_is_refused_is_hung_up_on(proxy: Proxy) -> None:
    proxy.mode = "drop"
    with connected(proxy) as connection:
        connection.sendall(b"hello")
        connection.settimeout(0.3)
        with pytest.raises(TimeoutError):
            connection.recv(1)
    proxy.mode = "refuse"
    with connected(proxy) as refused:
        assert everything(refused) == b""
