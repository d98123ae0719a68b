"""Ledger transaction: what is granted and refused, all of it on the disk together or none.

in        an open transaction of ledger_file.py, and what each data set is asked for
out       reservations, which are paid for once the transaction has ended; or a refusal of one, which leaves the others
relies on ledger_totals.py for what was spent before, accountant.py for what it comes to
"""

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Literal, TypeVar

from shared.config import Unit
from shared.errors import BudgetError, LedgerError, PermissionRefused, PrivacyError
from shared.privacy.accountant import Accountant, MechanismUse, spent_epsilon
from shared.privacy.ledger_totals import History, Totals

Mechanism = Literal["gaussian", "adaptive-gaussian", "counts", "none"]
"""a round's sums; the same with the count of adaptive clipping; noisy counts before round 1; a round without noise"""
NO_PROTECTION = MechanismUse(noise_multiplier=0.0, sample_rate=1.0, steps=1)
"""how a round without privacy is written down: no noise, which costs infinity"""
AT_ONCE = 500
"""rows asked for by one statement: fewer than any SQLite takes"""
Round = tuple[str, str, int]
"""data set, run, number of the round"""
Piece = TypeVar("Piece")
_Row = tuple[int, str, str, str, float, float, int, str, int, int, str]
Uses = tuple[MechanismUse, ...]
_Cost = tuple[Uses, MechanismUse, float, Accountant]
_INSERT = (
    "INSERT INTO reservations (id, data_set, unit, mechanism, noise_multiplier, sample_rate, steps, run_id, "
    "round, attempt, created_utc) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_LAST_ATTEMPTS = "SELECT data_set, max(attempt) FROM reservations WHERE run_id = ? AND round = ?"
_STATES = "SELECT id, data_set, run_id, round, attempt, state FROM reservations LEFT JOIN endings ON reservation = id"
_OF_A_DAY = (
    "SELECT count(*) FROM reservations WHERE data_set = ? AND created_utc > ? "
    "AND id NOT IN (SELECT reservation FROM endings WHERE state = 'void')"
)
_LAST_NUMBER = (
    "SELECT max(coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'reservations'), 0), "
    "coalesce((SELECT max(id) FROM reservations), 0))"
)


@dataclass
class Ending:
    """Whether a transaction has ended, with all that was written in it on the disk."""

    is_on_disk: bool = False


@dataclass(frozen=True, slots=True)
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

    __slots__ = ("_ending", "_reservation")

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
        self._unwritten: list[_Row] = []
        """granted, numbered and counted; written when rows are next read, at the latest when the transaction ends"""
        self._unwritten_of: set[str] = set()
        self._attempts: dict[Round, int | None] = {}
        """the highest of rounds that are looked up, this transaction's own included"""
        self._last_number: int | None = None
        self._costs: dict[_Cost, float] = {}

    def look_up(self, rounds: Iterable[Round]) -> None:
        """Reads at once what `reserve` would otherwise read for each of these rounds; in a transaction that writes."""
        by_round: dict[tuple[str, int], list[str]] = {}
        for data_set, run_id, round_number in rounds:
            by_round.setdefault((run_id, round_number), []).append(data_set)
        self.write_down()
        for (run_id, round_number), data_sets in by_round.items():
            for some in _pieces(data_sets):
                self._attempts.update(dict.fromkeys(((each, run_id, round_number) for each in some), None))
                found = self._connection.execute(
                    f"{_LAST_ATTEMPTS} AND data_set IN ({_marks(some)}) GROUP BY data_set",
                    (run_id, round_number, *some),
                )
                self._attempts.update({(each, run_id, round_number): last for each, last in found})

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
        most_rounds: int | None = None,
        most_a_day: int | None = None,
    ) -> Pending:
        """Charges one round to a data set; once the transaction has ended it counts as spent, whatever becomes of it.

        Args:
            unit: what the cap protects; earlier rows that protect another unit count by what they say about this one.
            use: what the round will do; None for a round without noise, which the owner has permitted apart
                (SiteConfig): it costs infinity, so no cap is asked, and no round with a cap is granted after it.
            cap_epsilon: the owner's.
            attempt: one higher than all before says that a round reserved before is knowingly run, and paid for, again.
            mechanism: what `use` describes; without a use it is written down as "none".
            most_rounds: of the run, this one included; no bound where it is not given.
            most_a_day: of all runs in the last 24 hours, this one included, as this machine's clock says.

        Raises:
            BudgetError: the cap does not cover it; nothing was written.
            PermissionRefused: this round was reserved before, or is one too many; nothing was written.
            LedgerError: the data set is kept under units that do not go together; or the file could not be written,
                which ends the whole transaction.
            PrivacyError: a number is outside its range, or the accountant gave up; nothing was written.
        """
        asked, kind = (NO_PROTECTION, "none") if use is None else (use, mechanism)
        if use is not None and (mechanism == "none" or use.steps < 1):
            raise PrivacyError(f"a use of {use.steps} steps as {mechanism!r}; allowed: 1 or more, with a mechanism")
        # PRIVACY: the check and the row are one transaction, so that two processes cannot both take the last of a
        # budget. test_two_processes_cannot_both_take_the_last_of_a_budget
        self._refuse_known((data_set, run_id, round_number), attempt)
        if most_rounds is not None and (num := self.history(data_set, run_id, unit=unit).num_rounds) >= most_rounds:
            raise PermissionRefused(f"limits.rounds: run {run_id} has had {num}; allowed: {most_rounds}")
        if most_a_day is not None and (num := self._num_of_a_day(data_set)) >= most_a_day:
            raise PermissionRefused(f"limits.rounds_a_day: {num} in the last 24 hours; allowed: {most_a_day}")
        # PRIVACY: everything ever released about the data set counts, not this run alone.
        # test_every_run_on_a_data_set_counts
        before = self.uses(data_set, unit=unit)
        total = self._cost(before, asked, delta, accountant)
        # PRIVACY: past the cap nothing is granted. test_a_request_past_the_cap_is_refused_and_writes_nothing
        if use is not None and not total <= cap_epsilon:
            raise BudgetError(
                f"{self._path}: data set {data_set!r} would have spent epsilon {total:.4g} at delta {delta:g}; "
                f"its owner allows {cap_epsilon:.4g} for a {unit}"
            )
        number = self._note(data_set, unit, kind, use=asked, which=(run_id, round_number, attempt))
        granted = Reservation(number, data_set, run_id, round_number, attempt, asked, total)
        return Pending(granted, self.ending)

    def write_down(self) -> None:
        """Writes what was granted; the end of the transaction does, for whoever asks nothing in between."""
        if self._unwritten:
            self._connection.executemany(_INSERT, self._unwritten)
            self._unwritten.clear()
            self._unwritten_of.clear()

    def release(self, *reservations: Reservation) -> None:
        """As `Ledger.release`, for any number; of several that cannot all be released, which is an error, none is."""
        self._end(reservations, "released")

    def void(self, reservation: Reservation) -> None:
        """As `Ledger.void`."""
        self._end([reservation], "void")
        self._totals.note_void(reservation.data_set)

    def uses(self, data_set: str, *, unit: Unit) -> tuple[MechanismUse, ...]:
        """As `Ledger.uses`, with what this transaction has reserved."""
        return self._totals.uses(self._connection, data_set, unit=unit)

    def uses_of_run(self, data_set: str, run_id: str, *, unit: Unit) -> tuple[MechanismUse, ...]:
        """As `Ledger.uses_of_run`, with what this transaction has reserved."""
        return self._totals.uses_of_run(self._connection, data_set, run_id, unit=unit)

    def history(self, data_set: str, run_id: str, *, unit: Unit) -> History:
        """As `Ledger.history`, with what this transaction has reserved."""
        if data_set in self._unwritten_of:
            self.write_down()
        return self._totals.history(self._connection, data_set, run_id, unit=unit)

    def _refuse_known(self, which: Round, attempt: int) -> None:
        if which not in self._attempts:
            self.look_up([which])
        last = self._attempts[which]
        # PRIVACY: an answered request would otherwise be run twice for one payment. test_a_round_is_reserved_once
        if last is not None and attempt <= last:
            raise PermissionRefused(
                f"{self._path}: round {which[2]} of run {which[1]} was reserved before; "
                f"to run it again, and pay again, ask with attempt {last + 1} or higher"
            )

    def _num_of_a_day(self, data_set: str) -> int:
        self.write_down()
        yesterday = (datetime.now(UTC) - timedelta(days=1)).isoformat(timespec="seconds")
        (num,) = self._connection.execute(_OF_A_DAY, (data_set, yesterday)).fetchone()
        return int(num)

    def _cost(
        self, before: tuple[MechanismUse, ...], asked: MechanismUse, delta: float, accountant: Accountant
    ) -> float:
        """What everything comes to; worked out once for all data sets of the transaction that have spent the same."""
        key = (before, asked, delta, accountant)
        if key not in self._costs:
            self._costs[key] = spent_epsilon([*before, asked], delta=delta, accountant=accountant)
        return self._costs[key]

    def _note(
        self, data_set: str, unit: Unit, mechanism: str, *, use: MechanismUse, which: tuple[str, int, int]
    ) -> int:
        """The number of a row that will be written."""
        if self._last_number is None:
            # nobody else writes until the transaction ends, and a number that was ever given is never given again
            (self._last_number,) = self._connection.execute(_LAST_NUMBER).fetchone()
        self._last_number = number = self._last_number + 1
        run_id, round_number, attempt = which
        self._attempts[data_set, run_id, round_number] = attempt
        row = (number, data_set, unit, mechanism, use.noise_multiplier, use.sample_rate, use.steps, *which, self._time)
        self._unwritten.append(row)
        self._unwritten_of.add(data_set)
        is_counts = mechanism == "counts"
        self._totals.note_row((number, data_set, *which, self._time), unit=unit, is_counts=is_counts, use=use)
        return number

    def _end(self, reservations: Sequence[Reservation], state: Literal["released", "void"]) -> None:
        self.write_down()
        ended: set[int] = set()
        for some in _pieces(reservations):
            found = self._connection.execute(
                f"{_STATES} WHERE id IN ({_marks(some)})",
                [each.id for each in some],
            )
            rows = {number: row for number, *row in found}
            for each in some:
                which = [each.data_set, each.run_id, each.round_number, each.attempt]
                row = rows.get(each.id)
                # PRIVACY: a number from another ledger could refund a stranger's round.
                # test_a_reservation_of_another_ledger_is_not_ended
                if row is None or row[:4] != which:
                    raise LedgerError(f"{self._path}: no reservation {each.id} for {which}; it belongs elsewhere")
                # PRIVACY: what has left stays spent. test_a_released_row_is_never_void
                before = state if each.id in ended else row[4]
                if before is not None:
                    raise PermissionRefused(f"{self._path}: reservation {each.id} is {before} already")
                ended.add(each.id)
        self._connection.executemany(
            "INSERT INTO endings VALUES (?, ?, ?)", [(each.id, state, self._time) for each in reservations]
        )

    @cached_property
    def _time(self) -> str:
        """When all of it is done."""
        return _now()


def _pieces(values: Sequence[Piece]) -> Iterator[Sequence[Piece]]:
    return (values[start : start + AT_ONCE] for start in range(0, len(values), AT_ONCE))


def _marks(values: Sequence[object]) -> str:
    return ",".join("?" * len(values))


def _now() -> str:
    """To the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
