"""Node settings: how a site's SuperNode reaches its server; nothing of the data is in here.

in        SITE/node.toml, made by `motet site init`, read by the user who runs the SuperNode
out       NodeSettings with paths resolved
relies on nothing of site.toml, which that user need not be able to read
"""

from pathlib import Path

from pydantic import Field

from shared.forms import SERVER
from shared.settings import Settings, parse_settings, read_toml

FILE_NAME = "node.toml"
TEMPLATE = """\
# How this site's SuperNode reaches the server. The user who runs it reads this file, and neither site.toml nor data.
server = "{server}"  # the server's name and port
ca = "node/ca.crt"  # the server's certificate authority, as its operator handed it over
key = "node/key"  # a copy of the site's private key, for this user alone
agent = "socket/agent"  # the site agent's socket, as in site.toml
home = "node"  # Flower's files and logs: what the server delivered is unpacked in here
# runtime_port = 9094  # of the SuperNode's own processes, on loopback; a free one if not set
log_bytes = 10000000  # a log is put away when it is larger; three old ones are kept
"""


class NodeSettings(Settings):
    """How a SuperNode is run. Paths are relative to the file they stand in."""

    server: str = Field(pattern=SERVER, description="HOST:PORT")
    ca: Path
    key: Path
    agent: Path
    home: Path
    runtime_port: int | None = Field(default=None, ge=1, le=65535)
    log_bytes: int = Field(default=10_000_000, ge=10_000)


def read_node(path: Path) -> NodeSettings:
    """The settings in a file.

    Raises:
        ConfigError: it is missing or not allowed.
    """
    found = parse_settings(NodeSettings, read_toml(path), place=str(path))
    folder = path.resolve().parent
    return found.model_copy(
        update={field: (folder / getattr(found, field)).absolute() for field in ("ca", "key", "agent", "home")}
    )
