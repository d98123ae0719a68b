"""Reach: whether the server answers at all, told on the terminal; the SuperNode says it in its log alone, and for ever.

in        the server's address; what the SuperNode last said
out       a line after some seconds without an answer, and one when there is an answer again
relies on a bare connection, closed at once, and on none while the SuperNode is connected: a server has many sites
"""

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from shared.flower_commands import is_retrying
from shared.supervise import tail

log = logging.getLogger("motet.site")
PATIENCE_S = 10.0
"""a server that is started again is away for as long; the SuperNode needs some seconds more to find out"""
_LOOK_S, _ANSWER_S = 2.5, 5.0


class Reach:
    """Tells of a server that does not answer, once, and once more when it does."""

    def __init__(
        self,
        server: str,
        *,
        is_troubled: Callable[[], bool],
        asked: Callable[[str], str | None] | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Nothing is asked yet.

        Args:
            server: HOST:PORT.
            is_troubled: whether the SuperNode cannot connect, as far as it says.
            asked: why a server does not answer; None where it does.
            now: seconds.
        """
        self._server, self._is_troubled, self._now = server, is_troubled, now
        self._asked = asked or why_silent
        self._since: float | None = None
        self._is_told = False

    def look(self) -> None:
        """Ask the server if there is cause to."""
        if self._since is None and not self._is_troubled():
            return
        why = self._asked(self._server)
        if why is None:
            if self._is_told:
                log.info("%s answers; the node connects within half a minute", self._server)
            self._since, self._is_told = None, False
            return
        self._since = self._now() if self._since is None else self._since
        if not self._is_told and self._now() - self._since >= PATIENCE_S:
            self._is_told = True
            log.warning(
                "%s does not answer (%s); tried again until it does; is the server started, is the port open?",
                self._server,
                why,
            )


def why_silent(server: str) -> str | None:
    """Why nothing listens at HOST:PORT, in a few words; None where something does."""
    host, _, port = server.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=_ANSWER_S).close()
    except TimeoutError:
        return f"nothing came in {_ANSWER_S:g} s"
    except socket.gaierror:
        return f"no machine of the name {host} is known here"
    except (OSError, OverflowError) as error:
        return (getattr(error, "strerror", None) or str(error)).lower()
    return None


@contextlib.contextmanager
def watched(server: str, *, said_in: Path) -> Iterator[None]:
    """Looks every few seconds while this lasts, in a thread: a name or a connection may take long to fail.

    Args:
        server: HOST:PORT.
        said_in: the SuperNode's log.
    """
    stopping, reach = threading.Event(), Reach(server, is_troubled=lambda: is_retrying(tail(said_in)))

    def keep() -> None:
        while not stopping.wait(_LOOK_S):
            reach.look()

    threading.Thread(target=keep, name="motet-reach", daemon=True).start()
    try:
        yield
    finally:
        stopping.set()
