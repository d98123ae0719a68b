"""Ledger transaction: what is granted and refused, all of it on the disk together or none.

in        an open transaction of ledger_file.py, and what each data set is asked for
out       reservations, which are paid for once the transaction has ended; or a refusal of one, which leaves the others
relies on ledger_totals.py for what was spent before, accountant.py for what it comes to
"""

import sqlite3
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from shared.config import Unit
from shared.errors import BudgetError, LedgerError, PermissionRefused, PrivacyError
from shared.privacy.accountant import Accountant, MechanismUse, spent_epsilon
from shared.privacy.ledger_totals import History, Totals

Mechanism = Literal["gaussian", "adaptive-gaussian", "counts", "none"]
"""a round's sums; the same with the count of adaptive clipping; noisy counts before round 1; a round without noise"""
NO_PROTECTION = MechanismUse(noise_multiplier=0.0, sample_rate=1.0, steps=1)
"""how a round without privacy is written down: no noise, which costs infinity"""


@dataclass
class Ending:
    """Whether a transaction has ended, with all that was written in it on the disk."""

    is_on_disk: bool = False


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


class Pending:
    """A reservation in a transaction that has not ended yet; nothing may be touched for it."""

    def __init__(self, reservation: Reservation, ending: "Ending") -> None:
        self._reservation, self._ending = reservation, ending

    @property
    def paid(self) -> Reservation:
        """The reservation, once its transaction has ended well.

        Raises:
            LedgerError: it has not, or was undone.
        """
        if not self._ending.is_on_disk:
            raise LedgerError(f"reservation {self._reservation.id} is not on the disk; nothing may be touched for it")
        return self._reservation


class OpenLedger:
    """A ledger within one transaction; see `Ledger.together`."""

    def __init__(self, path: Path, connection: sqlite3.Connection, totals: Totals) -> None:
        self._path, self._connection, self._totals = path, connection, totals
        self.ending = Ending()

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
    ) -> Pending:
        """Charges one round to a data set; once the transaction has ended it counts as spent, whatever becomes of it.

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
            LedgerError: the data set is kept under units that do not go together; or the file could not be written,
                which ends the whole transaction.
            PrivacyError: a number is outside its range, or the accountant gave up; nothing was written.
        """
        asked, kind = (NO_PROTECTION, "none") if use is None else (use, mechanism)
        if use is not None and (mechanism == "none" or use.steps < 1):
            raise PrivacyError(f"a use of {use.steps} steps as {mechanism!r}; allowed: 1 or more, with a mechanism")
        # PRIVACY: the check and the row are one transaction, so that two processes cannot both take the last of a
        # budget. test_two_processes_cannot_both_take_the_last_of_a_budget
        self._refuse_known(data_set, run_id, round_number, attempt)
        # PRIVACY: everything ever released about the data set counts, not this run alone.
        # test_every_run_on_a_data_set_counts
        before = self.uses(data_set, unit=unit)
        total = spent_epsilon([*before, asked], delta=delta, accountant=accountant)
        # PRIVACY: past the cap nothing is granted. test_a_request_past_the_cap_is_refused_and_writes_nothing
        if use is not None and not total <= cap_epsilon:
            raise BudgetError(
                f"{self._path}: data set {data_set!r} would have spent epsilon {total:.4g} at delta {delta:g}; "
                f"its owner allows {cap_epsilon:.4g} for a {unit}"
            )
        number = self._insert(data_set, unit, kind, use=asked, which=(run_id, round_number, attempt))
        granted = Reservation(number, data_set, run_id, round_number, attempt, asked, total)
        return Pending(granted, self.ending)

    def release(self, reservation: Reservation) -> None:
        """As `Ledger.release`."""
        self._end(reservation, "released")

    def void(self, reservation: Reservation) -> None:
        """As `Ledger.void`."""
        self._end(reservation, "void")
        self._totals.note_void(reservation.data_set)

    def uses(self, data_set: str, *, unit: Unit) -> tuple[MechanismUse, ...]:
        """As `Ledger.uses`, with what this transaction has reserved."""
        return self._totals.uses(self._connection, data_set, unit=unit)

    def uses_of_run(self, data_set: str, run_id: str, *, unit: Unit) -> tuple[MechanismUse, ...]:
        """As `Ledger.uses_of_run`, with what this transaction has reserved."""
        return self._totals.uses_of_run(self._connection, data_set, run_id, unit=unit)

    def history(self, data_set: str, run_id: str, *, unit: Unit) -> History:
        """As `Ledger.history`, with what this transaction has reserved."""
        return self._totals.history(self._connection, data_set, run_id, unit=unit)

    def _refuse_known(self, data_set: str, run_id: str, round_number: int, attempt: int) -> None:
        (last,) = self._connection.execute(
            "SELECT max(attempt) FROM reservations WHERE data_set = ? AND run_id = ? AND round = ?",
            (data_set, run_id, round_number),
        ).fetchone()
        # PRIVACY: an answered request would otherwise be run twice for one payment. test_a_round_is_reserved_once
        if last is not None and attempt <= last:
            raise PermissionRefused(
                f"{self._path}: round {round_number} of run {run_id} was reserved before; "
                f"to run it again, and pay again, ask with attempt {last + 1} or higher"
            )

    def _insert(
        self, data_set: str, unit: Unit, mechanism: str, *, use: MechanismUse, which: tuple[str, int, int]
    ) -> int:
        now = _now()
        number = self._connection.execute(
            "INSERT INTO reservations (data_set, unit, mechanism, noise_multiplier, sample_rate, steps, run_id, "
            "round, attempt, created_utc) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (data_set, unit, mechanism, use.noise_multiplier, use.sample_rate, use.steps, *which, now),
        ).lastrowid
        if number is None:
            raise LedgerError(f"{self._path}: the row was not written; nothing may be released")
        is_counts = mechanism == "counts"
        self._totals.note_row((number, data_set, *which, now), unit=unit, is_counts=is_counts, use=use)
        return number

    def _end(self, reservation: Reservation, state: Literal["released", "void"]) -> None:
        which = (reservation.data_set, reservation.run_id, reservation.round_number, reservation.attempt)
        row = self._connection.execute(
            "SELECT data_set, run_id, round, attempt, state FROM reservations "
            "LEFT JOIN endings ON reservation = id WHERE id = ?",
            (reservation.id,),
        ).fetchone()
        # PRIVACY: a number from another ledger could refund a stranger's round.
        # test_a_reservation_of_another_ledger_is_not_ended
        if row is None or row[:4] != which:
            raise LedgerError(f"{self._path}: no reservation {reservation.id} for {which}; it belongs elsewhere")
        # PRIVACY: what has left stays spent. test_a_released_row_is_never_void
        if row[4] is not None:
            raise PermissionRefused(f"{self._path}: reservation {reservation.id} is {row[4]} already")
        self._connection.execute("INSERT INTO endings VALUES (?, ?, ?)", (reservation.id, state, _now()))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
