"""Listener: a Unix socket that only those whom the owner names can use, each request in bounds of time and size.

in        a path, the users who may connect, and what answers a request
out       one reply for each request; a connection that breaks the rules is closed, and the next one is served
relies on the kernel's word (SO_PEERCRED) for who is on the other side, not on the file's mode alone
"""

import contextlib
import logging
import os
import pwd
import socket
import stat
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from client.resident.frames import Frame, receive_frame, send_frame
from client.resident.journal import ENTRY
from client.resident.rarely import Rarely
from shared.errors import ConfigError, WireError

log = logging.getLogger("motet.site")
Answer = Callable[[Frame], Frame]
MOST_CONNECTIONS = 8
_CREDENTIALS = struct.Struct("=iII")
"""struct ucred of Linux: pid, uid, gid"""
_LONGEST_PATH = 107
"""bytes of sun_path, but for the zero that ends it"""


@dataclass(frozen=True)
class Limits:
    """How long and how large one request may be."""

    most_body_bytes: int
    receive_s: float = 60.0
    """from the connection to the last byte of the request"""
    send_s: float = 300.0
    """for the reply"""


def user_ids(names: Sequence[str]) -> frozenset[int]:
    """The numbers of users of this machine; names, or numbers written out.

    Raises:
        ConfigError: there is no such user.
    """
    found = set()
    for name in names:
        try:
            found.add(int(name) if name.isdecimal() else pwd.getpwnam(name).pw_uid)
        except KeyError:
            raise ConfigError(
                f"agent.allowed_users: {name!r} is no user of this machine; allowed: names of users, or their numbers"
            ) from None
    return frozenset(found)


class Listener:
    """Takes connections, one request each, until it is told to stop."""

    def __init__(self, path: Path, *, others: frozenset[int], limits: Limits, answer: Answer) -> None:
        """Opens the socket.

        Args:
            path: of the socket; one that another agent left behind is taken away, one that is in use is not.
            others: users who may connect beside the one this process runs as.
            answer: called in a thread of its own for each request; must never raise.

        Raises:
            ConfigError: the path is too long or taken, or its folder is not the owner's alone to write to.
        """
        self._others, self._limits, self._answer = others, limits, answer
        self._path, self._stopping = path, threading.Event()
        self._slots = threading.BoundedSemaphore(MOST_CONNECTIONS)
        self._threads: set[threading.Thread] = set()
        self._refused = Rarely()
        _refuse_unsafe(path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # PRIVACY: nobody can connect between bind and chmod. test_nobody_else_can_open_the_socket
        before = os.umask(0o177)
        try:
            self._socket.bind(str(path))
        finally:
            os.umask(before)
        # others need the right to write to it; who they are is asked of the kernel at each connection
        path.chmod(0o666 if others else 0o600)
        self._socket.listen(MOST_CONNECTIONS)
        self._socket.settimeout(0.2)

    def serve(self) -> None:
        """Answer until `stop`; then the requests that are being answered are finished, and the socket is gone."""
        try:
            while not self._stopping.is_set():
                with contextlib.suppress(TimeoutError):
                    connection, _ = self._socket.accept()
                    self._take(connection)
        finally:
            self._socket.close()
            self._path.unlink(missing_ok=True)
            for thread in tuple(self._threads):
                thread.join()

    def stop(self) -> None:
        """No further connection is taken; safe in a signal handler."""
        self._stopping.set()

    def _take(self, connection: socket.socket) -> None:
        uid = _peer(connection)
        # PRIVACY: the file's mode may be wider than the owner's word.
        # test_a_user_whom_the_owner_does_not_name_is_hung_up_on
        if uid != os.geteuid() and uid not in self._others:
            if times := self._refused.times(uid):
                told = {"event": "connection-refused", "user": uid, "times": times}
                log.warning("a connection of user %d is refused (times: %d)", uid, times, extra={ENTRY: told})
            connection.close()
            return
        if not self._slots.acquire(blocking=False):
            if times := self._refused.times("too many"):
                log.warning("more than %d requests at once; %d were refused", MOST_CONNECTIONS, times)
            connection.close()
            return
        thread = threading.Thread(target=self._one, args=(connection,), name="motet-agent-request", daemon=True)
        self._threads.add(thread)
        thread.start()

    def _one(self, connection: socket.socket) -> None:
        with self._released(), connection:
            try:
                request = receive_frame(
                    connection,
                    most_body_bytes=self._limits.most_body_bytes,
                    deadline=time.monotonic() + self._limits.receive_s,
                )
                reply = self._answer(request)
                send_frame(connection, reply, deadline=time.monotonic() + self._limits.send_s)
            except WireError as error:
                log.warning("a request on the socket: %s", error)

    @contextlib.contextmanager
    def _released(self) -> Iterator[None]:
        try:
            yield
        finally:
            self._threads.discard(threading.current_thread())
            self._slots.release()


def _peer(connection: socket.socket) -> int:
    _, uid, _ = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return int(uid)


def _refuse_unsafe(path: Path) -> None:
    """The folder is the owner's, and no other process answers at this path.

    Raises:
        ConfigError: it is not; or the path is too long for a socket.
    """
    if len(os.fsencode(path)) > _LONGEST_PATH:
        raise ConfigError(f"agent.socket: {path} is longer than {_LONGEST_PATH} bytes; name a shorter one")
    folder = path.parent
    try:
        found = folder.stat()
    except OSError as error:
        raise ConfigError(f"agent.socket: {folder} is not there: {error.strerror}; make the folder first") from None
    # PRIVACY: who may write there can put a socket of theirs in the place of this one.
    # test_a_folder_that_others_may_write_to_is_refused
    if found.st_uid not in (os.geteuid(), 0) or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ConfigError(
            f"agent.socket: {folder} can be written to by others; allowed: a folder of the agent's own user "
            f"(chmod go-w {folder})"
        )
    if not path.exists() and not path.is_symlink():
        return
    if not stat.S_ISSOCK(path.lstat().st_mode):
        raise ConfigError(f"agent.socket: {path} is there and no socket; name another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as trial:
        trial.settimeout(2.0)
        try:
            trial.connect(str(path))
        except OSError:
            path.unlink()  # left behind by an agent that was killed
        else:
            raise ConfigError(f"agent.socket: an agent answers at {path} already; end it first, or name another path")
