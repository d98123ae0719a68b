"""Deployment settings: one folder of the server's machine, where everything in it lies, and who reaches it how.

in        DIR/deployment.toml, made by `motet server init`
out       Deployment: the settings and every path, for the modules beside this one
relies on nothing that arrives over the network
"""

from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from shared.errors import ConfigError
from shared.flower_commands import Tls
from shared.forms import HOST, LISTEN
from shared.settings import Settings, parse_settings, read_toml

FILE_NAME = "deployment.toml"
_EVERYWHERE = ("0.0.0.0", "::")  # noqa: S104  what the operator may write, and not what is listened on unasked


class DeploymentSettings(Settings):
    """How the server is reached, and how long its keys hold."""

    host: str = Field(pattern=HOST, description="name or address that sites use")
    port: int = Field(ge=1, le=65535, description="the one port that is open to the network; TLS")
    listen: str = Field(default="0.0.0.0", pattern=LISTEN, description="address to listen on")  # noqa: S104
    monitor_port: int | None = Field(default=None, ge=1, le=65535, description="on loopback: /health and /metrics")
    key_days: int | None = Field(default=730, ge=1, description="after which an enrolled key expires")
    log_bytes: int = Field(default=10_000_000, ge=10_000, description="of each log, before it is put away")


@dataclass(frozen=True)
class Deployment:
    """A server's folder."""

    folder: Path
    settings: DeploymentSettings

    @property
    def certificates(self) -> Path:
        """ca.key, ca.crt, server.key, server.pem."""
        return self.folder / "certificates"

    @property
    def tls(self) -> Tls:
        """The server's certificate files."""
        at = self.certificates
        return Tls(ca=at / "ca.crt", certificate=at / "server.pem", key=at / "server.key")

    @property
    def enrolled(self) -> Path:
        """Public keys of the sites, NAME.pub."""
        return self.folder / "enrolled"

    @property
    def runs(self) -> Path:
        """Run folders."""
        return self.folder / "runs"

    @property
    def flower_home(self) -> Path:
        """FLWR_HOME of all that runs here."""
        return self.folder / "flower"

    @property
    def database(self) -> Path:
        """The SuperLink's memory, by which runs survive its restart."""
        return self.folder / "superlink.db"

    @property
    def secret(self) -> Path:
        """What the starter of server apps proves itself with to the SuperLink."""
        return self.folder / "superexec.secret"

    @property
    def logs(self) -> Path:
        """What the programs say."""
        return self.folder / "log"

    @property
    def state(self) -> Path:
        """Ids of the programs that run."""
        return self.folder / "running"

    @property
    def local_host(self) -> str:
        """Where programs of this machine reach the SuperLink."""
        listen = self.settings.listen
        return "localhost" if listen in (*_EVERYWHERE, "127.0.0.1") else listen

    @property
    def local_address(self) -> str:
        """The same with the port."""
        return f"{self.local_host}:{self.settings.port}"


def open_deployment(folder: Path) -> Deployment:
    """The deployment in a folder.

    Raises:
        ConfigError: there is none, or its settings are not allowed.
    """
    path = folder / FILE_NAME
    if not path.is_file():
        raise ConfigError(f"{folder}: no {FILE_NAME} in it; make a deployment with: motet server init {folder}")
    return Deployment(folder.resolve(), parse_settings(DeploymentSettings, read_toml(path), place=str(path)))
