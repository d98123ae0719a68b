"""Serving: a site's SuperNode, kept running; what it delivers runs as this user, who can read neither data nor ledger.

in        SITE/node.toml
out       a connection to the server, until SIGTERM; logs in node/log
relies on shared/supervise.py for starting again: a node that was killed is not taken back for up to a minute
"""

import logging
import os
import socket
from pathlib import Path

from client.node.reach import watched
from client.node.settings import FILE_NAME, NodeSettings, read_node
from shared import flower_commands
from shared.errors import ConfigError
from shared.keys import certificate_fingerprint, fingerprint, read_private
from shared.supervise import Backoff, Program, Supervisor, stopped_by_signals

log = logging.getLogger("motet.site")
_BACKOFF = Backoff(first_s=1.0, most_s=10.0)
"""the server is asked by few sites, and a node that was killed is taken back within a minute"""


def run_node(site: Path) -> None:
    """Keep a site's SuperNode running until SIGTERM or SIGINT.

    Raises:
        ConfigError: the settings or files are not there or not readable, or it is being run already.
    """
    node = read_node(site / FILE_NAME)
    _check(node)
    supernode = program(node)
    supervisor = Supervisor([supernode], state=node.home / "running", most_log_bytes=node.log_bytes)
    with stopped_by_signals(supervisor), watched(node.server, said_in=supernode.log):
        log.info("node of %s: connects to %s", site, node.server)
        supervisor.run()


def program(node: NodeSettings) -> Program:
    """The SuperNode."""
    port = node.runtime_port or _free_port()
    return Program(
        name="supernode",
        command=flower_commands.supernode(
            server=node.server, ca=node.ca, key=node.key, runtime_port=port, config={"agent": str(node.agent)}
        ),
        log=node.home / "log" / "supernode.log",
        folder=node.home,
        environment=flower_commands.environment(node.home / "flower", HOME=str(node.home), OMP_NUM_THREADS="1"),
        backoff=_BACKOFF,
        explain=flower_commands.explain_node_exit,
        stuck=flower_commands.explain_stuck_node,
    )


def _check(node: NodeSettings) -> None:
    if not node.ca.is_file():
        raise ConfigError(
            f"{node.ca}: not there; put the server's ca.crt there, and compare its fingerprint with the operator's"
        )
    log.info("server's authority %s", certificate_fingerprint(node.ca))
    _check_user(node)
    log.info("key %s", fingerprint(read_private(node.key).public_key()))
    if not os.access(node.home, os.W_OK | os.X_OK):
        raise ConfigError(f"{node.home}: this user cannot write there; run: sudo chown -R USER {node.home}")
    (node.home / "flower").mkdir(exist_ok=True, mode=0o700)
    if not node.agent.is_socket():
        log.warning("%s: no agent answers there yet; start it with: motet agent start", node.agent)


def _check_user(node: NodeSettings) -> None:
    """Root may read the key of the node's user; what the server delivers would then be root's as well."""
    owner = node.home.stat().st_uid
    # PRIVACY: delivered code reads what this user can. test_root_does_not_start_the_node_of_another_user
    if os.geteuid() == 0 and owner != 0:
        raise ConfigError(
            f"{node.home}: is user {owner}'s, and root started it: what the server delivers could read data and "
            f"ledger; run: sudo -u '#{owner}' motet node start {node.home.parent}"
        )


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
