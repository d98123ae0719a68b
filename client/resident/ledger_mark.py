"""Ledger mark: what this agent was granted last on a data set, kept apart from the ledger, which cannot notice itself
that it was removed or replaced by an older copy.

in        each reservation, before data is read for it; the ledger, before the next one
out       the ledger, where it still holds what was granted; else an error for its owner, who decides what is true
relies on a row of a ledger being there for ever: the last one speaks for all before it. Where mark and ledger are set
back together, as with a whole machine, nothing shows
"""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

from client.resident.answer_files import parsed, read, write
from shared.errors import LedgerError
from shared.privacy.accountant import MechanismUse
from shared.privacy.ledger import Ledger, LedgerRow, Reservation
from shared.settings import Settings


class Granted(Settings):
    """A reservation, as a file of the agent's remembers it."""

    reservation: int
    data_set: str
    run_id: str
    round_number: int
    attempt: int
    noise_multiplier: float
    sample_rate: float
    steps: int

    @property
    def use(self) -> MechanismUse:
        """What it paid for."""
        return MechanismUse(self.noise_multiplier, self.sample_rate, self.steps)

    def is_of(self, row: LedgerRow) -> bool:
        """Whether the row is the one that was granted, whatever became of it."""
        mine = (self.reservation, self.data_set, self.run_id, self.round_number, self.attempt, self.use)
        return mine == (row.id, row.data_set, row.run_id, row.round_number, row.attempt, row.use)


def read_mark(folder: Path, *, data_set: str) -> Granted | None:
    """The last reservation of a data set; None where nothing was granted yet.

    Raises:
        LedgerError: the file that says so is damaged, so that nobody can say what the ledger must hold.
    """
    path = _path(folder, data_set=data_set)
    held = read(path)
    if held is None and not path.exists():
        return None
    mark = None if held is None else parsed(Granted, held.decode("utf-8", errors="replace"))
    if mark is None or mark.data_set != data_set:
        raise LedgerError(
            f"{path}: damaged; it said which reservation of {data_set!r} is the last. See with motet budget whether "
            f"the ledger is the newest one; then, with the agent stopped, move {folder} away"
        )
    return mark


def granted_of(reservation: Reservation) -> Granted:
    """What a file remembers of a reservation."""
    return Granted(
        reservation=reservation.id,
        data_set=reservation.data_set,
        run_id=reservation.run_id,
        round_number=reservation.round_number,
        attempt=reservation.attempt,
        noise_multiplier=reservation.use.noise_multiplier,
        sample_rate=reservation.use.sample_rate,
        steps=reservation.use.steps,
    )


def keep_mark(folder: Path, granted: Granted) -> None:
    """Writes down what was granted last, on the disk when this returns.

    Raises:
        OSError: it cannot be written; then nothing may be read under the reservation.
    """
    write(_path(folder, data_set=granted.data_set), granted.model_dump_json().encode())


def newest(granted: Sequence[Granted]) -> Granted:
    """The one that was granted last."""
    return max(granted, key=_number)


def unforgetting(
    path: Path, *, granted: Sequence[Granted], folder: Path | None, open_ledger: Callable[[Path], Ledger]
) -> Ledger:
    """The ledger at a path, which holds all that was granted; begun only where nothing was.

    Args:
        folder: where `granted` comes from; None where nothing is kept.

    Raises:
        LedgerError: it is not there, or lacks something; also as `Ledger`.
    """
    # PRIVACY: one begun anew would grant the whole budget a second time.
    # test_a_ledger_that_was_removed_is_not_begun_anew
    if granted and not path.exists():
        raise _forgotten(path, newest(granted), last=0, folder=folder)
    ledger = open_ledger(path)
    for each in sorted(granted, key=_number, reverse=True):
        row = ledger.row(each.reservation)
        # PRIVACY: as above, for what came after the copy. test_a_ledger_restored_from_a_copy_grants_nothing
        if row is None or not each.is_of(row):
            raise _forgotten(path, each, last=ledger.last_number(), folder=folder)
    return ledger


def _number(granted: Granted) -> int:
    return granted.reservation


def _forgotten(path: Path, lost: Granted, *, last: int, folder: Path | None) -> LedgerError:
    if not last:
        missing = f"it is gone or empty, and held reservations up to {lost.reservation}"
    elif last < lost.reservation:
        missing = f"reservations {last + 1} to {lost.reservation} are missing"
    else:
        missing = f"reservation {lost.reservation} is another one"
    return LedgerError(
        f"{path}: {missing} (of {lost.data_set!r}, round {lost.round_number} of run {lost.run_id}): it was removed or "
        "set back to an old copy. Nothing is trained until the newest file is back. If that is lost: stop the agent, "
        f"lower privacy.epsilon by what is missing, then move {folder} away ('Restore a ledger' in docs/deployment.md)"
    )


def _path(folder: Path, *, data_set: str) -> Path:
    # no run's id begins with a dot, and a run's folder lies beside it. test_no_run_can_take_the_marks_place
    return folder / f".ledger-{hashlib.sha256(data_set.encode()).hexdigest()[:16]}.mark"
