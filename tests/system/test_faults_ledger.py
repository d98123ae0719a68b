"""A site's ledger is damaged, gone or unreadable: the site answers nothing, the server gets a code, the owner is told where."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from client.agent import ledger_at
from shared.messages import Refusal
from tests.client.asking import ask, site_file, used
from tests.tiny import tiny_config

RUN = tiny_config(
    private=True, training={"optimizer": "sgd", "learning_rate": 0.5, "sample_rate": 1.0, "local_steps": 2}
)


def overwritten(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[4200:12000] = b"\x17" * len(content[4200:12000])
    path.write_bytes(content)


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])


def no_ledger(path: Path) -> None:
    path.write_bytes(b"this is no ledger" * 1000)


@pytest.mark.parametrize("is_started_again", [True, False])
@pytest.mark.parametrize("damage", [overwritten, cut_off, no_ledger])
def test_a_site_whose_ledger_is_damaged_refuses_with_a_code_and_tells_its_owner_where(
    tmp_path: Path, damage: Callable[[Path], None], is_started_again: bool, caplog: pytest.LogCaptureFixture
) -> None:
    path, ledger = site_file(tmp_path), tmp_path / "ledger.sqlite"
    used(ask(path, RUN))
    damage(ledger)
    damaged = ledger.read_bytes()
    if is_started_again:
        ledger_at.cache_clear()
    with caplog.at_level(logging.ERROR, logger="motet.site"):
        assert ask(path, RUN, number=2) == Refusal("ledger-invalid")
    assert str(ledger) in caplog.text
    # what is left of it is the owner's to look into
    assert ledger.read_bytes() == damaged


def gone(path: Path) -> None:
    path.unlink()


def emptied(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [gone, emptied])
def test_a_ledger_that_vanishes_under_a_running_agent_is_not_begun_anew(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    path, ledger = site_file(tmp_path), tmp_path / "ledger.sqlite"
    used(ask(path, RUN))
    damage(ledger)
    assert ask(path, RUN, number=2) == Refusal("ledger-invalid")
    assert not ledger.exists() or not ledger.stat().st_size
