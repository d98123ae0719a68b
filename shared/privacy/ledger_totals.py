"""Totals: what a ledger's rows add up to, kept from one transaction to the next and brought up to date at its start.

in        an open transaction of ledger_file.py
out       uses, merged, of a data set, of one run on it, of all other runs; History, which a run is planned from
relies on rows that neither change nor go (triggers of ledger_file.py): only newer ones have to be read

Without them each round of a run would add up all rounds before it: 0.6 s for a thousand data sets after 500 rounds.
"""

import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple
from weakref import WeakValueDictionary

from shared.config import Unit
from shared.errors import LedgerError
from shared.privacy.accountant import MechanismUse, merged

Kind = tuple[Unit, float, float]
"""what a row protects, its noise multiplier, its sample rate"""
Steps = Mapping[Kind, int]
Before = tuple[tuple[Kind, int], ...]
"""steps of each kind that other runs had reserved"""

# PRIVACY: every row counts, whether or not its round ended, but for those of which it is certain that nothing left.
# test_a_killed_round_stays_spent, test_a_void_row_does_not_count
_NOT_VOID = "id NOT IN (SELECT reservation FROM endings WHERE state = 'void')"
# The last column has no function around it: SQLite takes it from the row that min(id) names.
_GROUPS = f"""
SELECT run_id, unit, mechanism = 'counts', noise_multiplier, sample_rate, sum(steps), count(*), steps, min(id)
FROM reservations WHERE data_set = ? AND {_NOT_VOID} GROUP BY 1, 2, 3, 4, 5 ORDER BY 9
"""  # noqa: S608  nothing in it comes from outside
_NEWER = """
SELECT data_set, run_id, unit, mechanism = 'counts', noise_multiplier, sample_rate, steps, 1, steps
FROM reservations WHERE id > ? ORDER BY id
"""
_BEFORE = f"""
SELECT unit, noise_multiplier, sample_rate, sum(steps) FROM reservations
WHERE data_set = ? AND run_id <> ? AND id < ? AND {_NOT_VOID} GROUP BY 1, 2, 3
"""  # noqa: S608  as above
_FIRST = "SELECT min(id) FROM reservations WHERE data_set = ? AND run_id = ?"
_LAST = "SELECT id, data_set, run_id, round, attempt, created_utc FROM reservations"
_NO_ROW = (0,)
_VOIDS = "SELECT count(*) FROM endings WHERE state = 'void'"


@dataclass(frozen=True)
class FirstRound:
    """What the first round charged to a run was, which all later ones keep to."""

    unit: Unit
    use: MechanismUse


def _less(uses: tuple[MechanismUse, ...], one: MechanismUse) -> tuple[MechanismUse, ...]:
    """Merged uses without one of them."""
    left = [
        replace(use, steps=use.steps - one.steps)
        if (use.noise_multiplier, use.sample_rate) == (one.noise_multiplier, one.sample_rate)
        else use
        for use in uses
    ]
    return tuple(use for use in left if use.steps)


@dataclass(frozen=True)
class History:
    """What one run, and all the others, have reserved for a data set; void rows left out."""

    num_rounds: int
    """charged to the run; its counts are none"""
    first: FirstRound | None
    counts: tuple[MechanismUse, ...]
    """the run's own"""
    others: tuple[MechanismUse, ...]
    before: tuple[MechanismUse, ...]
    """of the others, what came before this run's first row, void or not"""
    total: tuple[MechanismUse, ...]
    """of all runs, this one included"""

    def without(self, use: MechanismUse, *, is_counts: bool) -> "History":
        """The same before the run's last row, for whoever plans again what that row has paid for."""
        counts = _less(self.counts, use) if is_counts else self.counts
        return replace(self, num_rounds=self.num_rounds - (not is_counts), counts=counts, total=_less(self.total, use))


class _Alike(NamedTuple):
    """Rows of one run and data set that protect the same in the same way; the columns of _GROUPS and _NEWER."""

    run_id: str
    unit: Unit
    is_counts: int
    noise: float
    rate: float
    steps: int
    """of all of them"""
    num: int
    first_steps: int
    """of the first alone"""


@dataclass(frozen=True)
class _OfRun:
    """What one run has reserved for one data set."""

    rounds: Steps
    counts: Steps
    num_rounds: int
    first: FirstRound | None


_NOTHING = _OfRun({}, {}, 0, None)


@dataclass(frozen=True, eq=False)
class _Book:
    """What all runs have reserved for a data set, of which nothing changes: data sets with the same share one.

    Ten thousand sites of a federation have been charged the same in each round.
    """

    runs: dict[str, _OfRun]
    total: Steps
    uses: dict[Unit, tuple[MechanismUse, ...]] = field(default_factory=dict)
    """the total as it was asked for"""
    histories: dict[tuple[str, Unit, Before], History] = field(default_factory=dict)
    """as they were asked for"""
    _next: "WeakValueDictionary[_Alike, _Book]" = field(default_factory=WeakValueDictionary)
    """what this one became, for as long as a data set has it"""

    def with_rows(self, rows: _Alike) -> "_Book":
        """The book with rows that are alike, which come after all that are in it."""
        after = self._next.get(rows)
        if after is None:
            after = self._next[rows] = self._added(rows)
        return after

    def _added(self, rows: _Alike) -> "_Book":
        kind, run = (rows.unit, rows.noise, rows.rate), self.of_run(rows.run_id)
        if rows.is_counts:
            now = _OfRun(run.rounds, _plus(run.counts, kind, rows.steps), run.num_rounds, run.first)
        else:
            first = run.first or FirstRound(rows.unit, MechanismUse(rows.noise, rows.rate, rows.first_steps))
            now = _OfRun(_plus(run.rounds, kind, rows.steps), run.counts, run.num_rounds + rows.num, first)
        return _Book({**self.runs, rows.run_id: now}, _plus(self.total, kind, rows.steps))

    def of_run(self, run_id: str) -> _OfRun:
        """What one run has reserved; nothing, where it is not known."""
        return self.runs.get(run_id, _NOTHING)

    def others(self, run_id: str) -> Steps:
        """What all runs but one have reserved."""
        mine = self.of_run(run_id)
        left = {kind: steps - mine.rounds.get(kind, 0) - mine.counts.get(kind, 0) for kind, steps in self.total.items()}
        return {kind: steps for kind, steps in left.items() if steps}


def _plus(sums: Steps, kind: Kind, steps: int) -> Steps:
    return {**sums, kind: sums.get(kind, 0) + steps}


class Totals:
    """Sums over the rows of each data set that was asked about; for one transaction at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._nothing = _Book({}, {})
        self._books: dict[str, _Book] = {}
        self._before: dict[str, dict[str, Before]] = {}
        """by data set and run: what others had reserved when the run began, which later rows do not change"""
        self._last: tuple[object, ...] = _NO_ROW
        """the newest row taken in"""
        self._num_voids = 0

    def forget(self) -> None:
        """Drops all sums: the next question reads the file."""
        self._books, self._before, self._last, self._num_voids = {}, {}, _NO_ROW, 0

    def refresh(self, connection: sqlite3.Connection) -> None:
        """Takes in what was written since the transaction before; to be called when one begins."""
        (num_voids,) = connection.execute(_VOIDS).fetchone()
        known = connection.execute(f"{_LAST} WHERE id = ?", self._last[:1]).fetchone() or _NO_ROW
        # PRIVACY: sums are not trusted once another process gave a row back, or another file lies in place of this one.
        # test_totals_follow_what_others_write, test_totals_follow_a_ledger_that_was_put_back
        if (num_voids, known) != (self._num_voids, self._last):
            self.forget()
            self._num_voids = num_voids
        if self._books:
            for data_set, *columns in connection.execute(_NEWER, self._last[:1]):
                self._add(data_set, _Alike(*columns))
        self._last = connection.execute(f"{_LAST} ORDER BY id DESC LIMIT 1").fetchone() or _NO_ROW

    def note_row(
        self, row: tuple[int, str, str, int, int, str], *, unit: Unit, is_counts: bool, use: MechanismUse
    ) -> None:
        """Takes in a row that this transaction has just written: its id, data set, run, round, attempt and time."""
        self._last = row
        _, data_set, run_id, *_ = row
        how = (unit, is_counts, use.noise_multiplier, use.sample_rate, use.steps)
        self._add(data_set, _Alike(run_id, *how, 1, use.steps))

    def note_void(self, data_set: str) -> None:
        """A row of a data set became void in this transaction: its sums are read again when they are next needed."""
        self._books.pop(data_set, None)
        self._before.pop(data_set, None)
        self._num_voids += 1

    def uses(self, connection: sqlite3.Connection, data_set: str, *, unit: Unit) -> tuple[MechanismUse, ...]:
        """All that was ever reserved for a data set and is not void."""
        book = self._book(connection, data_set)
        if unit not in book.uses:
            book.uses[unit] = self._uses(data_set, book.total, unit=unit)
        return book.uses[unit]

    def uses_of_run(
        self, connection: sqlite3.Connection, data_set: str, run_id: str, *, unit: Unit
    ) -> tuple[MechanismUse, ...]:
        """What one run has reserved for it, rounds and counts."""
        mine = self._book(connection, data_set).of_run(run_id)
        return self._uses(data_set, mine.rounds, mine.counts, unit=unit)

    def history(self, connection: sqlite3.Connection, data_set: str, run_id: str, *, unit: Unit) -> History:
        """The data set as one run sees it; the same object until a row is added or made void."""
        book = self._book(connection, data_set)
        before = self._before_run(connection, book, data_set, run_id)
        known = book.histories.get((run_id, unit, before))
        if known is not None:
            return known
        mine = book.of_run(run_id)
        history = History(
            num_rounds=mine.num_rounds,
            first=mine.first,
            counts=self._uses(data_set, mine.counts, unit=unit),
            others=self._uses(data_set, book.others(run_id), unit=unit),
            before=self._uses(data_set, dict(before), unit=unit),
            total=self.uses(connection, data_set, unit=unit),
        )
        book.histories[run_id, unit, before] = history
        return history

    def _uses(self, data_set: str, *parts: Steps, unit: Unit) -> tuple[MechanismUse, ...]:
        if not any(parts):
            return ()
        try:
            return merged(
                [
                    protects(MechanismUse(noise, rate, steps), held=held, unit=unit)
                    for part in parts
                    for (held, noise, rate), steps in part.items()
                ]
            )
        except LedgerError as error:
            raise LedgerError(f"{self._path}: data set {data_set!r}: {error}") from None

    def _book(self, connection: sqlite3.Connection, data_set: str) -> _Book:
        book = self._books.get(data_set)
        if book is None:
            book = self._nothing
            for *columns, _ in connection.execute(_GROUPS, (data_set,)):
                book = book.with_rows(_Alike(*columns))
            self._books[data_set] = book
        return book

    def _add(self, data_set: str, rows: _Alike) -> None:
        book = self._books.get(data_set)
        if book is not None:
            self._books[data_set] = book.with_rows(rows)

    def _before_run(self, connection: sqlite3.Connection, book: _Book, data_set: str, run_id: str) -> Before:
        """Of the other runs' rows, those before a run's first one; all of them while it has none."""
        if book.runs.keys() <= {run_id}:
            return ()
        known = self._before.get(data_set, {}).get(run_id)
        if known is not None:
            return known
        (first,) = connection.execute(_FIRST, (data_set, run_id)).fetchone()
        if first is None:
            return _in_order(book.others(run_id))
        found = connection.execute(_BEFORE, (data_set, run_id, first))
        before = _in_order({(unit, noise, rate): steps for unit, noise, rate, steps in found})
        return self._before.setdefault(data_set, {}).setdefault(run_id, before)


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


def _in_order(sums: Steps) -> Before:
    return _one_object(tuple(sorted(sums.items())))


@lru_cache(maxsize=1024)
def _one_object(before: Before) -> Before:
    """The same for all data sets that have the same."""
    return before
