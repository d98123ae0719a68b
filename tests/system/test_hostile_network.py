"""The server's one port, as a real process: TLS of today or nothing, and a node that trusts another authority stays away."""

import contextlib
import shutil
import socket
import ssl
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.deployment.certificates import make_authority, make_server_certificate
from tests.system.machine import MARK, Machine, block, free_port, left_processes_with, wait_for_port
from tests.system.small_federation import build_small_data_set

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def server() -> Iterator[Machine]:
    """A server by the page's commands, without sites."""
    folder = Path(tempfile.mkdtemp(prefix="motet-network-"))
    port = free_port()
    made = Machine(
        folder,
        {
            "MOTET": str(folder / "motet"),
            "HOST": "localhost",
            "PORT": str(port),
            "LISTEN": "127.0.0.1",
            "MONITOR": str(free_port()),
        },
    )
    try:
        made.do(block("server: set up"))
        made.start("server", block("server: start"))
        wait_for_port(port, within_s=120)
        yield made
    finally:
        for name in list(made.running):
            made.end(name)
        left = left_processes_with(MARK, made.mark)
        shutil.rmtree(folder)
        assert left == []


def port_of(server: Machine) -> int:
    return int(server.variables["PORT"])


def spoken_to(server: Machine, context: ssl.SSLContext | None, said: bytes) -> bytes:
    """What comes back over one connection, before it ends or falls silent."""
    came = b""
    with contextlib.ExitStack() as opened:
        connection = opened.enter_context(socket.create_connection(("127.0.0.1", port_of(server)), timeout=10))
        if context is not None:
            connection = opened.enter_context(context.wrap_socket(connection, server_hostname="localhost"))
        connection.settimeout(5)
        connection.sendall(said)
        with contextlib.suppress(TimeoutError, ConnectionError):
            while piece := connection.recv(4096):
                came += piece
    return came


def trusting(server: Machine) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(Path(server.variables["MOTET"]) / "certificates" / "ca.crt"))


ASKED = b"GET /v1/fleet/health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


def test_the_port_speaks_http_over_tls_to_who_trusts_the_authority(server: Machine) -> None:
    """So that silence means something in the tests below."""
    assert spoken_to(server, trusting(server), ASKED).startswith(b"HTTP/1.1 ")


@pytest.mark.parametrize("said", [ASKED, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9)])
def test_plain_text_gets_no_answer(server: Machine, said: bytes) -> None:
    """HTTP, and gRPC's opening."""
    came = spoken_to(server, None, said)
    assert b"HTTP" not in came
    # no frame of HTTP/2 either: at most an alert of TLS
    assert came == b"" or came[0] == 0x15


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_older_versions_of_tls_are_refused(server: Machine, version: ssl.TLSVersion) -> None:
    """By the server: this client speaks them with one that permits them, whose certificate is the same."""
    context = trusting(server)
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = version
    certificates, lax = Path(server.variables["MOTET"]) / "certificates", ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    lax.load_cert_chain(certificates / "server.pem", certificates / "server.key")
    lax.minimum_version = version
    lax.set_ciphers("ALL:@SECLEVEL=0")
    assert agreed(context, lax) == {ssl.TLSVersion.TLSv1: "TLSv1", ssl.TLSVersion.TLSv1_1: "TLSv1.1"}[version]
    with pytest.raises((ssl.SSLError, ConnectionResetError)) as caught:
        spoken_to(server, context, ASKED)
    assert not isinstance(caught.value, ssl.SSLCertVerificationError)


def agreed(client: ssl.SSLContext, server: ssl.SSLContext) -> str | None:
    """The version of TLS on which two sides agree, in memory."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = [
        client.wrap_bio(to_client, to_server, server_hostname="localhost"),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    for _ in range(10):
        for side in sides:
            with contextlib.suppress(ssl.SSLWantReadError):
                side.do_handshake()
    return sides[0].version()


def test_who_trusts_another_authority_does_not_speak(server: Machine, tmp_path: Path) -> None:
    make_authority(tmp_path)
    with pytest.raises(ssl.SSLCertVerificationError):
        spoken_to(server, ssl.create_default_context(cafile=str(tmp_path / "ca.crt")), ASKED)


def test_a_node_does_not_connect_to_a_server_of_another_authority(server: Machine, tmp_path: Path) -> None:
    """A whole site by the page's commands, which was handed the wrong ca.crt: its SuperNode says why, and sends nothing."""
    small = build_small_data_set(tmp_path / "small")
    make_authority(tmp_path)
    make_server_certificate(tmp_path, names=("localhost",))
    site = Machine(
        tmp_path / "site",
        {
            "SITE": str(tmp_path / "site" / "motet-site"),
            "NAME": "north",
            "SERVER": f"localhost:{port_of(server)}",
            "DATA": str(small / "sites" / "north"),
            "SIZE": "24",
            "CA": str(tmp_path / "ca.crt"),
        },
    )
    site.folder.mkdir()
    try:
        site.do(block("site: set up").replace(' --node-user "$NODE_USER"', ""))
        site.start("node", block("site: node"))
        deadline = time.monotonic() + 180
        while "not of the authority in ca.crt" not in site.log("node"):
            assert time.monotonic() < deadline, site.log("node")
            time.sleep(0.5)
    finally:
        for name in list(site.running):
            site.end(name)
    assert left_processes_with(MARK, site.mark) == []
    assert '"online"' not in server.do(f"{block('server: status')}".replace('"$MOTET"', '--json "$MOTET"'))
