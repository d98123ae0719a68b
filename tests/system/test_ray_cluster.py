"""A run on a Ray cluster of two nodes, from the command line: the same model, both at work, and clear refusals."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.history import METRICS_FILE
from server.records import RoundRecord
from tests.system.ray_nodes import HOSTS, RayCluster, ray_cluster
from tests.system.small_federation import build_small_data_set, write_scenario
from tests.system.test_flower_engine import ROOT, epsilons, largest_difference

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    with ray_cluster() as made:
        yield made


def start(scenario: Path, *options: str, folder: Path, environment: dict[str, str]) -> subprocess.Popen[str]:
    command = [sys.executable, str(ROOT / "motet.py"), "simulate", str(scenario), "--out", str(folder), *options]
    return subprocess.Popen(
        command, env=environment | {"MOTET_HOME": str(folder.parent)}, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def on(cluster: RayCluster, scenario: Path, *, folder: Path, token: str | None = None) -> subprocess.Popen[str]:
    environment = cluster.environment() | ({} if token is None else {"RAY_AUTH_TOKEN": token})
    options = ("--engine", "flower", "--ray-address", cluster.address)
    return start(scenario, *options, folder=folder, environment=environment)


def ended(run: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and what went to stderr."""
    try:
        _, stderr = run.communicate(timeout=300)
    finally:
        run.kill()
    return run.returncode, stderr


class Watch(threading.Thread):
    """Addresses of the nodes on which sites were answered for, while it looks."""

    def __init__(self, cluster: RayCluster) -> None:
        super().__init__(daemon=True)
        self._nodes, self._over, self.found = tuple(cluster.nodes), threading.Event(), set[str]()
        self.start()

    def run(self) -> None:
        while not self._over.wait(0.2):
            self.found |= {node.host for node in self._nodes if node.with_torch()}

    def end(self) -> set[str]:
        self._over.set()
        self.join()
        return self.found


def records(folder: Path) -> list[RoundRecord]:
    file = folder / METRICS_FILE
    lines = file.read_text().splitlines(keepends=True) if file.is_file() else []
    return [RoundRecord.model_validate_json(line) for line in lines if line.endswith("\n")]


def assert_nothing_is_left(cluster: RayCluster, folder: Path) -> None:
    """No worker of the run, no file of the check; the cluster as it was, all its cores free."""
    deadline = time.monotonic() + 30
    while (left := [node.with_torch() for node in cluster.nodes]) and any(left):
        assert time.monotonic() < deadline, left
        time.sleep(0.5)
    assert list(folder.glob("cluster-*")) == []
    cluster.wait_for(HOSTS[:2], free=1.0, within_s=30)


def test_both_nodes_work_and_the_model_is_that_of_the_local_engine(cluster: RayCluster, tmp_path: Path) -> None:
    data_set = build_small_data_set(tmp_path / "small")
    scenario = write_scenario(tmp_path / "s.toml", data_set=data_set, private=True, reproducible_noise=True)
    local = start(scenario, "--engine", "local", folder=tmp_path / "local", environment=dict(os.environ))
    assert ended(local)[0] == 0

    watch = Watch(cluster)
    code, stderr = ended(on(cluster, scenario, folder=tmp_path / "run"))
    at_work = watch.end()

    assert code == 0, stderr
    assert largest_difference(tmp_path / "local", tmp_path / "run") < 1e-6
    assert epsilons(tmp_path / "local") == epsilons(tmp_path / "run")
    assert at_work == set(HOSTS[:2])
    assert_nothing_is_left(cluster, tmp_path / "run")


def test_without_noise_the_model_is_that_of_the_local_engine(cluster: RayCluster, tmp_path: Path) -> None:
    data_set = build_small_data_set(tmp_path / "small")
    scenario = write_scenario(tmp_path / "s.toml", data_set=data_set, private=False)
    local = start(scenario, "--engine", "local", folder=tmp_path / "local", environment=dict(os.environ))
    assert ended(local)[0] == 0

    code, stderr = ended(on(cluster, scenario, folder=tmp_path / "run"))

    assert code == 0, stderr
    assert largest_difference(tmp_path / "local", tmp_path / "run") < 1e-6


def test_a_wrong_token_is_refused_before_a_run_folder_is_made(cluster: RayCluster, tmp_path: Path) -> None:
    scenario = write_scenario(tmp_path / "s.toml", data_set=build_small_data_set(tmp_path / "small"), private=False)

    code, stderr = ended(on(cluster, scenario, folder=tmp_path / "run", token="0" * 32))

    assert code == 1
    assert f"RunError: --ray-address {cluster.address}: " in stderr
    assert "Traceback" not in stderr
    assert not (tmp_path / "run").exists()


def test_a_node_that_does_not_see_the_data_is_named_and_nothing_is_trained(cluster: RayCluster, tmp_path: Path) -> None:
    data_set = build_small_data_set(tmp_path / "small")
    hidden = data_set / "sites" / "north"
    scenario = write_scenario(tmp_path / "s.toml", data_set=data_set, private=False)
    alone = ["unshare", "--mount", "--map-root-user", "--user"] if os.geteuid() else ["unshare", "--mount"]
    if subprocess.run([*alone, "true"], check=False, capture_output=True).returncode != 0:
        pytest.skip("no mount namespace can be made here")
    hide = f'mount -t tmpfs none {hidden} && exec "$@"'
    blind = cluster.add(before=[*alone, "sh", "-c", hide, "sh"])
    try:
        cluster.wait_for(HOSTS)
        code, stderr = ended(on(cluster, scenario, folder=tmp_path / "run"))
    finally:
        blind.end()
        cluster.nodes.remove(blind)
        cluster.wait_for(HOSTS[:2])

    assert code == 1
    faults = [line for line in stderr.splitlines() if line.startswith("  ")]
    assert len(faults) == 1
    assert f"({HOSTS[2]}, node " in faults[0]
    assert f"{hidden}/metadata.jsonl: No such file or directory" in faults[0]
    assert records(tmp_path / "run") == []
    assert_nothing_is_left(cluster, tmp_path / "run")


def test_cores_that_another_job_holds_are_named(cluster: RayCluster, tmp_path: Path) -> None:
    scenario = write_scenario(tmp_path / "s.toml", data_set=build_small_data_set(tmp_path / "small"), private=False)
    held = subprocess.Popen(
        [sys.executable, "-c", _HOLD, cluster.address], env=cluster.environment(), stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert held.stdout is not None
        assert held.stdout.readline() == "held\n"
        code, stderr = ended(on(cluster, scenario, folder=tmp_path / "run"))
    finally:
        held.communicate(input="over\n", timeout=60)

    assert code == 1
    assert "cores of the Ray cluster are held by another job" in stderr
    assert "0 of 1 cores free" in stderr


# the last one: the node does not come back
def test_a_node_killed_in_mid_run_costs_its_site_a_round_and_the_run_goes_on(
    cluster: RayCluster, tmp_path: Path
) -> None:
    data_set, rounds = build_small_data_set(tmp_path / "small"), 12
    scenario = write_scenario(
        tmp_path / "s.toml", data_set=data_set, private=True, rounds=rounds, federation={"min_sites": 1}
    )
    folder = tmp_path / "run"
    run = on(cluster, scenario, folder=folder)
    deadline = time.monotonic() + 120
    while len(records(folder)) < 2:
        assert time.monotonic() < deadline, "no second round"
        assert run.poll() is None, ended(run)
        time.sleep(0.1)
    os.kill(cluster.nodes[1].raylet(), signal.SIGKILL)
    code, stderr = ended(run)

    assert code == 0, stderr
    found = records(folder)
    assert [record.round for record in found] == list(range(1, rounds + 1))
    failed = [(record.round, site.site) for record in found for site in record.sites if site.outcome != "used"]
    assert len(failed) == 1, failed
    assert all(len(record.sites) == 3 for record in found)
    assert (folder / "report.html").is_file()
    # Ray itself takes longer than the run to note that the node is gone
    cluster.wait_for(HOSTS[:1], free=1.0)


_HOLD = """
import sys, ray
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
@ray.remote(num_cpus=1)
class Holder:
    def here(self): return True
holder = Holder.remote()
ray.get(holder.here.remote())
print("held", flush=True)
sys.stdin.readline()
"""
