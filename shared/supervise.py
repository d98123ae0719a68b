"""Supervise: programs that must go on running are started again when they end, ever more slowly, and ended when asked.

in        programs: a command, its variables, a file for what it says
out       the programs running until `stop`; what happened to each, in words and as states
relies on a process group for each program, so that what it started ends with it; children are ended by their ids alone

A program writes into its file by itself, so that it lives on should its supervisor be killed. The next supervisor over
the same folder ends what was left behind: its id and the time it began stand in NAME.pid.
"""

import contextlib
import fcntl
import logging
import os
import random
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from shared.errors import ConfigError

log = logging.getLogger("motet.supervise")
_LOOK_S = 0.2
_ROTATE_EVERY_S = 5.0
_TAIL_BYTES = 8192
_STUCK_S = 5.0


@dataclass(frozen=True)
class Backoff:
    """How long to wait before a program that ended is started again."""

    first_s: float = 1.0
    most_s: float = 30.0
    settled_s: float = 60.0
    """who ran for so long begins at `first_s` again"""

    def delay_s(self, failures: int, *, draw: float) -> float:
        """The wait after so many ends in a row: twice as long each time up to the cap, less up to half of it by chance.

        Args:
            failures: 1 or more.
            draw: between 0 and 1, by chance: many that lost the same server do not come back at one moment.
        """
        return min(self.most_s, self.first_s * 2.0 ** min(failures - 1, 60)) * (1.0 - draw / 2)


@dataclass(frozen=True)
class Program:
    """Something to keep running."""

    name: str
    command: tuple[str, ...]
    log: Path
    """its output, put away as NAME.log.1, .2 ... when it is large"""
    folder: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    backoff: Backoff = Backoff()
    explain: Callable[[str], str | None] | None = None
    """from the last of what it said to words for whoever reads the supervisor's log"""
    stuck: Callable[[str], str | None] | None = None
    """from the last of what it said to why it does nothing any more, though it has not ended; then it is ended"""


@dataclass(frozen=True)
class State:
    """How a program fares."""

    name: str
    pid: int | None
    restarts: int
    up_s: float | None
    """None: it is not running"""
    last_exit: int | None


class Supervisor:
    """Keeps programs running until it is told to stop."""

    def __init__(
        self,
        programs: Sequence[Program],
        *,
        state: Path,
        most_log_bytes: int = 10_000_000,
        old_logs: int = 3,
        end_within_s: float = 15.0,
    ) -> None:
        """Takes a folder as its own.

        Args:
            programs: started in this order.
            state: a folder for the programs' ids; one supervisor at a time.
            end_within_s: after which a program that was asked to end is killed.

        Raises:
            ConfigError: another supervisor has the folder.
        """
        self._watched = [_Watched(each, state / f"{each.name}.pid") for each in programs]
        self._most_log_bytes, self._old_logs, self._end_within_s = most_log_bytes, old_logs, end_within_s
        self._stopping = threading.Event()
        state.mkdir(parents=True, exist_ok=True)
        self._lock = (state / "lock").open("a")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise ConfigError(f"{state.parent}: is being run already, by another process; end that one first") from None

    def run(self, *, now_and_then: Callable[[], None] = lambda: None) -> None:
        """Start all, and again what ends, until `stop`; then end all.

        Args:
            now_and_then: called about five times a second; must return soon, and not raise.
        """
        rotated = time.monotonic()
        try:
            for each in self._watched:
                each.end_what_was_left(within_s=self._end_within_s)
            while not self._stopping.wait(_LOOK_S):
                for each in self._watched:
                    each.look()
                if time.monotonic() - rotated > _ROTATE_EVERY_S:
                    rotated = time.monotonic()
                    for each in self._watched:
                        rotate(each.program.log, most_bytes=self._most_log_bytes, keep=self._old_logs)
                now_and_then()
        finally:
            self._end_all()
            self._lock.close()

    def stop(self) -> None:
        """End everything soon; safe in a signal handler."""
        self._stopping.set()

    def states(self) -> tuple[State, ...]:
        """How each program fares."""
        return tuple(each.state() for each in self._watched)

    def _end_all(self) -> None:
        """Those that were started last first: whom they talk to is still there."""
        for each in reversed(self._watched):
            each.end(within_s=self._end_within_s)


def is_supervised(state: Path) -> bool:
    """Whether a supervisor has this folder now."""
    try:
        with (state / "lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


@contextlib.contextmanager
def stopped_by_signals(supervisor: Supervisor) -> Iterator[None]:
    """SIGTERM and SIGINT stop a supervisor while this lasts; from the main thread only."""
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, lambda *_: supervisor.stop()) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def rotate(path: Path, *, most_bytes: int, keep: int) -> None:
    """Put a log that is too large away, and begin it anew; whoever writes into it goes on with the same file."""
    if not path.is_file() or path.stat().st_size <= most_bytes:
        return
    for number in range(keep - 1, 0, -1):
        older = path.with_name(f"{path.name}.{number}")
        if older.is_file():
            older.replace(path.with_name(f"{path.name}.{number + 1}"))
    if keep:
        away = path.with_name(f"{path.name}.1")
        away.touch(mode=0o600)
        shutil.copyfile(path, away)
    os.truncate(path, 0)


class _Watched:
    """One program, its process and its past."""

    def __init__(self, program: Program, mark: Path) -> None:
        self.program, self._mark = program, mark
        self._process: subprocess.Popen[bytes] | None = None
        self._began = 0.0
        self._start_at = 0.0
        self._failures = self._starts = 0
        self._last_exit: int | None = None
        self._looked_at = 0.0
        self._said = ""
        self._log_began = 0

    def look(self) -> None:
        """Start it where it is due; notice that it has ended."""
        if self._process is None:
            if time.monotonic() >= self._start_at:
                self._start()
            return
        code = self._process.poll()
        if code is not None:
            self._ended(self._process, code)
        elif self.program.stuck is not None and time.monotonic() - self._looked_at >= _STUCK_S:
            self._looked_at = time.monotonic()
            self._end_if_stuck(self._process, self.program.stuck)

    def _end_if_stuck(self, process: subprocess.Popen[bytes], stuck: Callable[[str], str | None]) -> None:
        """Killed, and started again as if it had ended by itself; only who has said nothing since the last look."""
        # what stood there before it was started was said by the one before
        before, self._said = self._said, tail(self.program.log, since=self._log_began)
        why = stuck(self._said) if self._said == before else None
        if why is not None:
            log.warning("%s: %s; it is ended", self.program.name, why)
            _signal_group(process.pid, signal.SIGKILL)
            self._ended(process, process.wait())

    def state(self) -> State:
        process = self._process
        return State(
            name=self.program.name,
            pid=process.pid if process else None,
            restarts=max(0, self._starts - 1),
            up_s=time.monotonic() - self._began if process else None,
            last_exit=self._last_exit,
        )

    def end(self, *, within_s: float) -> None:
        """End the process and its group: asked first, killed when it does not."""
        process, self._process = self._process, None
        if process is None:
            return
        _signal_group(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=within_s)
        # what it started and left behind, too
        _signal_group(process.pid, signal.SIGKILL)
        process.wait()
        self._mark.unlink(missing_ok=True)
        log.info("%s: ended", self.program.name)

    def end_what_was_left(self, *, within_s: float) -> None:
        """The process that a supervisor which was killed had started."""
        if not self._mark.is_file():
            return
        pid_text, _, began = self._mark.read_text(encoding="utf-8").partition(" ")
        pid = int(pid_text) if pid_text.isdecimal() else 0
        # an id is given again to others: only the process that began at that very moment is ours
        if pid > 1 and _beginning_of(pid) == began.strip() != "":
            log.warning("%s: process %d was left behind; it is ended", self.program.name, pid)
            _signal_group(pid, signal.SIGTERM)
            deadline = time.monotonic() + within_s
            while _beginning_of(pid) == began.strip() and time.monotonic() < deadline:
                time.sleep(_LOOK_S)
            _signal_group(pid, signal.SIGKILL)
        self._mark.unlink(missing_ok=True)

    def _start(self) -> None:
        program = self.program
        program.log.parent.mkdir(parents=True, exist_ok=True)
        self._said, self._log_began = "", program.log.stat().st_size if program.log.exists() else 0
        try:
            with _log_file(program.log) as out:
                self._process = subprocess.Popen(  # noqa: S603  our own words, no shell
                    program.command,
                    cwd=program.folder,
                    env=dict(program.environment),
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                    start_new_session=True,
                )
        except OSError as error:
            self._again_later(f"cannot be started: {error}")
            return
        self._began, self._starts = time.monotonic(), self._starts + 1
        self._mark.write_text(f"{self._process.pid} {_beginning_of(self._process.pid)}\n", encoding="utf-8")
        log.info("%s: started, process %d", program.name, self._process.pid)

    def _ended(self, process: subprocess.Popen[bytes], code: int) -> None:
        _signal_group(process.pid, signal.SIGKILL)
        self._process, self._last_exit = None, code
        self._mark.unlink(missing_ok=True)
        if time.monotonic() - self._began >= self.program.backoff.settled_s:
            self._failures = 0
        how = f"ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
        # what stood there before it was started was said by the one before
        said = tail(self.program.log, since=self._log_began)
        explained = self.program.explain and self.program.explain(said)
        self._again_later(explained or f"{how}; see {self.program.log}")

    def _again_later(self, why: str) -> None:
        self._failures += 1
        delay = self.program.backoff.delay_s(self._failures, draw=random.random())  # noqa: S311  no secret
        self._start_at = time.monotonic() + delay
        log.warning("%s: %s; started again in %.1f s", self.program.name, why, delay)


@contextlib.contextmanager
def _log_file(path: Path) -> Iterator[int]:
    # in append mode, so that a file that was cut off is written to from its beginning; nobody else's to read
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def tail(path: Path, *, since: int = 0) -> str:
    """The last 8 KiB of a log, of what stands behind `since` bytes of it; empty where there is none."""
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            # one that was put away meanwhile begins anew
            file.seek(max(0, size - _TAIL_BYTES, since if since <= size else 0))
            return file.read().decode("utf-8", errors="replace")
    except OSError:
        return ""


def _signal_group(pid: int, number: signal.Signals) -> None:
    # start_new_session made the process the head of a group of its own, with its id
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def _beginning_of(pid: int) -> str:
    """When a process began, in the kernel's ticks; empty where there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    after_name = text.rpartition(")")[2].split()
    return "" if after_name[0] == "Z" else after_name[19]
