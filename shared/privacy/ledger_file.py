"""Ledger file: one SQLite file that only grows; opened, begun, brought up to date, or refused and left alone.

in        the path of a ledger, of any version so far
out       transactions on a file of the newest version, each on the disk when it ends, or undone
relies on SQLite's rollback journal and a disk that keeps what it has synced
"""

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from shared.errors import LedgerError

APPLICATION_ID = 0x4D4F5445  # "MOTE"
VERSION = 2
WAIT_S = 30.0
CACHE_KIB = 128 * 1024
Standing = Literal["empty", "older", "current"]

SCHEMA = """
CREATE TABLE reservations (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    data_set TEXT NOT NULL,
    unit TEXT NOT NULL CHECK (unit IN ('record', 'subject', 'site')),
    mechanism TEXT NOT NULL CHECK (mechanism IN ('gaussian', 'adaptive-gaussian', 'counts', 'none')),
    noise_multiplier REAL NOT NULL CHECK (noise_multiplier >= 0),
    sample_rate REAL NOT NULL CHECK (sample_rate > 0 AND sample_rate <= 1),
    steps INTEGER NOT NULL CHECK (steps > 0),
    run_id TEXT NOT NULL,
    round INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    created_utc TEXT NOT NULL,
    UNIQUE (data_set, run_id, round, attempt)
) STRICT;
CREATE INDEX equal_mechanisms ON reservations (data_set, unit, noise_multiplier, sample_rate, steps, run_id);
CREATE TABLE endings (
    reservation INTEGER PRIMARY KEY REFERENCES reservations (id),
    state TEXT NOT NULL CHECK (state IN ('released', 'void')),
    created_utc TEXT NOT NULL
) STRICT;
CREATE INDEX voids ON endings (reservation) WHERE state = 'void';
CREATE TRIGGER reservations_stay BEFORE UPDATE ON reservations BEGIN SELECT RAISE(ABORT, 'the ledger only grows'); END;
CREATE TRIGGER reservations_keep BEFORE DELETE ON reservations BEGIN SELECT RAISE(ABORT, 'the ledger only grows'); END;
CREATE TRIGGER endings_stay BEFORE UPDATE ON endings BEGIN SELECT RAISE(ABORT, 'the ledger only grows'); END;
CREATE TRIGGER endings_keep BEFORE DELETE ON endings BEGIN SELECT RAISE(ABORT, 'the ledger only grows'); END;
"""
# A CHECK cannot be changed, so the old tables step aside, the new ones take their rows, and the old ones go: children
# before parents, as foreign keys want it. Names and types of the columns are those of version 1.
FROM_VERSION_1 = (
    *(f"DROP TRIGGER {name}" for name in ("reservations_stay", "reservations_keep", "endings_stay", "endings_keep")),
    "ALTER TABLE endings RENAME TO endings_1",
    "ALTER TABLE reservations RENAME TO reservations_1",
    *(statement for statement in SCHEMA.split(";\n") if statement.strip()),
    "INSERT INTO reservations SELECT * FROM reservations_1 ORDER BY id",
    "INSERT INTO endings SELECT * FROM endings_1 ORDER BY reservation",
    "DROP TABLE endings_1",
    "DROP TABLE reservations_1",
)


class LedgerFile:
    """A ledger of this program's version on the disk, found sound when it was opened."""

    def __init__(self, path: Path, *, create: bool) -> None:
        """Opens the file; brings an older one up to date; starts one where none is, if that is wanted.

        Raises:
            LedgerError: the file is missing, no ledger, damaged, newer than this program, or cannot be written;
                whatever it held, it holds still.
        """
        self.path = path
        if create:
            self._make_room()
        elif not path.is_file():
            raise LedgerError(
                f"{path}: no such file; allowed: the ledger that an owner's site.toml names, field ledger"
            )
        with self.transaction(write=False) as connection:
            standing = self._standing(connection, create=create)
        if standing != "current":
            # PRIVACY: begun or brought up to date wholly or not at all, by one process at a time.
            # test_a_migration_killed_half_way_leaves_the_old_ledger_whole
            with self.transaction() as connection:
                self._bring_up_to_date(connection, standing=self._standing(connection, create=create))

    @contextlib.contextmanager
    def transaction(self, *, write: bool = True) -> Iterator[sqlite3.Connection]:
        """A transaction on a connection of its own, committed and synced at the end or not at all.

        A connection must not be carried into a forked process, and opening one costs less than a sync.

        Args:
            write: nobody else writes until it ends; without, it reads one state of the file throughout.
        """
        try:
            # mode=rw: a ledger that was deleted since is an error and not an empty one.
            address = f"{self.path.absolute().as_uri()}?mode=rw"
            connection = sqlite3.connect(address, uri=True, timeout=WAIT_S, isolation_level=None)
            try:
                # The rollback journal, SQLite's default, keeps one file at rest: a copy of a WAL ledger without its
                # -wal file would lack the newest rows. EXTRA also syncs the folder once the journal is gone; with
                # FULL a power cut could bring the journal back, and with it the state before the row.
                # PRIVACY: on the disk before anything is released. test_the_ledger_syncs_every_commit
                connection.execute("PRAGMA synchronous = EXTRA")
                connection.execute("PRAGMA foreign_keys = ON")
                # A round of ten thousand data sets touches as many pages of each index: SQLite's own 2 MB would have
                # them written, and synced, several times over before the commit. Taken only as it is needed.
                connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
                connection.execute("BEGIN IMMEDIATE" if write else "BEGIN")
                try:
                    yield connection
                except BaseException:
                    # on a full disk SQLite has done so itself, and a second time would hide the reason
                    if connection.in_transaction:
                        connection.execute("ROLLBACK")
                    raise
                connection.execute("COMMIT")
            finally:
                connection.close()
        except sqlite3.Error as error:
            raise LedgerError(
                f"{self.path}: not usable as a ledger: {error}. Nothing was released. If another process holds it, "
                "wait; if it is damaged, restore the newest copy and add by hand what was spent since"
            ) from None

    def _make_room(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if not self.path.exists():
                self.path.touch(mode=0o600)
        except OSError as error:
            raise LedgerError(f"{self.path}: cannot be made: {error}; give another path in site.toml") from None

    def _standing(self, connection: sqlite3.Connection, *, create: bool) -> Standing:
        """What is to be done with the file; turns away one that is not ours, newer or damaged."""
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if not tables and not application and create:
            return "empty"
        if application != APPLICATION_ID:
            kind = "a database, but no ledger" if tables else "an empty file, no ledger"
            raise LedgerError(f"{self.path}: {kind}; give another path in site.toml, field ledger")
        if not 1 <= version <= VERSION:
            raise LedgerError(
                f"{self.path}: a ledger of version {version}; this program reads versions 1 to {VERSION}. "
                "Update the program; a new file in its place would forget what was spent"
            )
        # integrity_check, unlike the quick one, compares every index with its table; the totals are read from one.
        (check,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
        if check != "ok":
            raise LedgerError(f"{self.path}: damaged ({check}); restore the newest copy and add what was spent since")
        return "current" if version == VERSION else "older"

    def _bring_up_to_date(self, connection: sqlite3.Connection, *, standing: Standing) -> None:
        if standing == "current":  # another process was quicker
            return
        statements = SCHEMA.split(";\n") if standing == "empty" else FROM_VERSION_1
        for statement in statements:
            if statement.strip():
                connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {VERSION}")
        self.path.chmod(0o600)
