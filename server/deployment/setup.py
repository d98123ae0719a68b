"""Set-up of a server: an empty folder becomes a deployment that can be started.

in        how the server is reached
out       deployment.toml with comments, certificates, keys, folders; all of it for the operator's eyes alone
relies on certificates.py and settings.py
"""

import secrets
from pathlib import Path

from server.deployment.certificates import make_authority, make_server_certificate
from server.deployment.settings import FILE_NAME, Deployment, DeploymentSettings, open_deployment
from server.settings import write_atomically
from shared.errors import ConfigError
from shared.flower_commands import link_configuration
from shared.keys import write_secret
from shared.settings import parse_settings

_TEMPLATE = """\
# A deployment of Motet: the server's side. Made by `motet server init`; every path is in this folder.
host = "{host}"             # the name or address by which sites reach this machine; it stands in the certificate
port = {port}               # the one port that is open to the network: TLS, and every site proves itself with its key
listen = "{listen}"         # the address of this machine to listen on; "0.0.0.0": all of them
{monitor}
key_days = 730              # a site's key expires so many days after it was enrolled
log_bytes = 10000000        # a log is put away when it is larger; three old ones are kept
"""
_MONITOR = "monitor_port = {port}        # on loopback: http://127.0.0.1:{port}/health and /metrics (Prometheus)"
_NO_MONITOR = "# monitor_port = 9400       # on loopback: http://127.0.0.1:9400/health and /metrics (Prometheus)"


def make_deployment(
    folder: Path,
    *,
    host: str,
    port: int,
    listen: str = "0.0.0.0",  # noqa: S104  sites are elsewhere
    monitor_port: int | None = None,
) -> Deployment:
    """A new deployment.

    Raises:
        ConfigError: the folder is not empty, or a value is not allowed; nothing was made.
    """
    values = {"host": host, "port": port, "listen": listen, "monitor_port": monitor_port}
    settings = parse_settings(DeploymentSettings, values, place="motet server init")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        holds = f"it holds a deployment; start it with motet server start {folder}, or "
        is_one = (folder / FILE_NAME).is_file()
        raise ConfigError(f"{folder}: not empty; {holds if is_one else ''}name a new folder for the deployment")
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.chmod(0o700)
    made = Deployment(folder.resolve(), settings)
    for each in (made.certificates, made.enrolled, made.runs, made.flower_home, made.logs, made.state):
        each.mkdir(mode=0o700)
    make_authority(made.certificates)
    make_server_certificate(made.certificates, names=_names(made))
    write_secret(made.secret, secrets.token_bytes(32))
    write_link(made)
    monitor = _MONITOR.format(port=monitor_port) if monitor_port is not None else _NO_MONITOR
    text = _TEMPLATE.format(host=host, port=port, listen=listen, monitor=monitor)
    # at last: a folder with it is a deployment
    write_atomically(folder / FILE_NAME, text.encode())
    return open_deployment(folder)


def renew_certificate(deployment: Deployment) -> None:
    """A new certificate for the server, by the same authority; sites change nothing. It holds from the next start on.

    Raises:
        ConfigError: the authority's key is not there.
    """
    make_server_certificate(deployment.certificates, names=_names(deployment))


def write_link(deployment: Deployment) -> None:
    """Flower's own configuration, as deployment.toml says now."""
    text = link_configuration(address=deployment.local_address, ca=deployment.tls.ca)
    write_atomically(deployment.flower_home / "config.toml", text.encode())


def _names(deployment: Deployment) -> tuple[str, ...]:
    """Sites use the first; Flower's programs on this machine talk to each other through the same port."""
    return (deployment.settings.host, deployment.local_host, "localhost", "127.0.0.1")
