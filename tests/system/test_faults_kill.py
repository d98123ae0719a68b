"""Real processes over TLS on loopback, killed with SIGKILL at named points: the run ends right and nothing is lost.

Without noise and with full batches there is one right model: that of an undisturbed run over the same sites, round by
round (`SmallDeployment.undisturbed`).
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from server.report.html import read_record
from shared.privacy.accountant import spent_epsilon
from shared.privacy.ledger import uses_of_rows
from tests.system.gates import POINTS
from tests.system.small_deployment import (
    SERVER_APP,
    SUPERLINK,
    SUPERNODE,
    SmallDeployment,
    ids_with,
    kill,
    small_deployment,
    used_sites,
    wait_until,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
SITES = ("north", "south")
ALL = frozenset(SITES)


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallDeployment]:
    with small_deployment(tmp_path_factory.mktemp("d"), names=SITES) as made:
        yield made


@pytest.fixture(autouse=True)
def _open_gates(deployment: SmallDeployment) -> Iterator[None]:
    yield
    deployment.open_gates()


def assert_spent_is_told(deployment: SmallDeployment, folder: Path) -> None:
    """What the report says of a run's cost at a site is at most what the site's ledger says."""
    told = {plan.site: plan for plan in read_record(folder).privacy}
    assert set(told) == set(deployment.sites)
    for name, plan in told.items():
        uses = uses_of_rows(deployment.ledger_rows(name, folder), unit="record")
        assert 0 < plan.epsilon <= spent_epsilon(uses, delta=plan.delta, accountant="pld") * (1 + 1e-9)


# the private one first: after a run without noise, which costs infinitely much, nothing private is granted any more
@pytest.mark.parametrize("private", [True, False])
def test_an_agent_killed_before_in_and_after_training_and_before_the_reply_costs_nothing(
    deployment: SmallDeployment, private: bool
) -> None:
    run = f"agent-{'private' if private else 'open'}"
    reached = [deployment.arm("north", point, number) for number, point in enumerate(POINTS, start=1)]
    folder = deployment.start_run(run, private=private, rounds=len(POINTS))
    for gate in reached:
        deployment.wait_for_gate(gate)
        deployment.kill_agent("north")
        gate.unlink()
        deployment.start_agent("north")
    records = deployment.wait_for_run(run, within_s=400)

    assert used_sites(records) == [ALL] * len(POINTS)
    # the same request again: paid for once
    for name in SITES:
        rows = deployment.ledger_rows(name, folder)
        assert [(row.round_number, row.state) for row in rows] == [
            (number, "released") for number in range(1, len(POINTS) + 1)
        ]
    if private:
        assert_spent_is_told(deployment, folder)
    else:
        deployment.assert_right(run, records=records, rounds=len(POINTS))


def test_a_run_goes_on_when_a_supernode_is_killed(deployment: SmallDeployment) -> None:
    gate = deployment.arm("south", "during", 2)
    deployment.start_run("supernode", private=False, rounds=3, federation={"round_timeout_s": 60.0, "min_sites": 1})
    deployment.wait_for_gate(gate)
    kill(ids_with(deployment.sites["south"].mark, word=SUPERNODE))
    gate.unlink()
    records = deployment.wait_for_run("supernode", within_s=400)

    assert used_sites(records)[0] == ALL
    assert all("north" in sites for sites in used_sites(records))
    assert "supernode: ended by signal 9" in deployment.sites["south"].log("node")
    deployment.assert_right("supernode", records=records, rounds=3)
    deployment.assert_paid("supernode", records=records)
    wait_until(lambda: deployment.states()["south"] == "online", within_s=120, else_say=deployment.everything_said)


def test_a_run_goes_on_when_the_superlink_is_killed(deployment: SmallDeployment) -> None:
    gate = deployment.arm("south", "during", 2)
    deployment.start_run("superlink", private=False, rounds=3)
    deployment.wait_for_gate(gate)
    (before,) = ids_with(deployment.server.mark, word=SUPERLINK)
    kill([before])
    wait_until(
        lambda: ids_with(deployment.server.mark, word=SUPERLINK) not in ([], [before]),
        within_s=60,
        else_say=deployment.everything_said,
    )
    gate.unlink()
    records = deployment.wait_for_run("superlink", within_s=500)

    deployment.assert_right("superlink", records=records, rounds=3)
    deployment.assert_paid("superlink", records=records)


def test_a_run_whose_server_app_is_killed_is_resumed(deployment: SmallDeployment) -> None:
    gate = deployment.arm("south", "during", 2)
    deployment.start_run("server-app", private=False, rounds=3)
    deployment.wait_for_gate(gate)
    kill(ids_with(deployment.server.mark, word=SERVER_APP))
    gate.unlink()
    deployment.resume("server-app")
    records = deployment.wait_for_run("server-app", within_s=400)

    assert used_sites(records) == [ALL] * 3
    deployment.assert_right("server-app", records=records, rounds=3)
    deployment.assert_paid("server-app", records=records)


def test_a_run_is_resumed_after_everything_was_killed_at_once(deployment: SmallDeployment) -> None:
    gate = deployment.arm("south", "after", 2)
    deployment.start_run("all", private=False, rounds=3)
    deployment.wait_for_gate(gate)
    deployment.kill_all()
    gate.unlink()
    deployment.start_all()
    deployment.resume("all")
    records = deployment.wait_for_run("all", within_s=400)

    assert used_sites(records) == [ALL] * 3
    deployment.assert_right("all", records=records, rounds=3)
    deployment.assert_paid("all", records=records)
