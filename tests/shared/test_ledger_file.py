"""Tests of shared/privacy/ledger_file.py: old files come forward whole or not at all, other files are left alone."""

import contextlib
import functools
import math
import os
import signal
import sqlite3
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shared.errors import LedgerError
from shared.privacy.accountant import MechanismUse
from shared.privacy.ledger import Ledger
from shared.privacy.ledger_file import FROM_VERSION_1, VERSION, LedgerFile

VERSION_1 = Path(__file__).parents[1] / "client" / "ledger-version-1.sqlite"
USE = MechanismUse(noise_multiplier=2.0, sample_rate=1.0, steps=1)
open_and_create: Callable[[Path], Ledger] = Ledger
OPENERS = pytest.mark.parametrize("opened", [open_and_create, Ledger.existing], ids=["open", "look into"])


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A ledger as version 1 wrote it: three rounds of one run, two of them released, one of another, one not private."""
    path = tmp_path / "old.sqlite"
    path.write_bytes(VERSION_1.read_bytes())
    return path


@contextlib.contextmanager
def raw(path: Path) -> Iterator[sqlite3.Connection]:
    """The file by SQLite itself, past every guard of ours."""
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        yield connection
    finally:
        connection.close()


def reserve(ledger: Ledger, number: int, *, run_id: str = "run", attempt: int = 0) -> None:
    ledger.reserve(
        data_set="north-2026", unit="record", use=USE, run_id=run_id, round_number=number, attempt=attempt,
        cap_epsilon=math.inf, delta=1e-5, accountant="rdp",
    )  # fmt: skip


@OPENERS
def test_version_1_comes_forward_with_all_that_was_spent(old: Path, opened: Callable[[Path], Ledger]) -> None:
    with raw(old) as connection:
        reservations = connection.execute("SELECT * FROM reservations").fetchall()
        endings = connection.execute("SELECT * FROM endings").fetchall()
        assert connection.execute("PRAGMA user_version").fetchone() == (1,)
    ledger = opened(old)

    first, second = MechanismUse(1.3, 0.25, 12), MechanismUse(2.0, 0.5, 2)
    assert ledger.uses("north-2026", unit="record") == (first, second)
    assert ledger.uses_of_run("north-2026", "second", unit="record") == (second,)
    assert ledger.uses("south", unit="record") == (MechanismUse(0.0, 1.0, 1),)
    assert [row.state for row in ledger.rows("north-2026")] == ["released", "released", "reserved", "reserved"]
    with raw(old) as connection:
        assert connection.execute("SELECT * FROM reservations").fetchall() == reservations
        assert connection.execute("SELECT * FROM endings").fetchall() == endings


def test_a_file_that_came_forward_is_like_one_begun_today(old: Path, tmp_path: Path) -> None:
    """Same tables, indices and triggers, and nothing left over; numbers go on after the last."""
    reserve(Ledger(old), 1)
    Ledger(tmp_path / "new.sqlite")
    schemas = []
    for path in (old, tmp_path / "new.sqlite"):
        with raw(path) as connection:
            schemas.append(connection.execute("SELECT type, name, sql FROM sqlite_master ORDER BY name").fetchall())
            assert connection.execute("PRAGMA user_version").fetchone() == (VERSION,)
            assert connection.execute("PRAGMA foreign_key_check").fetchall() == []

    assert schemas[0] == schemas[1]
    assert [row.id for row in Ledger(old).rows("north-2026")] == [1, 2, 3, 4, 6]
    assert stat.S_IMODE(old.stat().st_mode) == 0o600
    with raw(old) as connection, pytest.raises(sqlite3.IntegrityError, match="only grows"):
        connection.execute("DELETE FROM endings")


@pytest.mark.parametrize("last", [*range(0, len(FROM_VERSION_1), 4), len(FROM_VERSION_1)])
def test_a_migration_killed_half_way_leaves_the_old_ledger_whole(old: Path, last: int) -> None:
    """SIGKILL after so many statements, in a process that keeps one page in memory, so that it has written to the file."""
    with raw(old) as connection:
        before = list(connection.iterdump())
    statements = (*FROM_VERSION_1, "COMMIT")

    def killed() -> None:
        kill_at(statements[last])
        Ledger(old)

    assert run_in_a_child(killed) == -signal.SIGKILL
    with raw(old) as connection:
        assert list(connection.iterdump()) == before
        assert connection.execute("PRAGMA user_version").fetchone() == (1,)
    assert Ledger(old).uses("north-2026", unit="record")[0] == MechanismUse(1.3, 0.25, 12)


def test_the_kill_above_comes_after_pages_were_written(old: Path) -> None:
    """Else it would show nothing: a transaction held in memory leaves no trace."""

    def killed() -> None:
        kill_at("COMMIT")
        Ledger(old)

    run_in_a_child(killed)
    assert old.read_bytes() != VERSION_1.read_bytes()
    assert old.with_name(old.name + "-journal").stat().st_size > 0


def kill_at(statement: str) -> None:
    """From now on a transaction of this process that writes does not get past one statement."""

    class Killing(sqlite3.Connection):
        writes = False

        def execute(self, said: str, *values: Any) -> sqlite3.Cursor:
            if said.startswith("BEGIN"):
                super().execute("PRAGMA cache_size = 1")
                self.writes = said == "BEGIN IMMEDIATE"
            if self.writes and said == statement:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().execute(said, *values)

    sqlite3.connect = functools.partial(sqlite3.connect, factory=Killing)  # type: ignore[assignment]


def run_in_a_child(what: Callable[[], None]) -> int:
    """A process of its own; its exit code, or minus the signal that ended it."""
    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException):
            what()
            os._exit(0)
        os._exit(1)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def test_one_that_is_begun_killed_half_way_is_begun_again(tmp_path: Path) -> None:
    path = tmp_path / "new.sqlite"

    def killed() -> None:
        kill_at("COMMIT")
        Ledger(path)

    assert run_in_a_child(killed) == -signal.SIGKILL
    assert Ledger(path).data_sets() == ()


def test_two_processes_that_open_an_old_ledger_at_once_both_have_it(old: Path) -> None:
    children = []
    for number in (1, 2):
        child = os.fork()
        if not child:
            with contextlib.suppress(BaseException):
                reserve(Ledger(old), number)
                os._exit(0)
            os._exit(1)
        children.append(child)

    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    assert len(Ledger(old).rows("north-2026", run_id="run")) == 2


@OPENERS
def test_a_file_that_is_no_ledger_is_refused_and_left_alone(tmp_path: Path, opened: Callable[[Path], Ledger]) -> None:
    text, other = tmp_path / "notes.txt", tmp_path / "other.db"
    text.write_text("my notes, which are long enough to be taken for a page of a database" * 20)
    with raw(other) as connection:
        connection.execute("CREATE TABLE mine (a)")
    before = [file.read_bytes() for file in (text, other)]

    with pytest.raises(LedgerError, match="not usable"):
        opened(text)
    with pytest.raises(LedgerError, match="no ledger; give another path"):
        opened(other)
    assert [file.read_bytes() for file in (text, other)] == before


@OPENERS
@pytest.mark.parametrize("version", [VERSION + 1, 0])
def test_a_newer_ledger_is_refused_with_the_way_out(old: Path, opened: Callable[[Path], Ledger], version: int) -> None:
    with raw(old) as connection:
        connection.execute(f"PRAGMA user_version = {version}")
    before = old.read_bytes()

    with pytest.raises(LedgerError, match="Update the program"):
        opened(old)
    assert old.read_bytes() == before


@OPENERS
@pytest.mark.parametrize("is_old", [True, False])
def test_a_damaged_ledger_is_refused_and_left_alone(old: Path, opened: Callable[[Path], Ledger], is_old: bool) -> None:
    if not is_old:
        old.unlink()
        ledger = Ledger(old)
        for number in range(20):
            reserve(ledger, number)
    content = bytearray(old.read_bytes())
    content[4200:12000] = b"\x17" * 7800
    old.write_bytes(content)

    with pytest.raises(LedgerError, match=r"damaged|not usable"):
        opened(old)
    assert old.read_bytes() == content


def test_a_cut_off_ledger_is_refused(old: Path) -> None:
    content = old.read_bytes()[:-5000]
    old.write_bytes(content)

    with pytest.raises(LedgerError, match=r"damaged|not usable"):
        Ledger(old)
    assert old.read_bytes() == content


def test_an_index_that_lacks_a_row_is_damage(old: Path) -> None:
    """Totals are read from the index: were the two not compared, the row would be forgotten."""
    Ledger(old)
    with raw(old) as connection:
        connection.execute("PRAGMA writable_schema = ON")
        entry = connection.execute("SELECT * FROM sqlite_master WHERE name = 'equal_mechanisms'").fetchone()
        connection.execute("DELETE FROM sqlite_master WHERE name = 'equal_mechanisms'")
    with raw(old) as connection:
        connection.execute(
            "INSERT INTO reservations SELECT NULL, data_set, unit, mechanism, noise_multiplier, sample_rate, steps, "
            "'unseen', round, attempt, created_utc FROM reservations WHERE id = 4"
        )
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute("INSERT INTO sqlite_master VALUES (?, ?, ?, ?, ?)", entry)

    with raw(old) as connection:
        assert connection.execute("PRAGMA quick_check").fetchone() == ("ok",)
    with pytest.raises(LedgerError, match="damaged"):
        Ledger(old)


def test_a_ledger_that_may_only_be_read_can_be_looked_into(old: Path) -> None:
    Ledger(old)
    old.chmod(0o400)

    assert len(Ledger.existing(old).rows("north-2026")) == 4


def test_an_empty_file_is_begun_but_is_nothing_to_look_into(tmp_path: Path) -> None:
    path = tmp_path / "ledger ?#%.sqlite"
    path.touch()
    with pytest.raises(LedgerError, match="an empty file"):
        Ledger.existing(path)
    assert path.read_bytes() == b""

    assert Ledger(path).data_sets() == ()
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_folder_that_cannot_be_made_is_an_error_with_a_way_out(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    for path in (tmp_path / "file" / "ledger.db", tmp_path):
        with pytest.raises(LedgerError):
            Ledger(path)


def test_the_ledger_syncs_every_commit(tmp_path: Path) -> None:
    """EXTRA (3) with a rollback journal: file, journal and folder are synced before a transaction returns."""
    with LedgerFile(tmp_path / "new.sqlite", create=True).transaction() as connection:
        assert connection.execute("PRAGMA synchronous").fetchone() == (3,)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)
