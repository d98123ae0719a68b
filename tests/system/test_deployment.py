"""A deployment on loopback by the commands of docs/deployment.md: TLS, node keys, a SuperLink, SuperNodes, the delivered bundle.

Every process starts in a process group of its own here and is ended by its id. What each app process runs from is written
down by a line that the test puts into the bundle, so that the checkout cannot stand in for it unseen.
"""

import re
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast, get_args

import pytest

from client.site import read_site
from server.history import METRICS_FILE
from server.records import RoundRecord, RunRecord
from server.report.html import read_record
from shared.privacy.accountant import Accountant
from shared.privacy.ledger import Ledger
from tests.system.machine import (
    CHECKOUT,
    MARK,
    PAGE,
    Machine,
    block,
    exported,
    free_port,
    left_processes_with,
    wait_for_port,
)
from tests.system.small_federation import build_small_data_set, write_scenario

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
SITES = ("north", "south")
STRANGER = "west"


@dataclass
class Deployment:
    """A server, two sites, and what a run leaves behind."""

    server: Machine
    sites: dict[str, Machine]
    app: Path

    def start_node(self, name: str) -> None:
        self.sites[name].start("supernode", block("site: supernode"))

    def prepare(self, run: str, *, rounds: int, round_timeout_s: float) -> Path:
        scenario = write_scenario(
            Path(self.server.variables["MOTET"]) / "scenario.toml",
            data_set=self.server.folder / "small",
            private=True,
            rounds=rounds,
            epsilon=3.0,
            federation={"wait_for_sites_s": 180.0, "round_timeout_s": round_timeout_s},
        )
        assert scenario.is_file()
        self.server.do(block("server: prepare").replace("runs/first", f"runs/{run}"))
        return Path(self.server.variables["MOTET"]) / "runs" / run

    def start_run(self, run: str) -> None:
        self.server.start(run, block("server: run").replace("runs/first", f"runs/{run}"), cwd=self.app)

    def wait_for_run(self, run: str, *, within_s: float) -> None:
        assert self.server.running[run].wait(timeout=within_s) == 0, self.server.log(run)

    def everything_said(self) -> str:
        machines = [self.server, *self.sites.values()]
        return "\n".join(
            f"== {path}\n{path.read_text(errors='replace')[-4000:]}"
            for machine in machines
            for path in machine.folder.glob("*.log")
        )


def site_toml(name: str) -> str:
    """The page's site.toml with this site's values."""
    (text,) = re.findall(r"^```toml\n(name = .*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
    values = {
        "name": f'"{name}"', "data_set": f'"{name} 2026"', "nominal_size": "24", "modalities": '["sensor", "note"]', "delta": "1e-3",
    }  # fmt: skip
    for key, value in values.items():
        text, found = re.subn(rf"^{key} = [^#\n]*", f"{key} = {value}  ", text, flags=re.MULTILINE)
        assert found == 1
    return str(text)


def make_bundle_source(folder: Path) -> Path:
    """What `flwr run` bundles: the checkout's packages, with a line that writes down where they run from."""
    for name in ("client", "server", "shared"):
        shutil.copytree(CHECKOUT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(CHECKOUT / "pyproject.toml", folder)
    note = f'\nimport os\nwith open(os.environ["{MARK}"], "a") as _file:\n    _file.write(__file__ + "\\n")\n'
    for name in ("client", "server"):
        with (folder / name / "__init__.py").open("a", encoding="utf-8") as file:
            file.write(note)
    return folder


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """The page from its first command to its last but one: SuperLink, two SuperNodes, and a third that nobody registered."""
    folder = tmp_path_factory.mktemp("deployment")
    port, small = free_port(), build_small_data_set(folder / "small")
    motet = folder / "server" / "motet"
    server = Machine(
        folder / "server",
        {
            "MOTET": str(motet),
            "HOST": "localhost",
            "PORT": str(port),
            "LISTEN": "127.0.0.1",
            "FLWR_HOME": str(motet / "flower"),
        },
    )
    server.folder.mkdir()
    assert exported("server: your own values") == set(server.variables)
    server.do(block("server: certificates"))
    server.do(block("server: link"))
    # the server's machine has held-out data and no site's
    shutil.copytree(small / "held-out", server.folder / "small" / "held-out")
    shutil.copy(small / "dataset.toml", server.folder / "small")
    made = Deployment(server, {}, make_bundle_source(folder / "app" / "motet"))
    try:
        server.start("superlink", block("server: superlink"))
        for name in (*SITES, STRANGER):
            made.sites[name] = make_site(folder / name, name=name, port=port, motet=motet, data=small / "sites" / name)
        wait_for_port(port, within_s=120)
        for name in SITES:
            shutil.copy(Path(made.sites[name].variables["SITE"]) / "node.pub", motet / "keys" / f"{name}.pub")
            server.do(block("server: register").replace("clinic-a", name))
        for name in made.sites:
            made.start_node(name)
        yield made
    finally:
        for machine in [*made.sites.values(), server]:
            for name in list(machine.running):
                machine.end(name)
        assert [
            left for machine in (server, *made.sites.values()) for left in left_processes_with(MARK, machine.mark)
        ] == []


def make_site(folder: Path, *, name: str, port: int, motet: Path, data: Path) -> Machine:
    site = folder / "motet-site"
    machine = Machine(
        folder,
        {
            "SITE": str(site),
            "SUPERLINK": f"localhost:{port}",
            "RUNTIME_PORT": str(free_port()),
            "FLWR_HOME": str(site / "flower"),
        },
    )
    folder.mkdir()
    assert exported("site: your own values") == set(machine.variables)
    machine.do(block("site: key"))
    shutil.copy(motet / "certificates" / "ca.crt", site)
    shutil.copytree(data, site / "data")
    shutil.copy(data.parents[1] / "dataset.toml", site)
    (site / "site.toml").write_text(site_toml(name), encoding="utf-8")
    machine.do(block("site: check"))
    return machine


@pytest.fixture(scope="module")
def first_run(deployment: Deployment) -> RunRecord:
    folder = deployment.prepare("first", rounds=2, round_timeout_s=180.0)
    deployment.start_run("first")
    deployment.wait_for_run("first", within_s=400)
    report = folder / "report.json"
    assert report.is_file(), deployment.everything_said()
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
        site = read_site(Path(deployment.sites[plan.site].variables["SITE"]) / "site.toml")
        assert plan.accountant in get_args(Accountant)
        spent = Ledger(site.ledger).spent(
            site.data_set, unit="record", delta=plan.delta, accountant=cast(Accountant, plan.accountant)
        )
        assert plan.epsilon == pytest.approx(spent, rel=1e-9)
        assert 0 < spent <= 3.0


def test_what_ran_is_the_delivered_bundle_and_not_the_checkout(deployment: Deployment, first_run: RunRecord) -> None:
    for machine in (deployment.server, *(deployment.sites[name] for name in SITES)):
        # `flwr run` itself imports the apps, to check them, from the folder that it bundles
        places = {place for place in machine.ran_from() if not place.is_relative_to(deployment.app)}
        assert places
        assert all(place.is_relative_to(Path(machine.variables["FLWR_HOME"]) / "apps") for place in places)


def test_a_node_with_an_unregistered_key_is_not_admitted(deployment: Deployment, first_run: RunRecord) -> None:
    stranger = deployment.sites[STRANGER]
    assert first_run.sites == ("north", "south")
    assert stranger.ran_from() == set()
    assert not (Path(stranger.variables["SITE"]) / "ledger.sqlite").exists()
    assert stranger.running["supernode"].wait(timeout=60) != 0, stranger.log("supernode")


def test_a_run_goes_on_without_a_site_whose_node_was_killed(deployment: Deployment, first_run: RunRecord) -> None:
    folder = deployment.prepare("second", rounds=3, round_timeout_s=45.0)
    deployment.start_run("second")
    deadline = time.monotonic() + 240
    while not (folder / METRICS_FILE).is_file():
        assert time.monotonic() < deadline, deployment.everything_said()
        time.sleep(0.2)
    deployment.sites["south"].end("supernode", how=signal.SIGKILL)
    deployment.wait_for_run("second", within_s=300)

    assert (folder / "report.json").is_file(), deployment.everything_said()
    records = [
        RoundRecord.model_validate_json(line) for line in (folder / METRICS_FILE).read_text("utf-8").splitlines()
    ]
    outcomes = [{site.site: site.outcome for site in record.sites} for record in records]
    assert [each["north"] for each in outcomes] == ["used"] * 3
    assert outcomes[0]["south"] == "used"
    assert {each["south"] for each in outcomes[1:]} <= {"late", "failed"}
    first, second = first_run.rounds[-1].sites[0].epsilon, records[0].sites[0].epsilon
    assert first is not None
    assert second is not None
    assert second > first
