"""Ledger: what was ever spent on each of the owner's data sets, on disk before the data is opened.

in        reservations, one for each round of each run that wants a data set
out       permission to touch the data, or a refusal; all uses so far, for the accountant
relies on SQLite's transactions and a disk that keeps what it has synced; accountant.py for the sums

A ledger restored from an old backup, or deleted, has forgotten what came after: the one thing it cannot notice.
"""

import contextlib
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from shared.config import Unit
from shared.errors import BudgetError, LedgerError, PermissionRefused
from shared.privacy.accountant import Accountant, MechanismUse, spent_epsilon

APPLICATION_ID = 0x4D4F5445  # "MOTE"
VERSION = 1
WAIT_S = 30.0
NO_PROTECTION = MechanismUse(noise_multiplier=0.0, sample_rate=1.0, steps=1)
"""how a round without privacy is written down: no noise, which costs infinity"""

SCHEMA = """
CREATE TABLE reservations (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    data_set TEXT NOT NULL,
    unit TEXT NOT NULL CHECK (unit IN ('record', 'subject', 'site')),
    mechanism TEXT NOT NULL CHECK (mechanism IN ('gaussian', 'none')),
    noise_multiplier REAL NOT NULL CHECK (noise_multiplier >= 0),
    sample_rate REAL NOT NULL CHECK (sample_rate > 0 AND sample_rate <= 1),
    steps INTEGER NOT NULL CHECK (steps > 0),
    run_id TEXT NOT NULL,
    round INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    created_utc TEXT NOT NULL,
    UNIQUE (data_set, run_id, round, attempt)
) STRICT;
CREATE TABLE endings (
    reservation INTEGER PRIMARY KEY REFERENCES reservations (id),
    state TEXT NOT NULL CHECK (state IN ('released', 'void')),
    created_utc TEXT NOT NULL
) STRICT;
CREATE TRIGGER reservations_stay BEFORE UPDATE ON reservations BEGIN SELECT RAISE(ABORT, 'the ledger only grows'); END;
CREATE TRIGGER reservations_keep BEFORE DELETE ON reservations BEGIN SELECT RAISE(ABORT, 'the ledger only grows'); END;
CREATE TRIGGER endings_stay BEFORE UPDATE ON endings BEGIN SELECT RAISE(ABORT, 'the ledger only grows'); END;
CREATE TRIGGER endings_keep BEFORE DELETE ON endings BEGIN SELECT RAISE(ABORT, 'the ledger only grows'); END;
"""


@dataclass(frozen=True)
class Reservation:
    """A round that is paid for: its data may be touched, once."""

    id: int
    data_set: str
    run_id: str
    round_number: int
    attempt: int
    use: MechanismUse
    epsilon_spent: float
    """bound on everything ever released about the data set, this round included"""


class Ledger:
    """One file, append-only, for any number of data sets; every row is on the disk before its method returns."""

    def __init__(self, path: Path) -> None:
        """Opens the ledger, or starts one where no file is.

        Raises:
            LedgerError: the file is no ledger, is damaged, is newer than this program, or cannot be written.
        """
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LedgerError(f"{path}: its folder cannot be made: {error}; give another path in site.toml") from None
        with self._transaction() as connection:
            self._prepare(connection)

    def reserve(
        self,
        *,
        data_set: str,
        unit: Unit,
        use: MechanismUse | None,
        run_id: str,
        round_number: int,
        cap_epsilon: float,
        delta: float,
        accountant: Accountant,
        attempt: int = 0,
    ) -> Reservation:
        """Charges one round to a data set; from here on it counts as spent, whatever becomes of the round.

        Promise: when this returns the row is on the disk, and all rows of the data set together are within the cap.

        Args:
            use: what the round will do; None for a round without privacy, which the owner has permitted apart
                (SiteConfig): it costs infinity, so no cap is asked, and no round with a cap is granted after it.
            cap_epsilon: the owner's.
            attempt: a higher one says that a round reserved before is knowingly run, and paid for, again.

        Raises:
            BudgetError: the cap does not cover it; nothing was written.
            PermissionRefused: this round was reserved before; nothing was written.
            LedgerError: the file could not be written.
        """
        asked = use or NO_PROTECTION
        # PRIVACY: the check and the row are one transaction, so that two processes cannot both take the last of a
        # budget. test_two_processes_cannot_both_take_the_last_of_a_budget
        with self._transaction() as connection:
            known = connection.execute(
                "SELECT 1 FROM reservations WHERE data_set = ? AND run_id = ? AND round = ? AND attempt = ?",
                (data_set, run_id, round_number, attempt),
            ).fetchone()
            # PRIVACY: an answered request would otherwise be run twice for one payment. test_a_round_is_reserved_once
            if known:
                raise PermissionRefused(
                    f"{self.path}: round {round_number} of run {run_id} was reserved before; "
                    "to run it again, and pay again, ask with a higher attempt"
                )
            before = self._uses(connection, data_set)
            # PRIVACY: everything ever released about the data set counts, not this run alone.
            # test_every_run_on_a_data_set_counts
            total = spent_epsilon([*before, asked], delta=delta, accountant=accountant)
            # PRIVACY: past the cap nothing is granted. test_a_request_past_the_cap_is_refused_and_writes_nothing
            if use is not None and not total <= cap_epsilon:
                raise BudgetError(
                    f"{self.path}: data set {data_set!r} would have spent epsilon {total:.4g} at delta {delta:g}; "
                    f"its owner allows {cap_epsilon:.4g}"
                )
            row = self._insert(
                connection, (data_set, unit, "gaussian" if use else "none"), asked, (run_id, round_number, attempt)
            )
        return Reservation(row, data_set, run_id, round_number, attempt, asked, total)

    def release(self, reservation: Reservation) -> None:
        """Notes that what the reservation paid for has left, so that it can never be used again.

        Raises:
            PermissionRefused: it was released before.
            LedgerError: it is not in this ledger.
        """
        with self._transaction() as connection:
            ended = connection.execute("SELECT state FROM endings WHERE reservation = ?", (reservation.id,)).fetchone()
            if ended:
                raise PermissionRefused(f"{self.path}: reservation {reservation.id} is {ended[0]} already")
            try:
                connection.execute("INSERT INTO endings VALUES (?, 'released', ?)", (reservation.id, _now()))
            except sqlite3.IntegrityError:
                raise LedgerError(f"{self.path}: no reservation {reservation.id}; it belongs elsewhere") from None

    def uses(self, data_set: str) -> tuple[MechanismUse, ...]:
        """Everything ever reserved for a data set, in order; reserved counts as spent."""
        with self._transaction() as connection:
            return self._uses(connection, data_set)

    def uses_of_run(self, data_set: str, run_id: str) -> tuple[MechanismUse, ...]:
        """What one run has reserved for a data set, in order."""
        with self._transaction() as connection:
            return self._uses(connection, data_set, run_id)

    def spent(self, data_set: str, *, delta: float, accountant: Accountant) -> float:
        """Bound on epsilon of everything ever released about a data set; infinite after a round without privacy."""
        return spent_epsilon(self.uses(data_set), delta=delta, accountant=accountant)

    @staticmethod
    def _uses(connection: sqlite3.Connection, data_set: str, run_id: str | None = None) -> tuple[MechanismUse, ...]:
        # PRIVACY: every row counts, whether or not its round ended. test_a_killed_round_stays_spent
        rows = connection.execute(
            "SELECT noise_multiplier, sample_rate, steps FROM reservations "
            "WHERE data_set = ?1 AND (?2 IS NULL OR run_id = ?2) ORDER BY id",
            (data_set, run_id),
        )
        return tuple(MechanismUse(*row) for row in rows)

    def _insert(
        self,
        connection: sqlite3.Connection,
        what: tuple[str, Unit, str],
        use: MechanismUse,
        which: tuple[str, int, int],
    ) -> int:
        row = connection.execute(
            "INSERT INTO reservations (data_set, unit, mechanism, noise_multiplier, sample_rate, steps, run_id, "
            "round, attempt, created_utc) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (*what, use.noise_multiplier, use.sample_rate, use.steps, *which, _now()),
        ).lastrowid
        if row is None:
            raise LedgerError(f"{self.path}: the row was not written; nothing may be released")
        return row

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """A write transaction on a connection of its own, committed and synced at the end or not at all.

        A connection must not be carried into a forked process, and opening one costs less than a sync.
        """
        try:
            connection = sqlite3.connect(self.path, timeout=WAIT_S, isolation_level=None)
            try:
                # The rollback journal, SQLite's default, keeps one file at rest: a copy of a WAL ledger without its
                # -wal file would lack the newest rows. EXTRA also syncs the folder once the journal is gone; with
                # FULL a power cut could bring the journal back, and with it the state before the row.
                # PRIVACY: on the disk before anything is released. test_the_ledger_syncs_every_commit
                connection.execute("PRAGMA synchronous = EXTRA")
                connection.execute("PRAGMA foreign_keys = ON")
                connection.execute("BEGIN IMMEDIATE")
                try:
                    yield connection
                except BaseException:
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

    def _prepare(self, connection: sqlite3.Connection) -> None:
        """Starts an empty file; turns away one that is not ours, newer or damaged."""
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if not tables and not application:
            for statement in SCHEMA.split(";\n"):
                if statement.strip():
                    connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {VERSION}")
            self.path.chmod(0o600)
            return
        if application != APPLICATION_ID:
            raise LedgerError(f"{self.path}: a database, but no ledger; give another path in site.toml, field ledger")
        if version != VERSION:
            raise LedgerError(
                f"{self.path}: a ledger of version {version}; this program reads version {VERSION}. "
                "Update the program; a new file in its place would forget what was spent"
            )
        (check,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if check != "ok":
            raise LedgerError(f"{self.path}: damaged ({check}); restore the newest copy and add what was spent since")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
