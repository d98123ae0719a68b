"""Ledger: what was ever spent on each data set, on disk before the data is opened.

in        reservations, one for each round of each run that wants a data set; the server's own, for a federation
out       permission to go on, or a refusal; all uses so far, merged, for the accountant
relies on ledger_file.py for transactions that last, ledger_transaction.py for what is granted in one

A ledger restored from an old backup, or deleted, has forgotten what came after: the one thing it cannot notice. The
site agent does, which keeps a mark of its own (client/resident/ledger_mark.py).
"""

import contextlib
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from shared.config import Unit
from shared.privacy.accountant import Accountant, MechanismUse, merged, spent_epsilon
from shared.privacy.ledger_file import LedgerFile
from shared.privacy.ledger_totals import History, Totals, protects
from shared.privacy.ledger_transaction import Mechanism, OpenLedger, Pending, Reservation

__all__ = ["Ledger", "LedgerRow", "Mechanism", "Pending", "Reservation", "State", "uses_of_rows"]

State = Literal["reserved", "released", "void"]
_ROWS = """
SELECT id, data_set, unit, mechanism, noise_multiplier, sample_rate, steps, run_id, round, attempt,
       reservations.created_utc, coalesce(state, 'reserved'), endings.created_utc
FROM reservations LEFT JOIN endings ON reservation = id
"""


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
        self._totals, self._memory_is_free = Totals(path), threading.Lock()

    @classmethod
    def existing(cls, path: Path) -> "Ledger":
        """Opens a ledger that is there, and never starts one: to look into it."""
        return cls(path, create=False)

    @contextlib.contextmanager
    def together(self, *, write: bool = True) -> Iterator[OpenLedger]:
        """One transaction for many reservations, releases and questions, with one sync at its end.

        Promise: each is granted or refused as if it were alone; an error that the caller catches inside concerns its
        own data set only, and has written nothing. An error that leaves the block undoes all of it.
        Void if: a reservation is used before the block has ended, which `Pending` prevents. Ask this ledger nothing by
        other ways inside the block.

        Args:
            write: nobody else writes until it ends, so do nothing slow inside; without, it reads one state throughout.
        """
        # Whoever comes second, from another thread or from inside, does without what is remembered.
        is_mine = self._memory_is_free.acquire(blocking=False)
        totals = self._totals if is_mine else Totals(self.path)
        try:
            with self._file.transaction(write=write) as connection:
                totals.refresh(connection)
                opened = OpenLedger(self.path, connection, totals)
                yield opened
                opened.write_down()
            # PRIVACY: not before all of it is on the disk. test_what_is_reserved_together_is_paid_at_the_end
            opened.ending.is_on_disk = True
        except BaseException:
            # refresh might have been interrupted half way, and would count the same rows again
            totals.forget()
            raise
        finally:
            if is_mine:
                self._memory_is_free.release()

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
    ) -> Reservation:
        """Charges one round to a data set, as `OpenLedger.reserve` does, and waits for the disk.

        Promise: when this returns the row is on the disk, and all rows of the data set together are within the cap.

        Raises:
            BudgetError, PermissionRefused, LedgerError, PrivacyError: as there; nothing was written.
        """
        if use is not None:
            # The sums can take seconds: done here first, they wait in the accountant's memory when the lock is held.
            spent_epsilon([*self.uses(data_set, unit=unit), use], delta=delta, accountant=accountant)
        with self.together() as opened:
            pending = opened.reserve(
                data_set=data_set,
                unit=unit,
                use=use,
                run_id=run_id,
                round_number=round_number,
                cap_epsilon=cap_epsilon,
                delta=delta,
                accountant=accountant,
                attempt=attempt,
                mechanism=mechanism,
                most_rounds=most_rounds,
                most_a_day=most_a_day,
            )
        return pending.paid

    def release(self, reservation: Reservation) -> None:
        """Notes that what the reservation paid for has left, so that it can never be used again.

        Raises:
            PermissionRefused: it was released or made void before.
            LedgerError: it is not in this ledger.
        """
        with self.together() as opened:
            opened.release(reservation)

    def void(self, reservation: Reservation) -> None:
        """Gives back what a reservation cost; its round can be asked again with a higher attempt only.

        Void if: anything computed from the data set could have left under it, or still may. Call it where the data
        could not even be read, and for nothing that went wrong later.

        Raises:
            PermissionRefused: it was released or made void before.
            LedgerError: it is not in this ledger.
        """
        with self.together() as opened:
            opened.void(reservation)

    def history(self, data_set: str, run_id: str, *, unit: Unit) -> History:
        """What one run, and all the others, have reserved for a data set, counted as `uses` does."""
        with self.together(write=False) as opened:
            return opened.history(data_set, run_id, unit=unit)

    def uses(self, data_set: str, *, unit: Unit) -> tuple[MechanismUse, ...]:
        """All that was ever reserved for a data set and is not void, equal mechanisms merged, as it protects a unit.

        Raises:
            LedgerError: rows of a federation's sites and rows of a site's data do not go together.
        """
        with self.together(write=False) as opened:
            return opened.uses(data_set, unit=unit)

    def uses_of_run(self, data_set: str, run_id: str, *, unit: Unit) -> tuple[MechanismUse, ...]:
        """What one run has reserved for a data set, counted as `uses` does; row by row it stands in `rows`."""
        with self.together(write=False) as opened:
            return opened.uses_of_run(data_set, run_id, unit=unit)

    def spent(self, data_set: str, *, unit: Unit, delta: float, accountant: Accountant) -> float:
        """Bound on epsilon of everything ever released about a data set; infinite after a round without privacy."""
        return spent_epsilon(self.uses(data_set, unit=unit), delta=delta, accountant=accountant)

    def rows(self, data_set: str, *, run_id: str | None = None) -> tuple[LedgerRow, ...]:
        """Every row of a data set, or of one run on it, in the order in which they were reserved; void ones too."""
        only, values = ("", (data_set,)) if run_id is None else (" AND run_id = ?", (data_set, run_id))
        with self._file.transaction(write=False) as connection:
            found = connection.execute(f"{_ROWS} WHERE data_set = ?{only} ORDER BY id", values)
            return tuple(_row(*row) for row in found)

    def row(self, number: int) -> LedgerRow | None:
        """One reservation, void or not; None where none has this number."""
        with self._file.transaction(write=False) as connection:
            found = connection.execute(f"{_ROWS} WHERE id = ?", (number,)).fetchone()
        return None if found is None else _row(*found)

    def last_number(self) -> int:
        """The number of the last reservation; 0 where there is none."""
        with self._file.transaction(write=False) as connection:
            (last,) = connection.execute("SELECT coalesce(max(id), 0) FROM reservations").fetchone()
        return int(last)

    def data_sets(self) -> tuple[str, ...]:
        """Names of all data sets that the ledger holds, sorted."""
        with self._file.transaction(write=False) as connection:
            return tuple(
                name for (name,) in connection.execute("SELECT DISTINCT data_set FROM reservations ORDER BY 1")
            )


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
