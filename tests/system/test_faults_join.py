"""Real processes over TLS on loopback: a site that comes on line during a run takes part from the next round on.

`north` halts at a gate in the middle of round 1 until `south` has come, so that rounds are left when it is in. The
model is that of an undisturbed run in whose rounds just the same sites take part.
"""

import json
import time
from collections.abc import Iterator, Sequence

import pytest

from server.records import RoundRecord
from server.report.html import read_record
from server.roster import first_rounds
from tests.system.small_deployment import SUPERNODE, SmallDeployment, ids_with, small_deployment, used_sites, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
SITES = ("north", "south")
ALL, NORTH = frozenset(SITES), frozenset(["north"])
ROUNDS = 4
FEDERATION: dict[str, object] = {"min_sites": 1, "wait_for_sites_s": 10.0, "round_timeout_s": 500.0}


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallDeployment]:
    with small_deployment(tmp_path_factory.mktemp("d"), names=SITES) as made:
        yield made


def wait_for_state(deployment: SmallDeployment, name: str, *states: str) -> None:
    wait_until(lambda: deployment.states()[name] in states, within_s=240, else_say=lambda: f"{deployment.states()}")


def questions(deployment: SmallDeployment, name: str) -> int:
    """How often a site's agent was asked who it is, or for counts, by its own journal."""
    path = deployment.site(name) / "agent" / "journal.jsonl"
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    return sum(json.loads(line).get("kind") == "query" for line in lines)


def wait_until_asked(deployment: SmallDeployment, name: str, *, before: int) -> None:
    """Comes back when a site has been asked who it is, and the server can have heard its answer."""
    wait_until(lambda: questions(deployment, name) > before, within_s=300, else_say=deployment.everything_said)
    # the node's process carries the answer, and the server looks for it every few seconds
    time.sleep(20)


def assert_joined(deployment: SmallDeployment, run: str, records: Sequence[RoundRecord]) -> None:
    """South is there from some round after the first on, in rounds, plan, report, ledger and model."""
    used = used_sites(records)
    first = next(number for number, sites in enumerate(used, start=1) if "south" in sites)
    assert 1 < first <= ROUNDS
    assert used == [NORTH] * (first - 1) + [ALL] * (ROUNDS - first + 1)
    assert all("south" not in {site.site for site in record.sites} for record in records[: first - 1])
    folder = deployment.motet / "runs" / run
    assert first_rounds(folder) == {"north": 1, "south": first}
    assert {share.site: share.first_round for share in read_record(folder).shares} == {"north": 1, "south": first}
    assert f"Came on line after the run had begun: south from round {first} on" in (folder / "report.html").read_text()
    rows = deployment.ledger_rows("south", folder)
    assert [row.round_number for row in rows if row.state != "void"] == list(range(first, ROUNDS + 1))
    deployment.assert_right(run, records=records, rounds=ROUNDS)
    deployment.assert_paid(run, records=records)


def test_a_site_that_comes_on_line_during_a_run_takes_part_from_the_next_round_on(deployment: SmallDeployment) -> None:
    deployment.sites["south"].end("node")
    deployment.sites["south"].end("agent")
    before = questions(deployment, "south")
    # it may have been ended before it was ever there
    wait_for_state(deployment, "south", "offline", "never")
    gate = deployment.arm("north", "during", 1)
    deployment.start_run("late", private=False, rounds=ROUNDS, federation=FEDERATION)
    deployment.wait_for_gate(gate)
    deployment.start_agent("south")
    deployment.start_node("south")
    # while round 1 lasts
    wait_until_asked(deployment, "south", before=before)
    gate.unlink()
    records = deployment.wait_for_run("late", within_s=400)

    assert_joined(deployment, "late", records)
    said = (deployment.motet / "runs" / "late" / "server.log").read_text("utf-8")
    assert "south came on line: it takes part from round 2 on, 3 times" in said


def test_a_site_whose_agent_was_not_running_at_the_start_takes_part_once_it_runs(deployment: SmallDeployment) -> None:
    """Its node is connected, and answers in its place for a minute that nobody is there."""
    wait_for_state(deployment, "south", "online")
    deployment.sites["south"].end("agent")
    before = questions(deployment, "south")
    assert ids_with(deployment.sites["south"].mark, word=SUPERNODE)
    gate = deployment.arm("north", "during", 1)
    deployment.start_run("no-agent", private=False, rounds=ROUNDS, federation=FEDERATION)
    deployment.wait_for_gate(gate)
    deployment.start_agent("south")
    # a minute after the last answer, in the middle of round 1
    wait_until_asked(deployment, "south", before=before)
    gate.unlink()
    records = deployment.wait_for_run("no-agent", within_s=400)

    assert_joined(deployment, "no-agent", records)
    told = deployment.server.do(f"motet status {deployment.motet}")
    assert "not accepted" not in told
