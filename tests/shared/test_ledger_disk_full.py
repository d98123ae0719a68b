"""A full disk at a site: nothing is granted that is not written, and the ledger is whole afterwards."""

import contextlib
from pathlib import Path

import pytest

from shared.errors import LedgerError
from shared.privacy.accountant import MechanismUse
from shared.privacy.ledger import Ledger, Reservation
from tests.no_space import fill, no_space_beyond, small_disk

USE = MechanismUse(noise_multiplier=1.0, sample_rate=0.1, steps=5)


def reserve(ledger: Ledger, *, number: int) -> Reservation:
    return ledger.reserve(
        data_set="north", unit="record", use=USE, run_id="r" * 100, round_number=number, attempt=0, cap_epsilon=1e6,
        delta=1e-5, accountant="rdp", mechanism="gaussian",
    )  # fmt: skip


def reserved_until_full(ledger: Ledger) -> int:
    granted = 0
    with contextlib.suppress(LedgerError):
        while granted < 1000:
            reserve(ledger, number=granted + 1)
            granted += 1
    return granted


def test_on_a_full_disk_nothing_is_granted_and_what_was_granted_stays(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    with no_space_beyond(ledger.path.stat().st_size + 2 * 4096):
        granted = reserved_until_full(ledger)
        with pytest.raises(LedgerError, match="Nothing was released"):
            reserve(ledger, number=granted + 1)
    assert 0 < granted < 1000
    fresh = Ledger(ledger.path)
    assert [row.round_number for row in fresh.rows("north")] == list(range(1, granted + 1))
    # and once there is room again it goes on where it was
    reserve(fresh, number=granted + 1)
    assert len(list(fresh.rows("north"))) == granted + 1


def test_who_has_no_room_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    with small_disk(tmp_path / "disk"):
        ledger = Ledger(tmp_path / "disk" / "ledger.sqlite")
        fill(tmp_path / "disk")
        reserved_until_full(ledger)
        with pytest.raises(LedgerError, match="database or disk is full"):
            reserve(ledger, number=1000)


def test_a_ledger_that_cannot_be_begun_is_no_ledger_and_grants_nothing(tmp_path: Path) -> None:
    with no_space_beyond(0), pytest.raises(LedgerError):
        reserve(Ledger(tmp_path / "ledger.sqlite"), number=1)
    # what is left of it, if anything, is begun anew
    reserve(Ledger(tmp_path / "ledger.sqlite"), number=1)
