"""Tests of the ledger against processes of their own: killed at every statement, and racing for the last of a budget."""

import contextlib
import functools
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shared.errors import BudgetError, PermissionRefused
from shared.privacy.accountant import MechanismUse, spent_epsilon
from shared.privacy.ledger import Ledger, Pending, Reservation
from shared.privacy.ledger_transaction import OpenLedger

USE = MechanismUse(noise_multiplier=2.0, sample_rate=1.0, steps=1)
DELTA = 1e-5
ONE, TWO = (spent_epsilon([USE] * count, delta=DELTA, accountant="rdp") for count in (1, 2))
REPOSITORY = Path(__file__).parents[2]
FURTHEST = 100


def reserve(ledger: Ledger, *, attempt: int = 0, cap_epsilon: float = TWO, run_id: str = "run") -> Reservation:
    return ledger.reserve(
        data_set="photos", unit="record", use=USE, run_id=run_id, round_number=1, attempt=attempt,
        cap_epsilon=cap_epsilon, delta=DELTA, accountant="rdp",
    )  # fmt: skip


DATA_SETS = ("photos", "voices", "words")


def reserve_in(opened: OpenLedger, *, data_set: str) -> Pending:
    return opened.reserve(
        data_set=data_set, unit="record", use=USE, run_id="run", round_number=1, cap_epsilon=TWO, delta=DELTA,
        accountant="rdp",
    )  # fmt: skip


def spent(path: Path) -> float:
    return Ledger(path).spent("photos", unit="record", delta=DELTA, accountant="rdp")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


def told_before_its_death(what: Callable[[Ledger, Callable[[str], None]], None], path: Path, *, statement: int) -> str:
    """What a child process could say until SIGKILL came in place of its n-th SQL statement; "." last if none came."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException), os.fdopen(writing, "w") as pipe_to_parent:
            kill_at(statement)
            what(Ledger(path), lambda word: print(word, end=" ", file=pipe_to_parent, flush=True))
            pipe_to_parent.write(".")
        os._exit(1)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        told = pipe.read()
    _, status = os.waitpid(child, 0)
    assert (os.waitstatus_to_exitcode(status) == -signal.SIGKILL) == (not told.endswith("."))
    return told


def kill_at(number: int) -> None:
    """From now on this process does not get past so many SQL statements, on whatever connection."""

    def count() -> None:
        nonlocal number
        number -= 1
        if number < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    class Killing(sqlite3.Connection):
        def execute(self, said: str, *values: Any) -> sqlite3.Cursor:
            count()
            return super().execute(said, *values)

        def executemany(self, said: str, *values: Any) -> sqlite3.Cursor:
            count()
            return super().executemany(said, *values)

    sqlite3.connect = functools.partial(sqlite3.connect, factory=Killing)  # type: ignore[assignment]


@pytest.mark.parametrize("end", ["release", "void"])
def test_killed_at_any_statement_the_ledger_never_understates(tmp_path: Path, end: str) -> None:
    """Every point from the first look at an empty folder to the end: what the process may have used is spent.

    Before it was granted its round nothing was used. Once it was told that the round is void, nothing is.
    """

    def one_round(ledger: Ledger, tell: Callable[[str], None]) -> None:
        tell("opened")
        reservation = reserve(ledger)
        tell("granted")
        ledger.release(reservation) if end == "release" else ledger.void(reservation)
        tell("ended")

    seen = set()
    for statement in range(FURTHEST):
        path = tmp_path / f"{statement}.db"
        told = told_before_its_death(one_round, path, statement=statement)
        ledger = Ledger(path)
        cost = ledger.spent("photos", unit="record", delta=DELTA, accountant="rdp")
        rows = ledger.rows("photos")
        seen.add((told, cost))
        if told in {"", "opened "}:
            assert (cost, rows) == (0.0, ()) or (cost == ONE and rows[0].state == "reserved")
        elif told == "opened granted ":
            assert cost == ONE or (end == "void" and rows[0].state == "void")
        else:
            assert cost == (ONE if end == "release" else 0.0)
        # whoever comes next pays, and never for a round that was granted before
        if rows:
            with pytest.raises(PermissionRefused):
                reserve(ledger)
        assert reserve(ledger, attempt=1).epsilon_spent == (TWO if cost else ONE)
        if told.endswith("."):
            break

    assert {told for told, _ in seen} == {"", "opened ", "opened granted ", "opened granted ended ."}
    assert ("opened granted ", ONE) in seen


def test_killed_at_any_statement_of_many_all_or_none_are_reserved(tmp_path: Path) -> None:
    """Three data sets charged together: nobody is told that one is paid for while another may be lost."""

    def three(ledger: Ledger, tell: Callable[[str], None]) -> None:
        with ledger.together() as opened:
            pending = [reserve_in(opened, data_set=data_set) for data_set in DATA_SETS]
        tell(f"granted-{len([each.paid for each in pending])}")

    seen = set()
    for statement in range(FURTHEST):
        path = tmp_path / f"{statement}.db"
        told = told_before_its_death(three, path, statement=statement)
        ledger = Ledger(path)
        kept = [len(ledger.rows(data_set)) for data_set in DATA_SETS]
        seen.add((told, tuple(kept)))
        assert kept in ([0, 0, 0], [1, 1, 1])
        assert kept == [1, 1, 1] or not told
        if told.endswith("."):
            break

    assert seen == {("", (0, 0, 0)), ("granted-3 .", (1, 1, 1))}


def start(code: str, path: Path) -> subprocess.Popen[str]:
    """A program of its own in which `reserve(run_id)` charges a round to the ledger at `path`.

    Its accountant counts steps instead, so that torch is not loaded, and takes its time, so that transactions overlap
    where nothing keeps them apart.
    """
    prelude = f"""
        import sys, time
        from pathlib import Path
        import shared.privacy.ledger, shared.privacy.ledger_transaction
        from shared.privacy.ledger import Ledger
        from shared.errors import BudgetError
        from shared.privacy.accountant import MechanismUse
        def slow_count(uses, **_):
            time.sleep(0.3)
            return float(sum(use.steps for use in uses))
        shared.privacy.ledger.spent_epsilon = shared.privacy.ledger_transaction.spent_epsilon = slow_count
        ledger = Ledger(Path({str(path)!r}))
        def reserve(run_id, cap):
            return ledger.reserve(
                data_set="photos", unit="record", use=MechanismUse(2.0, 1.0, 1), run_id=run_id, round_number=1,
                cap_epsilon=cap, delta=1e-5, accountant="rdp")
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
    process = start('reserve("run", 1.0); print("reserved", flush=True); sys.stdin.read()', path)
    assert process.stdout is not None
    assert process.stdout.readline() == "reserved\n"
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()

    assert spent(path) == ONE
    with pytest.raises(PermissionRefused):
        reserve(Ledger(path))
    with pytest.raises(BudgetError):
        reserve(Ledger(path), attempt=1, cap_epsilon=ONE)
    assert reserve(Ledger(path), attempt=1).epsilon_spent == TWO


def test_killed_inside_the_transaction_nothing_was_granted_and_nothing_is_broken(path: Path) -> None:
    """SIGKILL after the row is inserted and before the commit: the caller never got its reservation."""
    Ledger(path)
    process = start(
        """
        import sqlite3
        real = sqlite3.connect
        class Stopped(sqlite3.Connection):
            def execute(self, statement, *more):
                if statement == "COMMIT" and self.total_changes:
                    print("inserted", flush=True)
                    sys.stdin.read()
                return super().execute(statement, *more)
        sqlite3.connect = lambda *a, **k: real(*a, factory=Stopped, **k)
        reserve("run", 1.0)
        """,
        path,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "inserted\n"
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()

    assert spent(path) == 0
    assert reserve(Ledger(path)).epsilon_spent == ONE


@pytest.mark.parametrize("fits", [1, 2])
def test_two_processes_cannot_both_take_the_last_of_a_budget(path: Path, fits: int) -> None:
    """Three processes, let go together, race for the rounds that are left: exactly so many get one."""
    code = """
        print("ready", flush=True)
        sys.stdin.readline()
        try:
            reserve({run_id!r}, {cap})
            print("granted", flush=True)
        except BudgetError:
            print("refused", flush=True)
    """
    processes = [start(code.format(run_id=f"run {number}", cap=float(fits)), path) for number in range(3)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    answers = sorted(process.communicate()[0].strip() for process in processes)

    assert answers == ["granted"] * fits + ["refused"] * (3 - fits)
    assert spent(path) == (ONE if fits == 1 else TWO)
