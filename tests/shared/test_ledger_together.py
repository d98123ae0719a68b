"""Tests of many ledger entries in one transaction, and of the sums that are kept between transactions."""

import dataclasses
import functools
import math
import shutil
import sqlite3
import tempfile
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.config import Unit
from shared.errors import BudgetError, LedgerError, PermissionRefused
from shared.privacy.accountant import MechanismUse, merged, spent_epsilon
from shared.privacy.ledger import Ledger, Mechanism, Pending, Reservation, uses_of_rows
from shared.privacy.ledger_totals import FirstRound, History
from shared.privacy.ledger_transaction import OpenLedger

USE = MechanismUse(noise_multiplier=2.0, sample_rate=1.0, steps=1)
DELTA = 1e-5
ONE, TWO = (spent_epsilon([USE] * count, delta=DELTA, accountant="rdp") for count in (1, 2))


def reserve(
    opened: OpenLedger,
    data_set: str,
    *,
    round_number: int = 1,
    cap_epsilon: float = math.inf,
    use: MechanismUse | None = USE,
    run_id: str = "run",
    unit: Unit = "record",
    mechanism: Mechanism = "gaussian",
) -> Pending:
    return opened.reserve(
        data_set=data_set, unit=unit, use=use, run_id=run_id, round_number=round_number, cap_epsilon=cap_epsilon,
        delta=DELTA, accountant="rdp", mechanism=mechanism,
    )  # fmt: skip


def reserve_alone(ledger: Ledger, data_set: str, *, round_number: int = 1) -> Reservation:
    with ledger.together() as opened:
        pending = reserve(opened, data_set, round_number=round_number)
    return pending.paid


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


def test_what_is_reserved_together_is_paid_at_the_end(path: Path) -> None:
    ledger = Ledger(path)
    with ledger.together() as opened:
        pending = [reserve(opened, "photos"), reserve(opened, "voices")]
        for each in pending:
            with pytest.raises(LedgerError, match="not on the disk"):
                _ = each.paid
        # another connection, as after a crash
        assert Ledger(path).data_sets() == ()

    assert [each.paid.data_set for each in pending] == ["photos", "voices"]
    assert [each.paid.epsilon_spent for each in pending] == [ONE, ONE]
    assert Ledger(path).data_sets() == ("photos", "voices")


def test_a_refusal_among_many_leaves_the_others(path: Path) -> None:
    ledger = Ledger(path)
    reserve_alone(ledger, "spent")
    with ledger.together() as opened:
        first = reserve(opened, "photos")
        with pytest.raises(BudgetError):
            reserve(opened, "spent", round_number=2, cap_epsilon=ONE)
        with pytest.raises(PermissionRefused):
            reserve(opened, "spent")
        with pytest.raises(LedgerError, match="federation whose sites"):
            reserve(opened, "spent", round_number=2, unit="site")
        last = reserve(opened, "voices")

    assert [each.paid.data_set for each in (first, last)] == ["photos", "voices"]
    assert [len(Ledger(path).rows(name)) for name in ("spent", "photos", "voices")] == [1, 1, 1]


def test_an_error_that_leaves_the_transaction_undoes_all_of_it(path: Path) -> None:
    ledger = Ledger(path)
    kept = reserve_alone(ledger, "photos")
    pending = []

    def broken() -> None:
        with ledger.together() as opened:
            pending.append(reserve(opened, "photos", round_number=2))
            opened.release(kept)
            _ = 1 / 0

    with pytest.raises(ZeroDivisionError):
        broken()
    with pytest.raises(LedgerError, match="not on the disk"):
        _ = pending[0].paid
    assert [row.state for row in Ledger(path).rows("photos")] == ["reserved"]
    # nor is what was undone remembered
    assert ledger.uses("photos", unit="record") == (USE,)
    assert reserve_alone(ledger, "photos", round_number=2).epsilon_spent == TWO


def test_rows_of_one_data_set_count_within_the_transaction(path: Path) -> None:
    """Two sites that name the same data set cannot both take the last of its budget."""
    with Ledger(path).together() as opened:
        reserve(opened, "photos", cap_epsilon=ONE)
        with pytest.raises(BudgetError):
            reserve(opened, "photos", round_number=2, cap_epsilon=TWO * 0.999)
        assert reserve(opened, "photos", round_number=2, cap_epsilon=TWO)


def test_many_are_released_and_given_back_together(path: Path) -> None:
    ledger = Ledger(path)
    with ledger.together() as opened:
        pending = [reserve(opened, name) for name in ("photos", "voices")]
    with ledger.together() as opened:
        opened.release(pending[0].paid)
        opened.void(pending[1].paid)
        assert opened.uses("voices", unit="record") == ()
        with pytest.raises(PermissionRefused, match="released already"):
            opened.void(pending[0].paid)

    assert [Ledger(path).rows(name)[0].state for name in ("photos", "voices")] == ["released", "void"]
    assert ledger.uses("photos", unit="record") == (USE,)


def test_totals_follow_a_ledger_that_was_put_back(path: Path, tmp_path: Path) -> None:
    """An older copy in the file's place, which has grown since to as many rows."""
    ledger = Ledger(path)
    reserve_alone(ledger, "photos")
    shutil.copy(path, tmp_path / "copy")
    reserve_alone(ledger, "photos", round_number=2)
    assert ledger.uses("photos", unit="record") == (MechanismUse(2.0, 1.0, 2),)
    shutil.copy(tmp_path / "copy", path)
    assert ledger.uses("photos", unit="record") == (USE,)

    reserve_alone(ledger, "photos", round_number=2)
    shutil.copy(tmp_path / "copy", path)
    reserve_alone(Ledger(path), "voices")
    assert ledger.uses("photos", unit="record") == (USE,)


def test_whoever_comes_second_reads_the_file(path: Path) -> None:
    """From inside a transaction and from another thread: what is not committed is not seen, nor forgotten later."""
    ledger = Ledger(path)
    reserve_alone(ledger, "photos")
    seen: list[object] = []
    with ledger.together() as opened:
        reserve(opened, "photos", round_number=2)
        seen.append(ledger.uses("photos", unit="record"))
        thread = threading.Thread(target=lambda: seen.append(ledger.uses("photos", unit="record")))
        thread.start()
        thread.join()
        assert opened.uses("photos", unit="record") == (MechanismUse(2.0, 1.0, 2),)

    assert seen == [(USE,), (USE,)]
    assert ledger.uses("photos", unit="record") == Ledger(path).uses("photos", unit="record")


def history_of_rows(ledger: Ledger, run_id: str, *, unit: Unit) -> History:
    """The same from every row, one by one."""
    rows = ledger.rows("photos")
    mine = [row for row in rows if row.run_id == run_id]
    begun = min((row.id for row in mine), default=len(rows) + 1)
    rounds = [row for row in mine if row.state != "void" and row.mechanism != "counts"]
    return History(
        num_rounds=len(rounds),
        first=FirstRound(rounds[0].unit, rounds[0].use) if rounds else None,
        counts=uses_of_rows([row for row in mine if row.mechanism == "counts"], unit=unit),
        others=uses_of_rows([row for row in rows if row.run_id != run_id], unit=unit),
        before=uses_of_rows([row for row in rows if row.run_id != run_id and row.id < begun], unit=unit),
        total=uses_of_rows(rows, unit=unit),
    )


USES = st.builds(MechanismUse, st.sampled_from((1.0, 2.0)), st.sampled_from((0.1, 1.0)), st.integers(1, 3))
UNITS: st.SearchStrategy[Unit] = st.sampled_from(("record", "subject"))
MECHANISMS: st.SearchStrategy[Mechanism] = st.sampled_from(("gaussian", "counts"))
ROWS = st.tuples(st.integers(0, 1), st.sampled_from("rs"), USES, UNITS, MECHANISMS, st.booleans())


@settings(deadline=None, max_examples=15)
@given(st.lists(ROWS, min_size=1, max_size=6))
def test_totals_follow_what_others_write(rows: list[tuple[int, str, MechanismUse, Unit, Mechanism, bool]]) -> None:
    """Two processes write to one file in turn: what each remembers is at every time what all rows say."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ledger.db"
        ledgers = (Ledger(path), Ledger(path))
        for number, (who, run_id, use, unit, mechanism, is_void) in enumerate(rows):
            with ledgers[who].together() as opened:
                pending = reserve(
                    opened, "photos", round_number=number, use=use, run_id=run_id, unit=unit, mechanism=mechanism
                )
            if is_void:
                ledgers[1 - who].void(pending.paid)
            for ledger, asked in zip(ledgers, "rs", strict=True):
                with ledger.together(write=False) as opened:
                    history = opened.history("photos", asked, unit="record")
                    mine = opened.uses_of_run("photos", asked, unit="record")
                    assert merged([*mine, *history.others]) == opened.uses("photos", unit="record")
                assert history == history_of_rows(ledger, asked, unit="record")


def test_a_round_of_many_data_sets_takes_a_handful_of_statements(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many for sixty as for six; one after another it would be several for each."""
    said: list[str] = []

    class Counted(sqlite3.Connection):
        def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
            said.append(sql)
            return super().execute(sql, *values)

        def executemany(self, sql: str, *values: Any) -> sqlite3.Cursor:
            said.append(sql)
            return super().executemany(sql, *values)

    ledger, names = Ledger(path), [f"set-{number}" for number in range(60)]
    with ledger.together(write=False) as opened:
        assert [opened.uses(name, unit="record") for name in names] == [()] * 60
    monkeypatch.setattr(sqlite3, "connect", functools.partial(sqlite3.connect, factory=Counted))
    counts = []
    for number, some in enumerate((names[:6], names), start=1):
        said.clear()
        with ledger.together() as opened:
            opened.look_up((name, "run", number) for name in some)
            pending = [reserve(opened, name, round_number=number) for name in some]
        with ledger.together() as opened:
            opened.release(*(each.paid for each in pending))
        counts.append(len(said))
    assert counts[0] == counts[1] < 30
    assert {row.state for name in names for row in Ledger(path).rows(name)} == {"released"}


def test_what_is_looked_up_is_refused_as_what_is_not(path: Path) -> None:
    """A round of before, one of this very transaction, and one with a higher attempt; numbers are those on the disk."""
    ledger = Ledger(path)
    reserve_alone(ledger, "photos")
    with ledger.together() as opened:
        opened.look_up([("photos", "run", 1), ("voices", "run", 1)])
        with pytest.raises(PermissionRefused, match="attempt 1 or higher"):
            reserve(opened, "photos")
        voices = reserve(opened, "voices")
        with pytest.raises(PermissionRefused, match="attempt 1 or higher"):
            reserve(opened, "voices")
        opened.look_up([("voices", "run", 1)])
        with pytest.raises(PermissionRefused, match="attempt 1 or higher"):
            reserve(opened, "voices")
        again = opened.reserve(
            data_set="photos", unit="record", use=USE, run_id="run", round_number=1, attempt=1, cap_epsilon=math.inf,
            delta=DELTA, accountant="rdp",
        )  # fmt: skip
    for pending, attempts in ((voices, [0]), (again, [0, 1])):
        rows = Ledger(path).rows(pending.paid.data_set)
        assert [row.attempt for row in rows] == attempts
        assert rows[-1].id == pending.paid.id


def test_a_number_is_never_given_twice(path: Path) -> None:
    """Not after a transaction that was undone, nor to two rows of one."""
    ledger = Ledger(path)

    def broken() -> None:
        with ledger.together() as opened:
            reserve(opened, "photos")
            opened.write_down()
            _ = 1 / 0

    with pytest.raises(ZeroDivisionError):
        broken()
    with ledger.together() as opened:
        pending = [reserve(opened, "photos", round_number=number) for number in (1, 2)]
        # what reads the rows finds those of this transaction
        assert opened.history("photos", "another", unit="record").before == (MechanismUse(2.0, 1.0, 2),)
        pending.append(reserve(opened, "photos", round_number=3))
    assert [row.id for row in Ledger(path).rows("photos")] == [each.paid.id for each in pending] == [1, 2, 3]


def test_of_many_that_cannot_all_be_released_none_is(path: Path) -> None:
    ledger = Ledger(path)
    first, second = reserve_alone(ledger, "photos"), reserve_alone(ledger, "voices")
    strangers = [
        (PermissionRefused, "released already", second),
        (LedgerError, "belongs elsewhere", dataclasses.replace(second, id=9)),
        (LedgerError, "belongs elsewhere", dataclasses.replace(second, run_id="another")),
    ]
    for error, words, third in strangers:
        with pytest.raises(error, match=words), ledger.together() as opened:
            opened.release(first, second, third)
        assert [Ledger(path).rows(name)[0].state for name in ("photos", "voices")] == ["reserved"] * 2
    ledger.release(second)
    with ledger.together() as opened, pytest.raises(PermissionRefused, match="released already"):
        opened.release(first, second)
    assert [Ledger(path).rows(name)[0].state for name in ("photos", "voices")] == ["reserved", "released"]


def test_data_sets_that_were_charged_the_same_share_their_history(path: Path) -> None:
    """And part when one of them is charged otherwise, or has a row given back."""
    ledger, names = Ledger(path), ("photos", "voices", "words")
    with ledger.together() as opened:
        pending = [reserve(opened, name) for name in names]
    for number, are_same in enumerate((True, False)):
        with ledger.together(write=False) as opened:
            one, *others = (opened.history(name, "run", unit="record") for name in names)
            assert all((one is other) == are_same for other in others)
        if not number:
            ledger.void(pending[1].paid)
            reserve_alone(ledger, "words", round_number=2)
    with ledger.together(write=False) as opened:
        assert [opened.history(name, "run", unit="record").num_rounds for name in names] == [1, 0, 2]
