"""What stands for a machine in the deployment test: a folder, variables, and processes that are ended by their id.

in        the shell blocks of docs/deployment.md
out       the same commands run here, each long-running one in a process group of its own
relies on /proc to tell whether a process that was told of this machine is still there
"""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
PAGE = (CHECKOUT / "docs" / "deployment.md").read_text(encoding="utf-8")
MARK = "MOTET_HOME"
"""a variable that everything started on a machine inherits, Flower's programs too, with a value of the machine's own"""


def block(title: str) -> str:
    """The shell block of the page that opens with this comment."""
    (found,) = re.findall(rf"^```sh\n# {re.escape(title)}[^\n]*\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
    return str(found)


def exported(title: str) -> set[str]:
    return set(re.findall(r"^export (\w+)=", block(title), flags=re.MULTILINE))


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def wait_for_port(port: int, *, within_s: float, host: str = "127.0.0.1") -> None:
    deadline = time.monotonic() + within_s
    while True:
        try:
            socket.create_connection((host, port), timeout=1).close()
            return
        except OSError:
            assert time.monotonic() < deadline, f"nothing listens on {port}"
            time.sleep(0.3)


def processes_with(variable: str, value: str) -> list[str]:
    """Command lines of all processes whose environment says `variable=value`."""
    told, found = f"{variable}={value}".encode(), []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if told in (process / "environ").read_bytes().split(b"\0"):
                found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip())
        except OSError:
            continue
    return found


def left_processes_with(variable: str, value: str, *, within_s: float = 30.0) -> list[str]:
    """What is still there once processes that were told to end have had a while to do so."""
    deadline = time.monotonic() + within_s
    while (found := processes_with(variable, value)) and time.monotonic() < deadline:
        time.sleep(0.5)
    return found


@dataclass
class Machine:
    """What a machine of the deployment is here: a folder, its variables, and the processes started on it."""

    folder: Path
    variables: Mapping[str, str]
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def mark(self) -> str:
        """Unlike that of any other machine."""
        return str(self.folder / "motet-home")

    def environment(self) -> dict[str, str]:
        base = {
            "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
            "HOME": str(self.folder),
            "LANG": "C.UTF-8",
            "OMP_NUM_THREADS": "1",
            # the commands are this checkout's, whatever is installed
            "PYTHONPATH": str(CHECKOUT),
            MARK: self.mark,
        }
        return base | dict(self.variables)

    def script(self, commands: str) -> list[str]:
        return ["bash", "-c", f"set -euo pipefail\n{commands}"]

    def do(self, commands: str, *, cwd: Path | None = None, within_s: float = 120) -> str:
        """Run to the end; what it printed."""
        done = subprocess.run(
            self.script(commands), env=self.environment(), cwd=cwd or self.folder, timeout=within_s,
            check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout
        return done.stdout

    def start(self, name: str, command: str, *, cwd: Path | None = None, user: str | None = None) -> None:
        """Run one command on, in a process group of its own, its output in NAME.log."""
        with (self.folder / f"{name}.log").open("ab") as log:
            # exec: the signal that ends it reaches the command itself, which ends what it started
            self.running[name] = subprocess.Popen(
                self.script(f"exec {command}"), env=self.environment(), cwd=cwd or self.folder, start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, user=user,
            )  # fmt: skip

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(encoding="utf-8", errors="replace")

    def end(self, name: str, *, how: signal.Signals = signal.SIGTERM) -> None:
        """End the process group started under this name."""
        process = self.running.pop(name)
        with_group = process.pid  # a new session: the leader's id is the group's
        for sent in (how, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(with_group, sent)
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                continue
