"""A delivered app that means harm, run as the SuperNode's user: nothing of it succeeds, and the agent lives on."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from client.resident.frames import MAGIC
from tests.client.asking import rows_of, site_file
from tests.client.resident.agents import agent_process, as_nobody, needs_other_users, open_folder
from tests.client.resident.hostile_app import ATTEMPTS

LIMITS = """
max_parameters = 2000
[agent]
allowed_users = ["nobody"]
[limits]
encoders = ["linear"]
fusions = ["concat"]
heads = ["linear"]
epsilon = 8.0
rounds = 3
local_steps = 50
run_ids = ["r"]
"""
pytestmark = needs_other_users


@pytest.fixture(scope="module")
def got() -> Iterator[dict[str, object]]:
    """What the app got, and what the owner's ledger says afterwards."""
    with open_folder() as folder:
        path = owners_site(folder)
        with agent_process(path) as process:
            said = as_nobody(
                "main()", str(folder), str(process.pid), before="from tests.client.resident.hostile_app import main"
            )
            assert process.is_alive()
            yield {**json.loads(said), "ledger": [(row.round_number, row.state) for row in rows_of(folder)]}


def owners_site(folder: Path) -> Path:
    """A site whose owner has closed everything but the way to the socket."""
    path = site_file(folder)
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("[privacy]", f"{LIMITS}[privacy]"), encoding="utf-8")
    for each in (folder / "data", folder / "dataset.toml", path):
        each.chmod(0o700 if each.is_dir() else 0o600)
    return path


@pytest.mark.parametrize("name", ATTEMPTS)
def test_a_hostile_app_gets_nothing(name: str, got: dict[str, object]) -> None:
    assert got[name] == ATTEMPTS[name][1]


def test_the_ledger_says_only_what_was_paid(got: dict[str, object]) -> None:
    """Two rounds as they should be, around all that was tried; the first of them asked three times."""
    assert got["a round as it should be"] == got["the same round again"] == got["the next round"] == "sent"
    assert got["a round that is over, in another order"] == "replayed"
    assert got["ledger"] == [(1, "released"), (2, "released")]


def test_the_attempts_reach_the_agent() -> None:
    """Their number is stated, so that none is lost unseen."""
    assert MAGIC[-1] == 1
    assert len(ATTEMPTS) == 51
