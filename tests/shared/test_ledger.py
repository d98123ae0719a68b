"""Tests of client/ledger.py: spent before used, never forgotten, never taken twice; with processes that are killed."""

import math
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from shared.privacy.ledger import Ledger, Reservation
from shared.privacy.ledger_file import VERSION
from shared.errors import BudgetError, LedgerError, PermissionRefused
from shared.privacy.accountant import MechanismUse, spent_epsilon

USE = MechanismUse(noise_multiplier=2.0, sample_rate=1.0, steps=1)
DELTA = 1e-5
ONE, TWO = (spent_epsilon([USE] * count, delta=DELTA, accountant="rdp") for count in (1, 2))
REPOSITORY = Path(__file__).parents[2]


def reserve(
    ledger: Ledger,
    *,
    use: MechanismUse | None = USE,
    run_id: str = "run",
    round_number: int = 1,
    data_set: str = "photos",
    cap_epsilon: float = 100.0,
    attempt: int = 0,
) -> Reservation:
    return ledger.reserve(
        data_set=data_set,
        unit="record",
        use=use,
        run_id=run_id,
        round_number=round_number,
        cap_epsilon=cap_epsilon,
        delta=DELTA,
        accountant="rdp",
        attempt=attempt,
    )


def spent(path: Path, data_set: str = "photos") -> float:
    return Ledger(path).spent(data_set, unit="record", delta=DELTA, accountant="rdp")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "new folder" / "ledger.db"


def test_a_new_ledger_has_spent_nothing(path: Path) -> None:
    ledger = Ledger(path)

    assert ledger.spent("photos", unit="record", delta=DELTA, accountant="rdp") == 0
    assert ledger.uses("photos", unit="record") == ()
    assert path.stat().st_mode & 0o077 == 0


def test_a_reservation_counts_before_and_after_its_release(path: Path) -> None:
    ledger = Ledger(path)
    reservation = reserve(ledger)

    assert reservation.epsilon_spent == ONE
    assert spent(path) == ONE
    ledger.release(reservation)
    assert spent(path) == ONE
    assert Ledger(path).uses("photos", unit="record") == (USE,)


def test_every_run_on_a_data_set_counts(path: Path) -> None:
    ledger = Ledger(path)
    reserve(ledger, run_id="tuning")
    final = reserve(ledger, run_id="final")
    reserve(ledger, data_set="voices")

    assert final.epsilon_spent == TWO
    assert spent(path) == TWO
    assert spent(path, "voices") == ONE
    assert ledger.uses_of_run("photos", "final", unit="record") == (USE,)
    assert ledger.uses_of_run("photos", "never", unit="record") == ()


def test_a_request_past_the_cap_is_refused_and_writes_nothing(path: Path) -> None:
    ledger = Ledger(path)
    reserve(ledger, cap_epsilon=ONE)
    before = path.read_bytes()

    with pytest.raises(BudgetError, match="allows"):
        reserve(ledger, round_number=2, cap_epsilon=TWO * 0.999)
    assert path.read_bytes() == before
    assert reserve(ledger, round_number=2, cap_epsilon=TWO).epsilon_spent == TWO


def test_a_round_is_reserved_once(path: Path) -> None:
    ledger = Ledger(path)
    reservation = reserve(ledger)
    with pytest.raises(PermissionRefused, match="reserved before"):
        reserve(ledger)
    ledger.release(reservation)
    with pytest.raises(PermissionRefused, match="reserved before"):
        reserve(ledger)

    assert reserve(ledger, attempt=1).epsilon_spent == TWO


def test_a_reservation_is_released_once(path: Path) -> None:
    ledger = Ledger(path)
    reservation = reserve(ledger)
    ledger.release(reservation)

    with pytest.raises(PermissionRefused, match="already"):
        ledger.release(reservation)


def test_a_reservation_of_another_ledger_is_not_released(path: Path, tmp_path: Path) -> None:
    reservation = reserve(Ledger(path))

    with pytest.raises(LedgerError, match="no reservation"):
        Ledger(tmp_path / "other.db").release(reservation)


def test_a_round_without_privacy_costs_infinity_for_ever(path: Path) -> None:
    ledger = Ledger(path)
    assert reserve(ledger, use=None, cap_epsilon=1.0).epsilon_spent == math.inf

    assert spent(path) == math.inf
    assert ledger.uses("photos", unit="record")[0].noise_multiplier == 0
    with pytest.raises(BudgetError):
        reserve(ledger, round_number=2, cap_epsilon=1e9)
    assert reserve(ledger, data_set="voices").epsilon_spent == ONE


def test_rows_can_be_neither_changed_nor_deleted(path: Path) -> None:
    ledger = Ledger(path)
    ledger.release(reserve(ledger))
    with sqlite3.connect(path) as connection:
        for statement in (
            "UPDATE reservations SET noise_multiplier = 1000",
            "DELETE FROM reservations",
            "UPDATE endings SET state = 'void'",
            "DELETE FROM endings",
        ):
            with pytest.raises(sqlite3.IntegrityError, match="only grows"):
                connection.execute(statement)
    connection.close()

    assert spent(path) == ONE


def test_the_ledger_syncs_every_commit(path: Path) -> None:
    """EXTRA (3) with a rollback journal: file, journal and folder are synced before reserve returns."""
    with Ledger(path)._file.transaction() as connection:
        assert connection.execute("PRAGMA synchronous").fetchone() == (3,)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)


def test_a_file_that_is_no_ledger_is_refused_and_left_alone(tmp_path: Path) -> None:
    text, other = tmp_path / "notes.txt", tmp_path / "other.db"
    text.write_text("my notes, which are long enough to be taken for a page of a database" * 20)
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE mine (a)")
    connection.close()
    before = [file.read_bytes() for file in (text, other)]

    with pytest.raises(LedgerError, match="not usable"):
        Ledger(text)
    with pytest.raises(LedgerError, match="no ledger"):
        Ledger(other)
    assert [file.read_bytes() for file in (text, other)] == before


def test_a_newer_ledger_is_refused_with_the_way_out(path: Path) -> None:
    Ledger(path)
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version = {VERSION + 1}")
    connection.close()

    with pytest.raises(LedgerError, match="Update the program"):
        Ledger(path)


def test_a_damaged_ledger_is_refused(path: Path) -> None:
    ledger = Ledger(path)
    for number in range(60):
        reserve(ledger, round_number=number, cap_epsilon=math.inf)
    content = bytearray(path.read_bytes())
    content[3000:9000] = os.urandom(6000)
    path.write_bytes(content)

    with pytest.raises(LedgerError, match=r"damaged|not usable"):
        Ledger(path)


def test_a_folder_that_cannot_be_made_is_an_error_with_a_way_out(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(LedgerError):
        Ledger(tmp_path / "file" / "ledger.db")


def test_many_rounds_compose_as_one_mechanism(path: Path) -> None:
    ledger = Ledger(path)
    for number in range(25):
        last = reserve(ledger, round_number=number)
    together = MechanismUse(USE.noise_multiplier, USE.sample_rate, 25)

    assert last.epsilon_spent == spent_epsilon([together], delta=DELTA, accountant="rdp")


def start(code: str, path: Path) -> subprocess.Popen[str]:
    """A process of its own in which `reserve(run_id, number)` charges a round to the ledger at `path`.

    Its accountant counts rows instead, so that torch is not loaded, and takes its time, so that transactions overlap
    where nothing keeps them apart.
    """
    prelude = f"""
        import sys, time
        from pathlib import Path
        import shared.privacy.ledger
        from shared.privacy.ledger import Ledger
        from shared.errors import BudgetError
        from shared.privacy.accountant import MechanismUse
        def slow_count(uses, **_):
            time.sleep(0.3)
            return float(len(uses))
        shared.privacy.ledger.spent_epsilon = slow_count
        ledger = Ledger(Path({str(path)!r}))
        def reserve(run_id, number):
            return ledger.reserve(
                data_set="photos", unit="record", use=MechanismUse(2.0, 1.0, 1), run_id=run_id, round_number=number,
                cap_epsilon=1.0, delta=1e-5, accountant="rdp")
    """
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(prelude) + textwrap.dedent(code)],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_a_killed_round_stays_spent(path: Path) -> None:
    """SIGKILL after reserve has returned and before release: the row is there, and the round is not granted again."""
    process = start('reserve("run", 1); print("reserved", flush=True); sys.stdin.read()', path)
    assert process.stdout is not None
    assert process.stdout.readline() == "reserved\n"
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()

    assert spent(path) == ONE
    with pytest.raises(PermissionRefused):
        reserve(Ledger(path))
    assert reserve(Ledger(path), attempt=1).epsilon_spent == TWO


def test_killed_inside_the_transaction_nothing_was_granted_and_nothing_is_broken(path: Path) -> None:
    """SIGKILL after the row is inserted and before the commit: the caller never got its reservation."""
    process = start(
        """
        real = shared.privacy.ledger.sqlite3.connect
        class Stopped:
            def __init__(self, connection): self.connection = connection
            def __getattr__(self, name): return getattr(self.connection, name)
            def execute(self, statement, *more):
                if statement == "COMMIT":
                    print("inserted", flush=True)
                    sys.stdin.read()
                return self.connection.execute(statement, *more)
        shared.privacy.ledger.sqlite3.connect = lambda *a, **k: Stopped(real(*a, **k))
        reserve("run", 1)
        """,
        path,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "inserted\n"
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()

    assert spent(path) == 0
    assert reserve(Ledger(path)).epsilon_spent == ONE


def test_two_processes_cannot_both_take_the_last_of_a_budget(path: Path) -> None:
    """Three processes, let go together, race for the one round that is left: exactly one gets it."""
    code = """
        print("ready", flush=True)
        sys.stdin.readline()
        try:
            reserve({run_id!r}, 1)
            print("granted", flush=True)
        except BudgetError:
            print("refused", flush=True)
    """
    processes = [start(code.format(run_id=f"run {number}"), path) for number in range(3)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    answers = sorted(process.communicate()[0].strip() for process in processes)

    assert answers == ["granted", "refused", "refused"]
    assert spent(path) == ONE
