"""Soak deployment: a server and sites on this machine as processes, found by a variable and killed by id.

in        a folder, a number of sites, a seed
out       a deployment that runs, over TLS on loopback; ids and memory of every process by machine and kind
relies on /proc; nothing is ended that was not started here: every process is told of its machine by MOTET_HOME
"""

import contextlib
import io
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import tomli_w

from shared.schema import DataCard, DataSchema, ModalitySchema
from simulations.datasets.writer import TEST, VALIDATION, File, NewRow, writing

ROWS, WIDTH = 24, 6
LABELS = ("calm", "loud")
_CHECKOUT = Path(__file__).resolve().parents[2]
_PROGRAMS = {
    "motet agent start": "agent",
    "flower-supernode --": "supernode",
    "flower_superlink.py --": "superlink",
    "flower-superexec --": "superexec",
    "flwr-serverapp --": "serverapp",
    "flwr-clientapp --": "clientapp",
}
"""words in command lines, by which a process is counted; other programs' words stand in options, too"""


@dataclass
class SoakMachine:
    """A folder, and the processes that were started on it here."""

    folder: Path
    started: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def environment(self) -> dict[str, str]:
        """Of everything that runs on it."""
        return {
            "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
            "HOME": str(self.folder),
            "LANG": "C.UTF-8",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(_CHECKOUT),
            "MOTET_HOME": self.mark,
        }

    @property
    def mark(self) -> str:
        """Unlike that of any other machine."""
        return str(self.folder / "motet-home")

    def do(self, *arguments: str) -> str:
        """A command of motet's, run to its end; what it printed.

        Raises:
            CalledProcessError: it failed.
        """
        return subprocess.run(  # noqa: S603  our own words, no shell
            [sys.executable, "-m", "motet", *arguments],
            env=self.environment(), cwd=self.folder, check=True, timeout=300,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        ).stdout  # fmt: skip

    def start(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        """A command of motet's that goes on running, in a process group of its own."""
        with (self.folder / f"{name}.log").open("ab") as log:
            self.started[name] = subprocess.Popen(  # noqa: S603  our own words, no shell
                [sys.executable, "-m", "motet", *arguments],
                env=self.environment(), cwd=self.folder, start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        return self.started[name]

    def processes(self) -> dict[int, str]:
        """Id -> kind, of every process of this machine that is there now."""
        found = {}
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if f"MOTET_HOME={self.mark}".encode() in (process / "environ").read_bytes().split(b"\0"):
                    found[int(process.name)] = kind_of((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        return found

    def end(self) -> None:
        """Everything that was started here, and what that started: asked first, killed then."""
        for process in self.started.values():
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        for process in self.started.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=60)
        while left := self.processes():
            kill(left)
            time.sleep(0.2)


@dataclass
class SoakDeployment:
    """The server and its sites."""

    server: SoakMachine
    sites: dict[str, SoakMachine]
    data: Path

    @property
    def folder(self) -> Path:
        """The server's."""
        return self.server.folder / "motet"

    def site(self, name: str) -> Path:
        """A site's folder."""
        return self.sites[name].folder / "site"

    def start_agent(self, name: str) -> None:
        """The agent of a site."""
        self.sites[name].start("agent", "agent", "start", str(self.site(name)))

    def machines(self) -> Iterator[SoakMachine]:
        """All of them."""
        yield self.server
        yield from self.sites.values()


def kill(ids: Sequence[int] | Mapping[int, str]) -> None:
    """kill -9."""
    for pid in ids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def resident_bytes(pid: int) -> int:
    """What a process holds of the machine's memory; 0 where it has gone."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(Path(f"/proc/{pid}/statm").read_text("ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


@contextlib.contextmanager
def soak_deployment(
    folder: Path, *, num_sites: int, seed: int, port: int | None = None, through: int | None = None
) -> Iterator[SoakDeployment]:
    """Set up, started, and ended at last, whatever happens.

    Args:
        port: the server's; a free one if not given.
        through: the port by which sites reach it, if not its own: a relay's.
    """
    names = [f"site-{number}" for number in range(num_sites)]
    data = data_set(folder / "data", names=names, seed=seed)
    made = SoakDeployment(SoakMachine(folder / "server"), {}, data)
    made.server.folder.mkdir()
    port = port or free_port()
    made.server.do(
        "server", "init", str(made.folder), "--host", "localhost", "--port", str(port), "--listen", "127.0.0.1"
    )
    try:
        for name in names:
            made.sites[name] = SoakMachine(folder / name)
            made.sites[name].folder.mkdir()
            ca = made.folder / "certificates" / "ca.crt"
            made.sites[name].do(
                "site", "init", str(made.site(name)), "--name", name,
                "--server", f"localhost:{through or port}", "--data", str(data / "sites" / name),
                "--size", str(ROWS), "--delta", "1e-3", "--epsilon", "1000", "--ca", str(ca),
            )  # fmt: skip
            shutil.copy(made.site(name) / f"{name}.pub", made.server.folder)
        made.server.start("server", "server", "start", str(made.folder))
        for name in names:
            made.server.do("server", "enrol", f"{name}.pub", "--on", str(made.folder))
            made.start_agent(name)
            made.sites[name].start("node", "node", "start", str(made.site(name)))
        yield made
    finally:
        for machine in made.machines():
            machine.end()


def scenario(path: Path, *, data: Path, rounds: int, epsilon: float) -> Path:
    """A private run of a small linear model, every site in every round."""
    table = {
        "about": "Soak.",
        "source": {"path": str(data)},
        "run": {
            "name": "soak",
            "seed": 0,
            "model": {"embedding_width": 8, "encoders": {"sensor": {"name": "linear"}}, "fusion": {"name": "concat"}},
            "training": {"optimizer": "sgd", "learning_rate": 0.5, "sample_rate": 0.5, "local_steps": 2},
            "privacy": {"unit": "record", "trust": "nobody", "epsilon": epsilon, "delta": 1e-3, "clip_norm": 1.0},
            "federation": {
                "rounds": rounds, "wait_for_sites_s": 300.0, "round_timeout_s": 90.0, "pause_s": 600.0, "min_sites": 1,
            },
            "evaluation": {"bootstrap_samples": 20},
        },
    }  # fmt: skip
    path.write_text(tomli_w.dumps(table), encoding="utf-8")
    return path


def data_set(folder: Path, *, names: Sequence[str], seed: int) -> Path:
    """Rows of one modality for each name, and a held-out part."""
    card = DataCard(
        title="Soak",
        generated=True,
        licence="CC0-1.0",
        citation="none",
        source="simulations/bench/soak_site.py",
        content=DataSchema(
            task="single-label", labels=LABELS, modalities={"sensor": ModalitySchema(kind="features", width=WIDTH)}
        ),
    )
    drawn = np.random.default_rng(seed)
    with writing(folder, card=card) as writer:
        for part in (*names, VALIDATION, TEST):
            for number in range(ROWS):
                file = io.BytesIO()
                np.save(file, (drawn.normal(size=WIDTH) + 2 * (number % 2) - 1).astype(np.float32))
                values: dict[str, str | File] = {"sensor": File(suffix=".npy", content=file.getvalue())}
                targets = {"label": LABELS[number % 2]}
                writer.add(part, NewRow(f"{number:03d}", values, targets, subject=f"{part}-{number}"))
        writer.finish(how_it_was_made="Drawn from a seed.")
    return folder


def kind_of(command: str) -> str:
    """What a process is, by its command line: one of Flower's programs, an agent, or a command of motet's beside it."""
    return next((kind for words, kind in _PROGRAMS.items() if words in command), "supervisor")


def free_port() -> int:
    """One that nobody listens on, on loopback."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def wait_s(draws: random.Random, *, mean_s: float) -> float:
    """Until the next kill: a Poisson process."""
    return draws.expovariate(1.0 / mean_s)
