"""A deployment on loopback by the commands of docs/deployment.md: TLS, keys, agents, SuperNodes as another user, a report.

Everything is started in a process group of its own here and ended by its id. Where this is root, agents run as root and
nodes as `nobody` (if that user can run this Python); elsewhere both are one user, and what one must not read of the other is not tested.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast, get_args

import pytest

from client.site import read_site
from server.code_digest import code_digest
from server.history import METRICS_FILE
from server.records import RoundRecord, RunRecord
from server.report.html import read_record
from shared.privacy.accountant import Accountant
from shared.privacy.ledger import Ledger
from tests.system.machine import (
    MARK,
    Machine,
    block,
    exported,
    free_port,
    left_processes_with,
    wait_for_port,
)
from tests.system.small_federation import build_small_data_set, write_scenario

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
SITES = ("north", "south")
STRANGER = "west"


def can_run_as(user: str) -> bool:
    """Whether this is root, and this very Python lies where that user can run it."""
    if os.geteuid() != 0:
        return False
    try:
        done = subprocess.run(
            [sys.executable, "-c", "import flwr"], user=user, cwd="/", check=False, capture_output=True
        )
    except PermissionError:
        return False
    return done.returncode == 0


NODE_USER = "nobody" if can_run_as("nobody") else None
needs_two_users = pytest.mark.skipif(
    NODE_USER is None, reason="needs root, and a Python that another user can run, which none below a home can"
)


@dataclass
class Deployment:
    """A server, two sites, and what a run leaves behind."""

    server: Machine
    sites: dict[str, Machine]

    @property
    def folder(self) -> Path:
        return Path(self.server.variables["MOTET"])

    def site(self, name: str) -> Path:
        return Path(self.sites[name].variables["SITE"])

    def start_run(self, run: str, *, rounds: int, round_timeout_s: float) -> Path:
        write_scenario(
            self.folder / "scenario.toml",
            data_set=self.server.folder / "small",
            private=True,
            rounds=rounds,
            epsilon=3.0,
            federation={"wait_for_sites_s": 180.0, "round_timeout_s": round_timeout_s},
        )
        self.server.start(run, block("server: run").replace("runs/first", f"runs/{run}"))
        return self.folder / "runs" / run

    def wait_for_run(self, run: str, *, within_s: float) -> None:
        assert self.server.running[run].wait(timeout=within_s) == 0, self.everything_said()

    def states(self) -> dict[str, dict[str, object]]:
        """Each site's line of `motet status`."""
        told = json.loads(self.server.do(block("server: status").replace('"$MOTET"', '--json "$MOTET"')))
        return {site["name"]: site for site in told["sites"]}

    def everything_said(self) -> str:
        machines = [self.server, *self.sites.values()]
        return "\n".join(
            f"== {path}\n{path.read_text(errors='replace')[-4000:]}"
            for machine in machines
            for path in [*machine.folder.glob("*.log"), *machine.folder.rglob("log/*.log")]
        )


def wait_until(condition: Callable[[], bool], *, within_s: float, else_say: Callable[[], str]) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, else_say()
        time.sleep(0.3)


def make_site(folder: Path, *, name: str, port: int, ca: Path, data: Path) -> Machine:
    """The page's second step, but for what goes on running."""
    machine = Machine(
        folder,
        {
            "SITE": str(folder / "motet-site"),
            "NAME": name,
            "SERVER": f"localhost:{port}",
            "DATA": str(folder / "data"),
            "SIZE": "24",
            "NODE_USER": NODE_USER or "",
            "CA": str(folder / "ca.crt"),
        },
    )
    folder.mkdir(mode=0o711)
    assert exported("site: your own values") == set(machine.variables)
    shutil.copytree(data, folder / "data")
    shutil.copy(data.parents[1] / "dataset.toml", folder)
    (folder / "data").chmod(0o700)
    shutil.copy(ca, folder / "ca.crt")
    set_up = block("site: set up")
    machine.do(set_up if NODE_USER else set_up.replace(' --node-user "$NODE_USER"', ""))
    # the owner's word: the run's delta is that of few records
    settings = folder / "motet-site" / "site.toml"
    text, found = re.subn(r"^delta = \S+", "delta = 1e-3", settings.read_text("utf-8"), flags=re.MULTILINE)
    assert found == 1
    settings.write_text(text, encoding="utf-8")
    machine.do(block("site: check"))
    return machine


@pytest.fixture(scope="module")
def deployment() -> Iterator[Deployment]:
    """The page from its first command on: server, agents, nodes, and a third site that nobody enrolled."""
    # not pytest's own folder, through which another user may not pass
    folder = Path(tempfile.mkdtemp(prefix="motet-deployment-"))
    folder.chmod(0o711)
    port, small = free_port(), build_small_data_set(folder / "small")
    server = Machine(
        folder / "server",
        {
            "MOTET": str(folder / "server" / "motet"),
            "HOST": "localhost",
            "PORT": str(port),
            "LISTEN": "127.0.0.1",
            "MONITOR": str(free_port()),
        },
    )
    server.folder.mkdir()
    assert exported("server: your own values") == set(server.variables)
    server.do(block("server: set up"))
    # the server's machine has held-out data and no site's
    shutil.copytree(small / "held-out", server.folder / "small" / "held-out")
    shutil.copy(small / "dataset.toml", server.folder / "small")
    made = Deployment(server, {})
    try:
        server.start("server", block("server: start"))
        ca = made.folder / "certificates" / "ca.crt"
        for name in (*SITES, STRANGER):
            site = made.sites[name] = make_site(folder / name, name=name, port=port, ca=ca, data=small / "sites" / name)
            site.start("agent", block("site: agent"))
        wait_for_port(port, within_s=120)
        for name in SITES:
            shutil.copy(made.site(name) / f"{name}.pub", server.folder)
            server.do(block("server: enrol").replace("clinic-a", name))
        for site in made.sites.values():
            site.start("node", block("site: node"), user=NODE_USER)
        yield made
    finally:
        for machine in [*made.sites.values(), server]:
            for name in list(machine.running):
                machine.end(name)
        left = [left for machine in (server, *made.sites.values()) for left in left_processes_with(MARK, machine.mark)]
        shutil.rmtree(folder)
        assert left == []


@pytest.fixture(scope="module")
def first_run(deployment: Deployment) -> RunRecord:
    folder = deployment.start_run("first", rounds=2, round_timeout_s=180.0)
    deployment.wait_for_run("first", within_s=500)
    assert f"report: {folder / 'report.html'}" in deployment.server.log("first")
    assert (folder / "report.json").is_file(), deployment.everything_said()
    return read_record(folder)


def test_both_sites_are_used_in_every_round_and_the_report_is_there(first_run: RunRecord) -> None:
    assert [[(site.site, site.outcome) for site in record.sites] for record in first_run.rounds] == [
        [("north", "used"), ("south", "used")]
    ] * 2
    assert first_run.engine == "deployment"


def test_the_epsilon_in_the_report_is_the_one_in_each_sites_ledger(
    deployment: Deployment, first_run: RunRecord
) -> None:
    assert {plan.site for plan in first_run.privacy} == set(SITES)
    for plan in first_run.privacy:
        site = read_site(deployment.site(plan.site) / "site.toml")
        assert plan.accountant in get_args(Accountant)
        spent = Ledger(site.ledger).spent(
            site.data_set, unit="record", delta=plan.delta, accountant=cast(Accountant, plan.accountant)
        )
        assert plan.epsilon == pytest.approx(spent, rel=1e-9)
        assert 0 < spent <= 3.0


def test_what_ran_is_the_delivered_bundle_and_not_the_checkout(deployment: Deployment, first_run: RunRecord) -> None:
    assert first_run.code_digest == code_digest()
    homes = [deployment.folder / "flower", *(deployment.site(name) / "node" / "flower" for name in SITES)]
    for home in homes:
        (app,) = {path.parents[1] for path in (home / "apps").rglob("client/app.py")}
        assert code_digest(app) == code_digest()


@needs_two_users
def test_the_delivered_app_can_read_neither_data_nor_ledger(deployment: Deployment, first_run: RunRecord) -> None:
    """What its user cannot read, no code that runs as that user can."""
    for name in SITES:
        site = deployment.site(name)
        pid = int((site / "node" / "running" / "supernode.pid").read_text().split()[0])
        (uids,) = re.findall(r"^Uid:\s+(.*)$", Path(f"/proc/{pid}/status").read_text(), flags=re.MULTILINE)
        assert "0" not in uids.split()
        settings = read_site(site / "site.toml")
        private = [settings.data, settings.ledger, settings.cache, settings.agent.journal, settings.agent.answers]
        private += [site / "site.toml", site / "agent" / "key", settings.data / "metadata.jsonl"]
        assert [path for path in private if not path.exists()] == []
        for path in private:
            for how in ("-r", "-w"):
                assert subprocess.run(["/usr/bin/test", how, path], user=NODE_USER, check=False).returncode == 1, path


def test_a_node_with_an_unregistered_key_is_not_admitted(deployment: Deployment, first_run: RunRecord) -> None:
    assert first_run.sites == ("north", "south")
    stranger = deployment.sites[STRANGER]
    assert "its key is not enrolled" in stranger.log("node")
    assert not (deployment.site(STRANGER) / "agent" / "ledger.sqlite").exists()
    assert not list((deployment.site(STRANGER) / "node" / "flower").rglob("client/app.py"))


def test_status_shows_who_is_there_and_of_which_version(deployment: Deployment, first_run: RunRecord) -> None:
    found = deployment.states()
    assert {name: (site["state"], site["last_outcome"]) for name, site in found.items()} == dict.fromkeys(
        SITES, ("online", "used")
    )
    assert {site["version"] for site in found.values()} == {first_run.versions["motet"]}


def test_a_run_goes_on_without_a_site_whose_node_was_killed_and_the_node_comes_back(
    deployment: Deployment, first_run: RunRecord
) -> None:
    folder = deployment.start_run("second", rounds=3, round_timeout_s=45.0)
    wait_until((folder / METRICS_FILE).is_file, within_s=300, else_say=deployment.everything_said)
    pid = int((deployment.site("south") / "node" / "running" / "supernode.pid").read_text().split()[0])
    os.killpg(pid, signal.SIGKILL)
    deployment.wait_for_run("second", within_s=400)

    assert (folder / "report.json").is_file(), deployment.everything_said()
    records = [
        RoundRecord.model_validate_json(line) for line in (folder / METRICS_FILE).read_text("utf-8").splitlines()
    ]
    outcomes = [{site.site: site.outcome for site in record.sites} for record in records]
    assert [each["north"] for each in outcomes] == ["used"] * 3
    assert outcomes[0]["south"] == "used"
    assert {each["south"] for each in outcomes[1:]} <= {"used", "late", "failed"}
    assert "supernode: ended by signal 9" in deployment.sites["south"].log("node")
    wait_until(
        lambda: deployment.states()["south"]["state"] == "online", within_s=120, else_say=deployment.everything_said
    )
