"""The wall clock jumps: budgets and orders in the ledger do not follow it, and no wait looks at it."""

import datetime
import socket
import sys
import time
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, RecordDict

from client.resident.carrier import carry
from client.resident.frames import receive_frame
from server.attendance import wait_for_enough
from shared.errors import BudgetError, PermissionRefused, RunError, WireError
from shared.privacy import ledger_transaction
from shared.privacy.accountant import MechanismUse, spent_epsilon
from shared.privacy.ledger import Ledger
from shared.supervise import Backoff, Program, Supervisor

USE = MechanismUse(noise_multiplier=2.0, sample_rate=1.0, steps=1)
DELTA = 1e-5
TWO = spent_epsilon([USE] * 2, delta=DELTA, accountant="rdp")
NOW = datetime.datetime(2026, 11, 22, 12, tzinfo=datetime.UTC)
JUMPS = {
    "back ten years": datetime.timedelta(days=-3650),
    "back an hour": datetime.timedelta(hours=-1),
    "on ten years": datetime.timedelta(days=3650),
}


class Clock(datetime.datetime):
    """A wall clock that stands where it was put."""

    at = NOW

    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:  # type: ignore[override]
        return cls.at.astimezone(tz)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> type[Clock]:
    monkeypatch.setattr(ledger_transaction, "datetime", Clock)
    monkeypatch.setattr(Clock, "at", NOW)
    return Clock


def reserve(ledger: Ledger, round_number: int, *, attempt: int = 0, most_a_day: int | None = None) -> None:
    ledger.reserve(
        data_set="photos", unit="record", use=USE, run_id="run", round_number=round_number, cap_epsilon=TWO,
        delta=DELTA, accountant="rdp", attempt=attempt, most_a_day=most_a_day,
    )  # fmt: skip


@pytest.mark.parametrize("jump", JUMPS)
def test_a_jump_of_the_clock_refills_no_budget(tmp_path: Path, clock: type[Clock], jump: str) -> None:
    path = tmp_path / "ledger.sqlite"
    reserve(Ledger(path), 1)
    clock.at = NOW + JUMPS[jump]
    reserve(Ledger(path), 2)
    ledger = Ledger(path)
    assert ledger.spent("photos", unit="record", delta=DELTA, accountant="rdp") == TWO
    assert [row.created_utc[:10] for row in ledger.rows("photos")] == ["2026-11-22", f"{clock.at:%Y-%m-%d}"]
    with pytest.raises(BudgetError):
        reserve(ledger, 3)
    # nor is a round that was paid for taken for a new one
    with pytest.raises(PermissionRefused, match="reserved before"):
        reserve(ledger, 1)


@pytest.mark.parametrize("jump", ["back ten years", "back an hour"])
def test_a_clock_that_goes_back_refills_no_limit_of_a_day(tmp_path: Path, clock: type[Clock], jump: str) -> None:
    """Rounds that then lie in the future still count."""
    path = tmp_path / "ledger.sqlite"
    reserve(Ledger(path), 1, most_a_day=1)
    clock.at = NOW + JUMPS[jump]
    with pytest.raises(PermissionRefused, match="rounds_a_day"):
        reserve(Ledger(path), 2, most_a_day=1)


@pytest.fixture
def _no_wall_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks what time it is gets another century each time."""
    told = iter(range(10**6))
    monkeypatch.setattr(time, "time", lambda: (-1) ** next(told) * 3e9)


class Nobody:
    """No site is ever there."""

    def online(self) -> frozenset[str]:
        return frozenset()


@pytest.mark.usefixtures("_no_wall_clock")
def test_a_pause_ends_by_the_monotonic_clock() -> None:
    with pytest.raises(RunError, match="after a pause"):
        wait_for_enough(Nobody(), sites=lambda: ("a",), needed=1, round_number=1, timeout_s=0.05, say=lambda _: None)


@pytest.mark.usefixtures("_no_wall_clock")
def test_waits_for_an_agent_and_for_a_frame_end_by_the_monotonic_clock(tmp_path: Path) -> None:
    asked = RecordDict({"request": ConfigRecord({"header": "{}"})})
    assert not carry("query", asked, agent=tmp_path / "nobody", again_for_s=0.05).array_records
    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.raises(WireError):
        receive_frame(ours, most_body_bytes=10, deadline=time.monotonic() + 0.05)


@pytest.mark.usefixtures("_no_wall_clock")
def test_a_program_is_started_again_by_the_monotonic_clock(tmp_path: Path) -> None:
    mark = tmp_path / "starts"
    program = Program(
        name="short",
        command=(sys.executable, "-c", f"open({str(mark)!r}, 'a').write('.')"),
        log=tmp_path / "log",
        folder=tmp_path,
        backoff=Backoff(first_s=0.05, most_s=0.1),
    )
    supervisor = Supervisor([program], state=tmp_path / "running", end_within_s=5.0)

    def stop_at_three() -> None:
        if mark.is_file() and len(mark.read_text()) >= 3:
            supervisor.stop()

    supervisor.run(now_and_then=stop_at_three)
    assert len(mark.read_text()) >= 3
