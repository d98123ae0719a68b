"""A server's folder: certificates that a TLS client believes, settings that are read back, and nothing for other eyes."""

import datetime as dt
import shutil
import socket
import ssl
import stat
import sys
import threading
from pathlib import Path

import pytest
from cryptography import x509
from typer.testing import CliRunner

import motet
from server.deployment import serving
from server.deployment.bundle import app_settings, make_app
from server.deployment.certificates import expires
from server.deployment.settings import Deployment, open_deployment
from server.deployment.setup import make_deployment, renew_certificate
from shared.errors import ConfigError
from shared.keys import certificate_fingerprint, new_key, public_line
from shared.settings import read_toml
from shared.version import VERSION

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def made(tmp_path: Path) -> Deployment:
    return make_deployment(tmp_path / "dep", host="motet.example.org", port=8443, monitor_port=9400)


def test_what_is_made_is_read_back(made: Deployment) -> None:
    found = open_deployment(made.folder)
    assert (found.settings.host, found.settings.port, found.settings.monitor_port) == ("motet.example.org", 8443, 9400)
    without = make_deployment(made.folder.parent / "other", host="127.0.0.1", port=1)
    assert without.settings.monitor_port is None


def test_nothing_of_a_deployment_is_readable_by_others(made: Deployment) -> None:
    assert stat.S_IMODE(made.folder.stat().st_mode) == 0o700
    for secret in (made.certificates / "ca.key", made.tls.key, made.secret):
        assert stat.S_IMODE(secret.stat().st_mode) == 0o600


def test_a_folder_that_is_not_empty_or_a_wrong_value_makes_nothing(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(ConfigError, match="not empty; name a new folder"):
        make_deployment(tmp_path / "full", host="a", port=1)
    made = make_deployment(tmp_path / "made", host="a", port=1)
    before = (made.folder / "deployment.toml").read_bytes()
    with pytest.raises(ConfigError, match=r"it holds a deployment; start it with motet server start .*/made, or name"):
        make_deployment(tmp_path / "made", host="b", port=2)
    assert (made.folder / "deployment.toml").read_bytes() == before
    for values in ({"host": "a b", "port": 1}, {"host": "a", "port": 0}, {"host": "a", "port": 70_000}):
        with pytest.raises(ConfigError, match="motet server init"):
            make_deployment(tmp_path / "dep", **values)  # type: ignore[arg-type]
    assert not (tmp_path / "dep").exists()
    with pytest.raises(ConfigError, match="make a deployment with: motet server init"):
        open_deployment(tmp_path)


def handshake(deployment: Deployment, *, ca: Path, host: str) -> str | None:
    """The protocol that a client which trusts `ca` and asks for `host` agrees on with the deployment's certificate."""
    serving = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    serving.load_cert_chain(deployment.tls.certificate, deployment.tls.key)
    asking = ssl.create_default_context(cafile=str(ca))
    ours, theirs = socket.socketpair()

    def serve() -> None:
        try:
            with serving.wrap_socket(theirs, server_side=True) as wrapped:
                wrapped.recv(1)
        except OSError:
            theirs.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with asking.wrap_socket(ours, server_hostname=host) as wrapped:
            return wrapped.version()
    finally:
        ours.close()
        thread.join()


def test_a_client_that_trusts_the_authority_believes_the_server_and_nobody_else_does(made: Deployment) -> None:
    for host in ("motet.example.org", "localhost", "127.0.0.1"):
        assert handshake(made, ca=made.tls.ca, host=host) in ("TLSv1.2", "TLSv1.3")
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        handshake(made, ca=made.tls.ca, host="other.example.org")
    other = make_deployment(made.folder.parent / "other", host="motet.example.org", port=1)
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(made, ca=other.tls.ca, host="motet.example.org")


def test_a_renewed_certificate_is_another_one_by_the_same_authority(made: Deployment) -> None:
    before = (certificate_fingerprint(made.tls.ca), certificate_fingerprint(made.tls.certificate))
    renew_certificate(made)
    assert certificate_fingerprint(made.tls.ca) == before[0]
    assert certificate_fingerprint(made.tls.certificate) != before[1]
    assert handshake(made, ca=made.tls.ca, host="motet.example.org")
    assert expires(made.tls.certificate) > dt.datetime.now(dt.UTC) + dt.timedelta(days=396)
    (made.certificates / "ca.key").unlink()
    with pytest.raises(ConfigError, match="put the authority's key there"):
        renew_certificate(made)


def test_the_certificates_may_be_used_for_nothing_else(made: Deployment) -> None:
    authority = x509.load_pem_x509_certificate(made.tls.ca.read_bytes())
    server = x509.load_pem_x509_certificate(made.tls.certificate.read_bytes())
    for found, is_authority in ((authority, True), (server, False)):
        assert found.extensions.get_extension_for_class(x509.BasicConstraints).value.ca == is_authority
        usage = found.extensions.get_extension_for_class(x509.KeyUsage).value
        assert usage.key_cert_sign == is_authority
        assert usage.digital_signature != is_authority
        assert found.public_key().curve.name == "secp384r1"  # type: ignore[union-attr]


def test_the_app_that_is_delivered_is_the_installed_program_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "motet" / "client").mkdir(parents=True)
    (tmp_path / "motet" / "client" / "old.py").touch()
    app = make_app(tmp_path)
    there = {path.relative_to(app).as_posix() for path in app.rglob("*") if path.is_file()}
    assert "client/old.py" not in there
    assert {"client/app.py", "server/app.py", "shared/wire.py", "server/report/page.toml"} <= there
    assert {name.split("/")[0] for name in there} == {"client", "server", "shared", "pyproject.toml"}
    ours, theirs = read_toml(app / "pyproject.toml"), read_toml(ROOT / "pyproject.toml")
    assert ours["tool"]["flwr"]["app"] | {"fab-include": 0} == theirs["tool"]["flwr"]["app"] | {"fab-include": 0}  # type: ignore[index]
    assert ours["project"]["version"] == VERSION  # type: ignore[index]
    assert "fab-include" in app_settings(["client/**/*.py"])["tool"]["flwr"]["app"]  # type: ignore[index]
    shutil.rmtree(app)


def test_an_operator_is_told_of_more_sites_than_a_server_bears(
    made: Deployment, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("server.enrolment.MOST_SITES", 1)
    monkeypatch.setattr(serving, "write_link", lambda _: sys.exit("far enough"))
    told, said = "2 sites are enrolled; from some 1 on", []
    for name in ("north", "south"):
        key = made.folder.parent / f"{name}.pub"
        key.write_text(public_line(new_key().public_key(), name=name), encoding="utf-8")
        done = CliRunner().invoke(motet.app, ["server", "enrol", str(key), "--on", str(made.folder)])
        assert done.exit_code == 0
        with pytest.raises(SystemExit, match="far enough"):
            serving.run_server(made)
        said.append((told in done.output, told in caplog.text))
    assert said == [(False, False), (True, True)]
