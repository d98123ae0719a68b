"""A deployment on loopback for tests that break it: server, agents and nodes as processes, over TLS; its model worked out again.

in        a folder, names of sites, what runs ask
out       run folders; ids of every process by machine; the model that an undisturbed run over the same sites would have
relies on motet's own commands; every process is told of its machine by MOTET_HOME, and ended by its id
"""

import contextlib
import json
import os
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from flwr.app import Message, MessageType
from safetensors.torch import load_file
from torch import Tensor

from client.app import app as client_app
from client.site import SiteConfig, read_site
from server.app import app as server_app
from server.history import METRICS_FILE, read_rounds
from server.records import RoundRecord
from server.report.html import read_record
from server.settings import read_settings, write_settings
from shared.privacy.ledger import Ledger, LedgerRow
from simulations.engine.local import LocalGrid, run_over
from tests.system import gates
from tests.system.machine import MARK, Machine, free_port, left_processes_with, wait_for_port
from tests.system.small_federation import build_small_data_set, write_scenario

SERVER_APP, SUPERLINK, SUPERNODE = "flwr-serverapp", "flower_superlink.py", "flower-supernode"
"""words in the command lines of Flower's programs"""
ROWS = 24
MODEL = "model.safetensors"


def wait_until(condition: Callable[[], bool], *, within_s: float, else_say: Callable[[], str]) -> None:
    """Raises AssertionError with these words once the time is over."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, else_say()
        time.sleep(0.2)


def ids_with(mark: str, *, word: str = "") -> list[int]:
    """Processes of a machine, by the value of MARK, in whose command line a word stands."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            told = (process / "environ").read_bytes().split(b"\0")
            is_one = f"{MARK}={mark}".encode() in told and word.encode() in (process / "cmdline").read_bytes()
            if is_one and (process / "cmdline").read_bytes():
                found.append(int(process.name))
    return sorted(found)


def kill(ids: Sequence[int]) -> None:
    """kill -9; of processes that a machine of ours started."""
    for pid in ids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@dataclass
class SmallDeployment:
    """A server and sites, each with an agent and a node."""

    folder: Path
    server: Machine
    port: int
    sites: dict[str, Machine] = field(default_factory=dict)

    @property
    def motet(self) -> Path:
        """The server's folder."""
        return self.server.folder / "motet"

    def site(self, name: str) -> Path:
        """A site's folder."""
        return self.sites[name].folder / "motet-site"

    def settings(self, name: str) -> SiteConfig:
        """A site's settings."""
        return read_site(self.site(name) / "site.toml")

    def start_server(self) -> None:
        """The SuperLink and what belongs to it."""
        self.server.start("server", f"motet server start {self.motet}")
        wait_for_port(self.port, within_s=120)

    def start_agent(self, name: str) -> None:
        """A site's agent."""
        self.sites[name].start("agent", f"motet agent start {self.site(name)}")

    def start_node(self, name: str) -> None:
        """A site's SuperNode and its supervisor."""
        self.sites[name].start("node", f"motet node start {self.site(name)}")

    def kill_agent(self, name: str) -> None:
        """kill -9 of an agent, and nothing else."""
        self.sites[name].end("agent", how=signal.SIGKILL)

    def kill_all(self) -> None:
        """kill -9 of every process of every machine, supervisors first: nothing is started again."""
        for machine in (self.server, *self.sites.values()):
            for process in machine.running.values():
                kill([process.pid])
        for machine in (self.server, *self.sites.values()):
            while found := ids_with(machine.mark):
                kill(found)
            for name in list(machine.running):
                machine.running.pop(name).wait(timeout=30)

    def start_all(self) -> None:
        """Server, agents, nodes."""
        self.start_server()
        for name in self.sites:
            self.start_agent(name)
            self.start_node(name)

    def start_run(self, run: str, *, private: bool, rounds: int, federation: dict[str, object] | None = None) -> Path:
        """A run, followed by a process of the server's machine with the run's name; its folder.

        Full batches, so that without noise there is one right model.
        """
        scenario = write_scenario(
            self.server.folder / f"{run}.toml",
            data_set=self.server.folder / "small",
            private=private,
            rounds=rounds,
            epsilon=3.0,
            sample_rate=1.0,
            federation={"wait_for_sites_s": 180.0, "round_timeout_s": 120.0, **(federation or {})},
        )
        folder = self.motet / "runs" / run
        self.server.start(run, f"motet run {scenario} --on {self.motet} --out {folder}")
        return folder

    def resume(self, run: str) -> None:
        """`motet run --resume`, once the follower that was there has ended."""
        follower = self.server.running.pop(run, None)
        if follower is not None:
            assert follower.wait(timeout=120) != 0, self.everything_said()
        self.server.start(run, f"motet run --resume {self.motet / 'runs' / run} --on {self.motet}")

    def wait_for_run(self, run: str, *, within_s: float) -> list[RoundRecord]:
        """Its rounds, once it has ended with a report."""
        code = self.server.running.pop(run).wait(timeout=within_s)
        assert code == 0, self.everything_said()
        return read_rounds(self.motet / "runs" / run / METRICS_FILE)

    def arm(self, name: str, point: str, round_number: int) -> Path:
        """The agent of a site will halt there; the file that is there once it has, and lets it go when it is removed."""
        gate = self.sites[name].folder / "parts" / f"{point}.{round_number}"
        gate.touch()
        return gate.with_name(f"{gate.name}.reached")

    def open_gates(self) -> None:
        """Nothing halts any more, whatever a test that failed has left armed."""
        for machine in self.sites.values():
            for gate in (machine.folder / "parts").glob("*.[0-9]*"):
                gate.unlink(missing_ok=True)

    def wait_for_gate(self, reached: Path, *, within_s: float = 240) -> None:
        """Comes back once an agent has halted there."""
        wait_until(reached.exists, within_s=within_s, else_say=self.everything_said)

    def states(self) -> dict[str, str]:
        """Of each site, as `motet status` says it."""
        told = json.loads(self.server.do(f"motet status --json {self.motet}"))
        return {site["name"]: site["state"] for site in told["sites"]}

    def assert_right(self, run: str, *, records: Sequence[RoundRecord], rounds: int) -> None:
        """Every round is there once, in the file and the report, and the model is that of an undisturbed run."""
        folder = self.motet / "runs" / run
        numbers = list(range(1, rounds + 1))
        assert [record.round for record in records] == numbers
        assert [record.round for record in read_record(folder).rounds] == numbers
        expected, found = self.undisturbed(run, used=used_sites(records)), load_file(folder / MODEL)
        assert expected.keys() == found.keys()
        for name, values in expected.items():
            torch.testing.assert_close(found[name], values, rtol=0, atol=1e-6, msg=name)

    def assert_paid(self, run: str, *, records: Sequence[RoundRecord]) -> None:
        """No ledger understates: a row that counts for every update that is in the model."""
        folder = self.motet / "runs" / run
        for name in self.sites:
            paid = {row.round_number for row in self.ledger_rows(name, folder) if row.state != "void"}
            used = [record.round for record, sites in zip(records, used_sites(records), strict=True) if name in sites]
            assert set(used) <= paid, name

    def ledger_rows(self, name: str, folder: Path) -> tuple[LedgerRow, ...]:
        """What a site's ledger holds about a run."""
        settings = self.settings(name)
        return tuple(Ledger(settings.ledger).rows(settings.data_set, run_id=read_settings(folder).run_id))

    def undisturbed(self, run: str, *, used: Sequence[frozenset[str]]) -> dict[str, Tensor]:
        """The model of a run of the same settings in this process, in whose rounds just these sites take part."""
        folder = self.folder / f"undisturbed-{run}-{time.monotonic_ns()}"
        folder.mkdir()
        settings = read_settings(self.motet / "runs" / run)
        write_settings(settings.model_copy(update={"enrolled": None, "cache": folder / "held"}), folder=folder)
        files = []
        for name in self.sites:
            text = (self.site(name) / "site.toml").read_text("utf-8").replace('"agent/', f'"{folder}/{name}/')
            text = re.sub(r"^(parts|key) = .*$", "", text, flags=re.MULTILINE)
            files.append(folder / f"{name}.toml")
            files[-1].write_text(text, encoding="utf-8")
        os.environ["MOTET_RUN_FOLDER"] = str(folder)
        try:
            run_over(_Attended(files, used=used), server_app)
        finally:
            del os.environ["MOTET_RUN_FOLDER"]
        return load_file(folder / MODEL)

    def everything_said(self) -> str:
        """The last words of every program."""
        return "\n".join(
            f"== {path}\n{path.read_text(errors='replace')[-3000:]}"
            for machine in (self.server, *self.sites.values())
            for path in [*machine.folder.glob("*.log"), *machine.folder.rglob("log/*.log")]
        )


class _Attended(LocalGrid):
    """Sites in this process, of which only some answer in each round."""

    def __init__(self, files: Sequence[Path], *, used: Sequence[frozenset[str]]) -> None:
        super().__init__(client_app, sites=files)
        self._used = used

    def replies(self, messages: Sequence[Message]) -> Iterator[Message]:
        for message in messages:
            site = self.site_of(message)
            is_training = message.metadata.message_type == MessageType.TRAIN
            if is_training and site is not None and site.stem not in self._used[int(message.metadata.group_id) - 1]:
                yield self.failed(message)
            else:
                yield self._deliver(message)


def used_sites(records: Sequence[RoundRecord]) -> list[frozenset[str]]:
    """Whose updates are in the model, round by round."""
    return [frozenset(site.site for site in record.sites if site.outcome == "used") for record in records]


@contextlib.contextmanager
def small_deployment(
    folder: Path, *, names: Sequence[str], port: int | None = None, through: dict[str, int] | None = None
) -> Iterator[SmallDeployment]:
    """A deployment whose owners also permit runs that are not private, and load the gates; all of it is ended at last.

    Args:
        port: the server's; a free one if not given.
        through: ports by which some sites reach the server, in the place of its own: a proxy's.
    """
    small = build_small_data_set(folder / "small", rows_per_site=ROWS)
    port = port or free_port()
    made = SmallDeployment(folder, Machine(folder / "server", {}), port)
    made.server.folder.mkdir()
    made.server.do(f"motet server init {made.motet} --host localhost --port {port} --listen 127.0.0.1")
    shutil.copytree(small / "held-out", made.server.folder / "small" / "held-out")
    shutil.copy(small / "dataset.toml", made.server.folder / "small")
    try:
        for name in names:
            made.sites[name] = _site(made, name, data=small / "sites" / name, port=(through or {}).get(name, port))
        made.start_server()
        for name in names:
            made.server.do(f"motet server enrol {made.site(name) / f'{name}.pub'} --on {made.motet}")
            made.start_agent(name)
            made.start_node(name)
        yield made
    finally:
        for machine in [*made.sites.values(), made.server]:
            for name in list(machine.running):
                machine.end(name)
        for machine in (made.server, *made.sites.values()):
            assert left_processes_with(MARK, machine.mark) == []


def _site(made: SmallDeployment, name: str, *, data: Path, port: int) -> Machine:
    machine = Machine(made.folder / name, {})
    machine.folder.mkdir()
    shutil.copytree(data, machine.folder / "data")
    shutil.copy(data.parents[1] / "dataset.toml", machine.folder)
    (machine.folder / "parts").mkdir()
    part = Path(shutil.copy(gates.__file__, machine.folder / "parts" / "gates.py"))
    site = machine.folder / "motet-site"
    machine.do(
        f"motet site init {site} --name {name} --server localhost:{port} --data {machine.folder / 'data'} "
        f"--size {ROWS} --delta 1e-3 --epsilon 100 --ca {made.motet / 'certificates' / 'ca.crt'}"
    )
    text = (site / "site.toml").read_text("utf-8")
    for old, new in (("allow_non_private = false", "allow_non_private = true"), ("parts = []", f'parts = ["{part}"]')):
        assert text.count(old) == 1
        text = text.replace(old, new)
    (site / "site.toml").write_text(text, encoding="utf-8")
    return machine
