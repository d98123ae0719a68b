"""Real processes on a disk that is full: a small file system of the test's own, at a site or at the server, is filled.

What cannot be written does not happen: at a site no round is answered, at the server none is counted. With room again both
go on.
"""

import json
from collections.abc import Iterator

import pytest

from tests.no_space import fill, small_disk
from tests.system.small_deployment import SmallDeployment, small_deployment, used_sites, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
SITES = ("north", "south")
ALL = frozenset(SITES)


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallDeployment]:
    with small_deployment(tmp_path_factory.mktemp("d"), names=SITES) as made:
        yield made


def told(deployment: SmallDeployment, name: str) -> list[dict[str, object]]:
    """What a site's agent has said on its owner's screen, where that is no traceback."""
    lines = deployment.sites[name].log("agent").splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]


def test_a_site_whose_disk_is_full_refuses_and_takes_part_again_when_there_is_room(deployment: SmallDeployment) -> None:
    agent = deployment.site("north") / "agent"
    deployment.sites["north"].end("agent")
    with small_disk(agent):
        try:
            deployment.start_agent("north")
            training = deployment.arm("north", "before", 2)
            holding = deployment.arm("south", "after", 3)
            folder = deployment.start_run(
                "site", private=False, rounds=4, federation={"round_timeout_s": 90.0, "min_sites": 1}
            )
            deployment.wait_for_gate(training)
            # its round 2 is paid for, and the answer will not fit; in round 3 not even the ledger's row does
            fill(agent)
            training.unlink()
            deployment.wait_for_gate(holding)
            wait_until(
                lambda: sum(line.get("outcome") == "ledger-invalid" for line in told(deployment, "north")) == 2,
                within_s=60,
                else_say=deployment.everything_said,
            )
            (agent / "filler").unlink()
            holding.unlink()
            records = deployment.wait_for_run("site", within_s=400)

            assert used_sites(records) == [ALL, frozenset({"south"}), frozenset({"south"}), ALL]
            refused = [{site.site: site.code for site in record.sites}["north"] for record in records]
            assert refused == [None, "ledger-invalid", "ledger-invalid", None]
            said = [str(line.get("said")) for line in told(deployment, "north") if line.get("code") == "ledger-invalid"]
            assert f"{agent / 'answers'}: cannot be written: No space left on device" in said[0]
            assert f"{agent / 'ledger.sqlite'}: not usable as a ledger: database or disk is full" in said[1]
            states = [(row.round_number, row.state) for row in deployment.ledger_rows("north", folder)]
            assert states == [(1, "released"), (2, "reserved"), (4, "released")]
            deployment.assert_right("site", records=records, rounds=4)
            deployment.assert_paid("site", records=records)
        finally:
            deployment.sites["north"].end("agent")
    deployment.start_agent("north")


def test_a_run_whose_servers_disk_is_full_ends_with_one_error_and_is_resumed(deployment: SmallDeployment) -> None:
    runs = deployment.motet / "runs"
    runs.mkdir(exist_ok=True)
    with small_disk(runs):
        gate = deployment.arm("south", "during", 2)
        deployment.start_run("full", private=False, rounds=3)
        deployment.wait_for_gate(gate)
        fill(runs)
        gate.unlink()
        assert deployment.server.running["full"].wait(timeout=300) != 0, deployment.everything_said()
        said = deployment.everything_said()
        assert "No space left on device" in said
        assert "Make room, and start the run again" in deployment.server.log("full")
        (runs / "filler").unlink()
        deployment.resume("full")
        records = deployment.wait_for_run("full", within_s=400)

        assert used_sites(records) == [ALL] * 3
        deployment.assert_right("full", records=records, rounds=3)
        deployment.assert_paid("full", records=records)
