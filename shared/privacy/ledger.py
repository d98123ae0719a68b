"""Ledger: what was ever spent on each data set, on disk before the data is opened.

in        reservations, one for each round of each run that wants a data set; the server's own, for a federation
out       permission to go on, or a refusal; all uses so far, merged, for the accountant
relies on ledger_file.py for transactions that last; accountant.py for the sums

A ledger restored from an old backup, or deleted, has forgotten what came after: the one thing it cannot notice.
"""

import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from shared.config import Unit
from shared.errors import BudgetError, LedgerError, PermissionRefused, PrivacyError
from shared.privacy.accountant import Accountant, MechanismUse, merged, spent_epsilon
from shared.privacy.ledger_file import LedgerFile

Mechanism = Literal["gaussian", "adaptive-gaussian", "counts", "none"]
"""a round's sums; the same with the count of adaptive clipping; noisy counts before round 1; a round without noise"""
State = Literal["reserved", "released", "void"]
NO_PROTECTION = MechanismUse(noise_multiplier=0.0, sample_rate=1.0, steps=1)
"""how a round without privacy is written down: no noise, which costs infinity"""

# PRIVACY: every row counts, whether or not its round ended, but for those of which it is certain that nothing left.
# test_a_killed_round_stays_spent, test_a_void_row_does_not_count
_TOTALS = """
SELECT unit, noise_multiplier, sample_rate, sum(steps) FROM reservations
WHERE data_set = ?1 AND id NOT IN (SELECT reservation FROM endings WHERE state = 'void')
"""
_OF_RUN = "AND run_id = ?2"
_OF_OTHERS = "AND run_id <> ?2"
_BEFORE_RUN = """
AND run_id <> ?2 AND id < coalesce((SELECT min(id) FROM reservations WHERE data_set = ?1 AND run_id = ?2), 1 << 62)
"""
_ROWS = """
SELECT id, data_set, unit, mechanism, noise_multiplier, sample_rate, steps, run_id, round, attempt,
       reservations.created_utc, coalesce(state, 'reserved'), endings.created_utc
FROM reservations LEFT JOIN endings ON reservation = id
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


@dataclass(frozen=True)
class LedgerRow:
    """One reservation as it stands in the ledger, and what became of it."""

    id: int
    data_set: str
    unit: Unit
    mechanism: Mechanism
    use: MechanismUse
    run_id: str
    round_number: int
    """0 for counts, which are asked before the first round"""
    attempt: int
    created_utc: str
    """ISO 8601, to the second"""
    state: State
    """reserved counts as spent: whatever became of the round, nobody knows that nothing left"""
    ended_utc: str | None
    """when it was released or made void"""


class Ledger:
    """One file, append-only, for any number of data sets; every row is on the disk before its method returns."""

    def __init__(self, path: Path, *, create: bool = True) -> None:
        """Opens the ledger, or starts one where no file is.

        Raises:
            LedgerError: the file is no ledger, is damaged, is newer than this program, or cannot be written; or there
                is none, and none shall be started.
        """
        self.path = path
        self._file = LedgerFile(path, create=create)

    @classmethod
    def existing(cls, path: Path) -> "Ledger":
        """Opens a ledger that is there, and never starts one: to look into it."""
        return cls(path, create=False)

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
        mechanism: Mechanism = "gaussian",
    ) -> Reservation:
        """Charges one round to a data set; from here on it counts as spent, whatever becomes of the round.

        Promise: when this returns the row is on the disk, and all rows of the data set together are within the cap.

        Args:
            unit: what the cap protects; earlier rows that protect another unit count by what they say about this one.
            use: what the round will do; None for a round without noise, which the owner has permitted apart
                (SiteConfig): it costs infinity, so no cap is asked, and no round with a cap is granted after it.
            cap_epsilon: the owner's.
            attempt: one higher than all before says that a round reserved before is knowingly run, and paid for, again.
            mechanism: what `use` describes; without a use it is written down as "none".

        Raises:
            BudgetError: the cap does not cover it; nothing was written.
            PermissionRefused: this round was reserved before; nothing was written.
            LedgerError: the file could not be written, or the data set is kept under units that do not go together.
            PrivacyError: a number is outside its range, or the accountant gave up; nothing was written.
        """
        asked, kind = (NO_PROTECTION, "none") if use is None else (use, mechanism)
        if use is not None and (mechanism == "none" or use.steps < 1):
            raise PrivacyError(f"a use of {use.steps} steps as {mechanism!r}; allowed: 1 or more, with a mechanism")
        if use is not None:
            # The sums can take seconds: done here first, they wait in the accountant's memory when the lock is held.
            spent_epsilon([*self.uses(data_set, unit=unit), asked], delta=delta, accountant=accountant)
        # PRIVACY: the check and the row are one transaction, so that two processes cannot both take the last of a
        # budget. test_two_processes_cannot_both_take_the_last_of_a_budget
        with self._file.transaction() as connection:
            self._refuse_known(connection, data_set, run_id, round_number, attempt)
            before = self._uses(connection, data_set, unit=unit)
            # PRIVACY: everything ever released about the data set counts, not this run alone.
            # test_every_run_on_a_data_set_counts
            total = spent_epsilon([*before, asked], delta=delta, accountant=accountant)
            # PRIVACY: past the cap nothing is granted. test_a_request_past_the_cap_is_refused_and_writes_nothing
            if use is not None and not total <= cap_epsilon:
                raise BudgetError(
                    f"{self.path}: data set {data_set!r} would have spent epsilon {total:.4g} at delta {delta:g}; "
                    f"its owner allows {cap_epsilon:.4g} for a {unit}"
                )
            row = self._insert(connection, (data_set, unit, kind), asked, (run_id, round_number, attempt))
        return Reservation(row, data_set, run_id, round_number, attempt, asked, total)

    def release(self, reservation: Reservation) -> None:
        """Notes that what the reservation paid for has left, so that it can never be used again.

        Raises:
            PermissionRefused: it was released or made void before.
            LedgerError: it is not in this ledger.
        """
        self._end(reservation, "released")

    def void(self, reservation: Reservation) -> None:
        """Gives back what a reservation cost; its round can be asked again with a higher attempt only.

        Void if: anything computed from the data set could have left under it, or still may. Call it where the data
        could not even be read, and for nothing that went wrong later.

        Raises:
            PermissionRefused: it was released or made void before.
            LedgerError: it is not in this ledger.
        """
        self._end(reservation, "void")

    def uses(self, data_set: str, *, unit: Unit) -> tuple[MechanismUse, ...]:
        """All that was ever reserved for a data set and is not void, equal mechanisms merged, as it protects a unit.

        Raises:
            LedgerError: rows of a federation's sites and rows of a site's data do not go together.
        """
        with self._file.transaction(write=False) as connection:
            return self._uses(connection, data_set, unit=unit)

    def uses_of_run(self, data_set: str, run_id: str, *, unit: Unit) -> tuple[MechanismUse, ...]:
        """What one run has reserved for a data set, counted as `uses` does; row by row it stands in `rows`."""
        with self._file.transaction(write=False) as connection:
            return self._uses(connection, data_set, run_id, unit=unit, only=_OF_RUN)

    def uses_of_others(
        self, data_set: str, run_id: str, *, unit: Unit, before: bool = False
    ) -> tuple[MechanismUse, ...]:
        """What all runs but one have reserved for a data set, counted as `uses` does.

        Args:
            before: only what was reserved before that run's first row, where it has one.
        """
        with self._file.transaction(write=False) as connection:
            return self._uses(connection, data_set, run_id, unit=unit, only=_BEFORE_RUN if before else _OF_OTHERS)

    def spent(self, data_set: str, *, unit: Unit, delta: float, accountant: Accountant) -> float:
        """Bound on epsilon of everything ever released about a data set; infinite after a round without privacy."""
        return spent_epsilon(self.uses(data_set, unit=unit), delta=delta, accountant=accountant)

    def rows(self, data_set: str, *, run_id: str | None = None) -> tuple[LedgerRow, ...]:
        """Every row of a data set, or of one run on it, in the order in which they were reserved; void ones too."""
        only, values = ("", (data_set,)) if run_id is None else (" AND run_id = ?", (data_set, run_id))
        with self._file.transaction(write=False) as connection:
            found = connection.execute(f"{_ROWS} WHERE data_set = ?{only} ORDER BY id", values)
            return tuple(_row(*row) for row in found)

    def data_sets(self) -> tuple[str, ...]:
        """Names of all data sets that the ledger holds, sorted."""
        with self._file.transaction(write=False) as connection:
            return tuple(
                name for (name,) in connection.execute("SELECT DISTINCT data_set FROM reservations ORDER BY 1")
            )

    def _uses(
        self, connection: sqlite3.Connection, data_set: str, *run_id: str, unit: Unit, only: str = ""
    ) -> tuple[MechanismUse, ...]:
        rows = connection.execute(f"{_TOTALS} {only} GROUP BY unit, 2, 3", (data_set, *run_id))
        try:
            return merged([protects(MechanismUse(*use), held=held, unit=unit) for held, *use in rows])
        except LedgerError as error:
            raise LedgerError(f"{self.path}: data set {data_set!r}: {error}") from None

    def _refuse_known(
        self, connection: sqlite3.Connection, data_set: str, run_id: str, round_number: int, attempt: int
    ) -> None:
        (last,) = connection.execute(
            "SELECT max(attempt) FROM reservations WHERE data_set = ? AND run_id = ? AND round = ?",
            (data_set, run_id, round_number),
        ).fetchone()
        # PRIVACY: an answered request would otherwise be run twice for one payment. test_a_round_is_reserved_once
        if last is not None and attempt <= last:
            raise PermissionRefused(
                f"{self.path}: round {round_number} of run {run_id} was reserved before; "
                f"to run it again, and pay again, ask with attempt {last + 1} or higher"
            )

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

    def _end(self, reservation: Reservation, state: Literal["released", "void"]) -> None:
        which = (reservation.data_set, reservation.run_id, reservation.round_number, reservation.attempt)
        with self._file.transaction() as connection:
            row = connection.execute(
                "SELECT data_set, run_id, round, attempt, state FROM reservations "
                "LEFT JOIN endings ON reservation = id WHERE id = ?",
                (reservation.id,),
            ).fetchone()
            # PRIVACY: a number from another ledger could refund a stranger's round.
            # test_a_reservation_of_another_ledger_is_not_ended
            if row is None or row[:4] != which:
                raise LedgerError(f"{self.path}: no reservation {reservation.id} for {which}; it belongs elsewhere")
            # PRIVACY: what has left stays spent. test_a_released_row_is_never_void
            if row[4] is not None:
                raise PermissionRefused(f"{self.path}: reservation {reservation.id} is {row[4]} already")
            connection.execute("INSERT INTO endings VALUES (?, ?, ?)", (reservation.id, state, _now()))


def protects(use: MechanismUse, *, held: Unit, unit: Unit) -> MechanismUse:
    """A use that protects one unit, as what it says about another.

    A subject's rows asked for records: one record more or less changes the contribution of its subject, which moves
    the sum by at most two clip norms, so the noise is half as large for it; subjects were sampled and not records, so
    nothing is claimed for the sampling. A record's rows asked for subjects: no bound.

    Raises:
        LedgerError: only one of the two is a site; a site's data and a federation's sites are not the same data set.
    """
    if "site" in (held, unit) and held != unit:
        raise LedgerError(
            f"it has rows that protect a {held}, and is asked about a {unit}; a federation whose sites are protected "
            "needs a name that no data set has"
        )
    # PRIVACY: only what hides a unit counts as hiding it. test_units_convert_as_computed_by_hand
    if held == unit or use.noise_multiplier == 0:
        return use
    if (held, unit) == ("subject", "record"):
        return MechanismUse(use.noise_multiplier / 2, sample_rate=1.0, steps=use.steps)
    return MechanismUse(0.0, use.sample_rate, use.steps)


def uses_of_rows(rows: Iterable[LedgerRow], *, unit: Unit) -> tuple[MechanismUse, ...]:
    """What rows cost together, counted as `Ledger.uses` does."""
    return merged([protects(row.use, held=row.unit, unit=unit) for row in rows if row.state != "void"])


def _row(
    number: int,
    data_set: str,
    unit: Unit,
    mechanism: Mechanism,
    noise_multiplier: float,
    sample_rate: float,
    steps: int,
    run_id: str,
    round_number: int,
    attempt: int,
    created_utc: str,
    state: State,
    ended_utc: str | None,
) -> LedgerRow:
    use = MechanismUse(noise_multiplier, sample_rate, steps)
    return LedgerRow(
        number, data_set, unit, mechanism, use, run_id, round_number, attempt, created_utc, state, ended_utc
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
