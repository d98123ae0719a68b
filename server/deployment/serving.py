"""Serving: Flower's SuperLink and what starts its server apps, kept running; and the sites' keys known to it.

in        a deployment's folder
out       one TLS port that sites connect to, until SIGTERM; logs in DIR/log; /health and /metrics on loopback
relies on shared/supervise.py for starting again, on nodes.py for who is let in
"""

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from server.deployment.certificates import expires
from server.deployment.monitor import open_monitor
from server.deployment.nodes import bring_in_step, is_in_step
from server.deployment.settings import Deployment
from server.deployment.setup import write_link
from server.enrolment import crowding
from shared import flower_commands
from shared.errors import MotetError
from shared.supervise import Program, Supervisor, stopped_by_signals

log = logging.getLogger("motet.server")
_LOOK_S, _OF_TIME = 1.0, 20.0
"""between two looks at the keys, and how many times longer than a look: a thousand keys take a while to read"""
_STARTS_WITHIN_S, _AFTER_FAULT_S = 5.0, 10.0
_WARN = timedelta(days=30)


def run_server(deployment: Deployment) -> None:
    """Keep the server running until SIGTERM or SIGINT.

    Raises:
        ConfigError: it is being run already, or a certificate or the monitor's port cannot be used.
    """
    _warn_of_certificates(deployment)
    if told := crowding(deployment.enrolled):
        log.warning("%s", told)
    write_link(deployment)
    supervisor = Supervisor(programs(deployment), state=deployment.state, most_log_bytes=deployment.settings.log_bytes)
    keys = Keys(deployment)
    with _monitored(deployment, supervisor, keys=keys), _kept_in_step(keys), stopped_by_signals(supervisor):
        log.info(
            "server of %s: sites connect to %s:%d",
            deployment.folder,
            deployment.settings.host,
            deployment.settings.port,
        )
        supervisor.run()


def programs(deployment: Deployment) -> tuple[Program, ...]:
    """What runs at the server."""
    settings, tls, secret = deployment.settings, deployment.tls, deployment.secret
    # what delivered apps are told of the server's own folders comes with each run
    variables = flower_commands.environment(deployment.flower_home, HOME=str(deployment.folder))
    commands = {
        "superlink": flower_commands.superlink(
            listen=settings.listen, port=settings.port, tls=tls, database=deployment.database, secret=secret
        ),
        "superexec": flower_commands.superexec(address=deployment.local_address, ca=tls.ca, secret=secret),
    }
    return tuple(
        Program(
            name=name,
            command=command,
            log=deployment.logs / f"{name}.log",
            folder=deployment.folder,
            environment=variables,
            explain=flower_commands.explain_server_exit if name == "superlink" else None,
        )
        for name, command in commands.items()
    )


def answers(deployment: Deployment, *, within_s: float = 0.0) -> bool:
    """Whether something listens on the deployment's port."""
    host = "127.0.0.1" if deployment.local_host == "localhost" else deployment.local_host
    deadline = time.monotonic() + within_s
    while True:
        try:
            socket.create_connection((host, deployment.settings.port), timeout=2.0).close()
        except OSError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.2)
        else:
            return True


@contextlib.contextmanager
def _monitored(deployment: Deployment, supervisor: Supervisor, *, keys: "Keys") -> Iterator[None]:
    if deployment.settings.monitor_port is None:
        yield
        return
    monitor = open_monitor(deployment, supervisor=supervisor, in_step=lambda: keys.are_in_step)
    try:
        yield
    finally:
        monitor.close()


class Keys:
    """The sites' keys, told to Flower as they come, are revoked or expire."""

    def __init__(self, deployment: Deployment) -> None:
        """Nothing is told yet."""
        self._deployment = deployment
        self._is_first, self._has_failed = True, False
        self.are_in_step = False
        """whether Flower was told of all, when that was last looked at; not before it has once answered"""

    def look(self) -> float:
        """Tell Flower what there is to tell; Flower's own commands take seconds. How long to wait then, in seconds."""
        began = time.monotonic()
        try:
            is_right = is_in_step(self._deployment)
            pause_s = max(_LOOK_S, _OF_TIME * (time.monotonic() - began))
            if self._is_first or not is_right:
                is_right = answers(self._deployment) and self._told()
            self.are_in_step = is_right
        except (MotetError, OSError) as error:
            self.are_in_step = False
            # its port is open some seconds before it answers
            is_starting = self._is_first and not self._has_failed
            self._has_failed = True
            if is_starting:
                log.info("Flower's SuperLink is not ready to be told of the sites' keys; asked again")
                return _STARTS_WITHIN_S
            log.error("the sites' keys cannot be brought in step: %s", error)
            return _AFTER_FAULT_S
        return pause_s

    def _told(self) -> bool:
        known = flower_commands.nodes(home=self._deployment.flower_home)
        bring_in_step(self._deployment, known=known)
        self._is_first = False
        return is_in_step(self._deployment)


@contextlib.contextmanager
def _kept_in_step(keys: Keys) -> Iterator[None]:
    """In a thread of its own."""
    stopping = threading.Event()

    def keep() -> None:
        pause_s = _LOOK_S
        while not stopping.wait(pause_s):
            pause_s = keys.look()

    thread = threading.Thread(target=keep, name="motet-nodes", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join(timeout=5.0)


def _warn_of_certificates(deployment: Deployment) -> None:
    for name, path in {"authority's": deployment.tls.ca, "server's": deployment.tls.certificate}.items():
        end = expires(path)
        if end - datetime.now(UTC) < _WARN:
            log.warning("the %s certificate ends at %s; make a new one: motet server certificate", name, end)
