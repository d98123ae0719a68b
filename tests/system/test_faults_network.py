"""Real processes over TLS on loopback; a network between one site and the server that drops, delays and cuts; a site that hangs.

The node of `south` reaches the server through a proxy. Whatever happens to it, rounds go on, every update is in the
model at most once, and the model is that of an undisturbed run over the sites that were used.
"""

import os
import signal
import time
from collections.abc import Iterator

import pytest

from server.history import METRICS_FILE, read_rounds
from tests.system.machine import free_port
from tests.system.proxy import Proxy, proxied
from tests.system.small_deployment import SmallDeployment, ids_with, kill, small_deployment, used_sites, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
SITES = ("north", "south")
ALL, NORTH = frozenset(SITES), frozenset(["north"])


@pytest.fixture(scope="module")
def port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def proxy(port: int) -> Iterator[Proxy]:
    with proxied(free_port(), to=port) as made:
        yield made


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory, port: int, proxy: Proxy) -> Iterator[SmallDeployment]:
    folder = tmp_path_factory.mktemp("d")
    with small_deployment(folder, names=SITES, port=port, through={"south": proxy.port}) as made:
        yield made


@pytest.fixture(autouse=True)
def _open_gates(deployment: SmallDeployment) -> Iterator[None]:
    yield
    deployment.open_gates()


def rounds_done(deployment: SmallDeployment, run: str) -> int:
    return len(read_rounds(deployment.motet / "runs" / run / METRICS_FILE))


def wait_for_round(deployment: SmallDeployment, run: str, number: int) -> None:
    wait_until(lambda: rounds_done(deployment, run) >= number, within_s=400, else_say=deployment.everything_said)


def test_a_network_that_delays_and_cuts_connections_half_way_costs_no_round_and_counts_nothing_twice(
    deployment: SmallDeployment, proxy: Proxy
) -> None:
    deployment.start_run("cut", private=False, rounds=4)
    wait_for_round(deployment, "cut", 1)
    proxy.delay_s = 0.05
    cut_before = proxy.num_cut
    while rounds_done(deployment, "cut") < 3:
        time.sleep(1.5)
        proxy.cut()
        # from time to time in the middle of what the site sends
        proxy.cut_after = 3000 if proxy.cut_after is None else None
    proxy.delay_s, proxy.cut_after = 0.0, None
    records = deployment.wait_for_run("cut", within_s=400)

    assert proxy.num_cut > cut_before
    assert all("north" in sites for sites in used_sites(records))
    deployment.assert_right("cut", records=records, rounds=4)
    deployment.assert_paid("cut", records=records)


def test_a_site_that_cannot_be_reached_is_late_and_comes_back(deployment: SmallDeployment, proxy: Proxy) -> None:
    gate = deployment.arm("south", "after", 2)
    deployment.start_run("away", private=False, rounds=5, federation={"round_timeout_s": 30.0, "min_sites": 1})
    deployment.wait_for_gate(gate)
    proxy.mode = "drop"
    gate.unlink()
    wait_for_round(deployment, "away", 2)
    proxy.mode = "pass"
    proxy.cut()
    records = deployment.wait_for_run("away", within_s=400)

    assert used_sites(records)[:2] == [ALL, NORTH]
    assert {site.site: site.outcome for site in records[1].sites}["south"] == "late"
    deployment.assert_right("away", records=records, rounds=5)
    deployment.assert_paid("away", records=records)


def test_what_a_site_that_hung_answers_after_the_deadline_is_in_no_round(deployment: SmallDeployment) -> None:
    gate = deployment.arm("south", "during", 2)
    deployment.start_run("hung", private=False, rounds=4, federation={"round_timeout_s": 30.0, "min_sites": 1})
    deployment.wait_for_gate(gate)
    agent = deployment.sites["south"].running["agent"].pid
    os.kill(agent, signal.SIGSTOP)
    gate.unlink()
    wait_for_round(deployment, "hung", 2)
    os.kill(agent, signal.SIGCONT)
    records = deployment.wait_for_run("hung", within_s=400)

    assert used_sites(records)[:2] == [ALL, NORTH]
    # it had been paid for, and stays so
    rows = deployment.ledger_rows("south", deployment.motet / "runs" / "hung")
    assert 2 in [row.round_number for row in rows if row.state != "void"]
    deployment.assert_right("hung", records=records, rounds=4)
    deployment.assert_paid("hung", records=records)


def test_a_run_without_enough_sites_pauses_says_so_and_goes_on_when_they_return(deployment: SmallDeployment) -> None:
    gate = deployment.arm("north", "during", 2)
    deployment.start_run("paused", private=False, rounds=4, federation={"round_timeout_s": 30.0, "min_sites": 2})
    deployment.wait_for_gate(gate)
    deployment.sites["south"].end("node")
    gate.unlink()
    said = deployment.motet / "runs" / "paused" / "server.log"
    wait_until(
        lambda: said.is_file() and "paused before round" in said.read_text("utf-8"),
        within_s=240,
        else_say=deployment.everything_said,
    )
    deployment.start_node("south")
    records = deployment.wait_for_run("paused", within_s=400)

    assert "the run goes on" in said.read_text("utf-8")
    # and whoever watches is told
    assert "paused before round" in deployment.server.log("paused")
    assert used_sites(records)[-1] == ALL
    deployment.assert_right("paused", records=records, rounds=4)
    deployment.assert_paid("paused", records=records)


def test_a_run_ends_without_a_site_that_left_for_good(deployment: SmallDeployment) -> None:
    gate = deployment.arm("south", "before", 2)
    deployment.start_run("left", private=False, rounds=3, federation={"round_timeout_s": 30.0, "min_sites": 1})
    deployment.wait_for_gate(gate)
    south = deployment.sites["south"]
    south.end("node", how=signal.SIGKILL)
    deployment.kill_agent("south")
    kill(ids_with(south.mark))  # the SuperNode, which outlives a supervisor that is killed
    records = deployment.wait_for_run("left", within_s=400)

    assert used_sites(records) == [ALL, NORTH, NORTH]
    deployment.assert_right("left", records=records, rounds=3)
    deployment.assert_paid("left", records=records)
