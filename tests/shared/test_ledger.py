"""Tests of shared/privacy/ledger.py: spent before used, never forgotten, composed over all runs, mechanisms and units."""

import itertools
import math
import sqlite3
import tempfile
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.config import Unit
from shared.errors import BudgetError, LedgerError, PermissionRefused, PrivacyError
from shared.privacy.accountant import MechanismUse, spent_epsilon
from shared.privacy.ledger import Ledger, Mechanism, Reservation, uses_of_rows
from shared.privacy.ledger_totals import protects

USE = MechanismUse(noise_multiplier=2.0, sample_rate=1.0, steps=1)
DELTA = 1e-5
ONE, TWO = (spent_epsilon([USE] * count, delta=DELTA, accountant="rdp") for count in (1, 2))
NONE = MechanismUse(0.0, 1.0, 1)


def reserve(
    ledger: Ledger,
    *,
    use: MechanismUse | None = USE,
    run_id: str = "run",
    round_number: int = 1,
    data_set: str = "photos",
    unit: Unit = "record",
    cap_epsilon: float = 100.0,
    attempt: int = 0,
    mechanism: Mechanism = "gaussian",
) -> Reservation:
    return ledger.reserve(
        data_set=data_set,
        unit=unit,
        use=use,
        run_id=run_id,
        round_number=round_number,
        cap_epsilon=cap_epsilon,
        delta=DELTA,
        accountant="rdp",
        attempt=attempt,
        mechanism=mechanism,
    )


def spent(path: Path, data_set: str = "photos") -> float:
    return Ledger(path).spent(data_set, unit="record", delta=DELTA, accountant="rdp")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "new folder" / "ledger.db"


def test_a_new_ledger_has_spent_nothing(path: Path) -> None:
    ledger = Ledger(path)

    assert ledger.spent("photos", unit="record", delta=DELTA, accountant="rdp") == 0
    assert ledger.uses("photos", unit="record") == ()
    assert path.stat().st_mode & 0o077 == 0


def test_a_reservation_counts_before_and_after_its_release(path: Path) -> None:
    ledger = Ledger(path)
    reservation = reserve(ledger)

    assert reservation.epsilon_spent == ONE
    assert spent(path) == ONE
    ledger.release(reservation)
    assert spent(path) == ONE
    assert Ledger(path).uses("photos", unit="record") == (USE,)


def test_every_run_on_a_data_set_counts(path: Path) -> None:
    ledger = Ledger(path)
    reserve(ledger, run_id="tuning")
    final = reserve(ledger, run_id="final")
    reserve(ledger, data_set="voices")

    assert final.epsilon_spent == TWO
    assert spent(path) == TWO
    assert spent(path, "voices") == ONE
    assert ledger.uses_of_run("photos", "final", unit="record") == (USE,)
    assert ledger.uses_of_run("photos", "never", unit="record") == ()


def test_what_other_runs_spent_is_told_apart(path: Path) -> None:
    """All of it, or what came before the run in question; a run that has not begun comes after all."""
    ledger, later = Ledger(path), MechanismUse(3.0, 0.5, 2)
    reserve(ledger, run_id="first")
    ledger.void(reserve(ledger, run_id="second"))
    reserve(ledger, run_id="third", use=later)
    reserve(ledger, run_id="second", round_number=2)
    reserve(ledger, data_set="voices", run_id="first")

    second, new = (ledger.history("photos", run_id, unit="record") for run_id in ("second", "new"))
    assert (second.others, second.before) == ((USE, later), (USE,))
    assert new.others == new.before == ledger.uses("photos", unit="record")


def test_a_request_past_the_cap_is_refused_and_writes_nothing(path: Path) -> None:
    ledger = Ledger(path)
    reserve(ledger, cap_epsilon=ONE)
    before = path.read_bytes()

    with pytest.raises(BudgetError, match="allows"):
        reserve(ledger, round_number=2, cap_epsilon=TWO * 0.999)
    assert path.read_bytes() == before
    assert reserve(ledger, round_number=2, cap_epsilon=TWO).epsilon_spent == TWO


def test_a_round_is_reserved_once(path: Path) -> None:
    ledger = Ledger(path)
    reservation = reserve(ledger)
    with pytest.raises(PermissionRefused, match="reserved before"):
        reserve(ledger)
    ledger.release(reservation)
    with pytest.raises(PermissionRefused, match="reserved before"):
        reserve(ledger)

    assert reserve(ledger, attempt=1).epsilon_spent == TWO


def test_a_reservation_is_released_once(path: Path) -> None:
    ledger = Ledger(path)
    reservation = reserve(ledger)
    ledger.release(reservation)

    with pytest.raises(PermissionRefused, match="already"):
        ledger.release(reservation)


def test_a_reservation_of_another_ledger_is_not_ended(path: Path, tmp_path: Path) -> None:
    """Neither where its number is unknown nor where it is another round's."""
    reservation, other = reserve(Ledger(path)), Ledger(tmp_path / "other.db")
    with pytest.raises(LedgerError, match="no reservation"):
        other.void(reservation)
    own = reserve(other, run_id="another")
    assert own.id == reservation.id

    for end in (other.release, other.void):
        with pytest.raises(LedgerError, match="belongs elsewhere"):
            end(reservation)
    assert other.rows("photos")[0].state == "reserved"


def test_a_void_row_does_not_count(path: Path) -> None:
    ledger = Ledger(path)
    kept, given_back = reserve(ledger), reserve(ledger, round_number=2)
    assert spent(path) == TWO
    ledger.void(given_back)

    assert spent(path) == ONE == kept.epsilon_spent
    assert ledger.uses_of_run("photos", "run", unit="record") == (USE,)
    assert reserve(ledger, round_number=3, cap_epsilon=TWO).epsilon_spent == TWO


def test_a_released_row_is_never_void(path: Path) -> None:
    ledger = Ledger(path)
    reservation = reserve(ledger)
    ledger.release(reservation)

    with pytest.raises(PermissionRefused, match="released already"):
        ledger.void(reservation)
    assert spent(path) == ONE


def test_a_void_row_pays_for_nothing(path: Path) -> None:
    """It is neither released nor given back twice, and its round needs a higher attempt."""
    ledger = Ledger(path)
    reservation = reserve(ledger)
    ledger.void(reservation)

    for end in (ledger.release, ledger.void):
        with pytest.raises(PermissionRefused, match="void already"):
            end(reservation)
    with pytest.raises(PermissionRefused, match="attempt 1 or higher"):
        reserve(ledger)
    assert reserve(ledger, attempt=1).epsilon_spent == ONE


def test_an_earlier_attempt_is_not_granted_after_a_later_one(path: Path) -> None:
    ledger = Ledger(path)
    reserve(ledger, attempt=3)

    with pytest.raises(PermissionRefused, match="attempt 4 or higher"):
        reserve(ledger, attempt=2)
    assert spent(path) == ONE


def test_a_round_without_privacy_costs_infinity_for_ever(path: Path) -> None:
    ledger = Ledger(path)
    assert reserve(ledger, use=None, cap_epsilon=1.0).epsilon_spent == math.inf

    assert spent(path) == math.inf
    assert ledger.uses("photos", unit="record") == (NONE,)
    assert ledger.rows("photos")[0].mechanism == "none"
    with pytest.raises(BudgetError):
        reserve(ledger, round_number=2, cap_epsilon=1e9)
    assert reserve(ledger, data_set="voices").epsilon_spent == ONE


def test_rows_can_be_neither_changed_nor_deleted(path: Path) -> None:
    ledger = Ledger(path)
    ledger.release(reserve(ledger))
    with sqlite3.connect(path) as connection:
        for statement in (
            "UPDATE reservations SET noise_multiplier = 1000",
            "DELETE FROM reservations",
            "UPDATE endings SET state = 'void'",
            "DELETE FROM endings",
        ):
            with pytest.raises(sqlite3.IntegrityError, match="only grows"):
                connection.execute(statement)
    connection.close()

    assert spent(path) == ONE


def test_many_rounds_compose_as_one_mechanism(path: Path) -> None:
    ledger = Ledger(path)
    for number in range(25):
        last = reserve(ledger, round_number=number)
    together = MechanismUse(USE.noise_multiplier, USE.sample_rate, 25)

    assert last.epsilon_spent == spent_epsilon([together], delta=DELTA, accountant="rdp")


def test_a_use_and_its_mechanism_belong_together(path: Path) -> None:
    ledger = Ledger(path)
    for use in (USE, MechanismUse(2.0, 1.0, 0)):
        with pytest.raises(PrivacyError):
            reserve(ledger, use=use, mechanism="none" if use is USE else "gaussian")
    assert ledger.rows("photos") == ()


def test_rows_tell_what_was_done_and_what_became_of_it(path: Path) -> None:
    ledger = Ledger(path)
    counts = MechanismUse(5.0, 1.0, 1)
    reserve(ledger, use=counts, round_number=0, mechanism="counts")
    ledger.release(reserve(ledger, mechanism="adaptive-gaussian"))
    ledger.void(reserve(ledger, run_id="other", attempt=2))
    rows = ledger.rows("photos")

    assert [(row.round_number, row.attempt, row.mechanism, row.state) for row in rows] == [
        (0, 0, "counts", "reserved"),
        (1, 0, "adaptive-gaussian", "released"),
        (1, 2, "gaussian", "void"),
    ]
    assert rows[0].use == counts
    assert rows[0].ended_utc is None
    assert rows[1].ended_utc is not None
    assert ledger.rows("photos", run_id="other") == rows[2:]
    assert ledger.uses("photos", unit="record") == (USE, counts)
    assert (ledger.data_sets(), ledger.rows("voices")) == (("photos",), ())


def test_units_convert_as_computed_by_hand(path: Path) -> None:
    """A record moves its subject's contribution by up to two clip norms: 3 steps are one Gaussian of mu = sqrt(3) / 2.

    Golden: Dong, Roth, Su 2022, corollary 1: delta = Phi(mu/2 - eps/mu) - exp(eps) Phi(-mu/2 - eps/mu).
    """
    ledger = Ledger(path)
    reserve(ledger, use=MechanismUse(4.0, 0.1, 3), unit="subject")
    assert ledger.uses("photos", unit="subject") == (MechanismUse(4.0, 0.1, 3),)
    assert ledger.uses("photos", unit="record") == (MechanismUse(2.0, 1.0, 3),)

    epsilon, mu = ledger.spent("photos", unit="record", delta=DELTA, accountant="pld"), math.sqrt(3) / 2
    below, above = (0.5 * math.erfc(-(sign * mu / 2 - epsilon / mu) / math.sqrt(2)) for sign in (1, -1))
    assert below - math.exp(epsilon) * above == pytest.approx(DELTA, rel=1e-3)
    assert epsilon > ledger.spent("photos", unit="subject", delta=DELTA, accountant="pld")


def test_rows_for_records_say_nothing_about_subjects(path: Path) -> None:
    ledger = Ledger(path)
    reserve(ledger)
    assert ledger.spent("photos", unit="subject", delta=DELTA, accountant="rdp") == math.inf

    with pytest.raises(BudgetError):
        reserve(ledger, round_number=2, unit="subject", cap_epsilon=1e9)
    # the other way round they count, with half the noise: 2 / 2 for the one, 2 for the other
    reserve(ledger, data_set="voices", unit="subject")
    mixed = reserve(ledger, data_set="voices", round_number=2)
    both = (MechanismUse(1.0, 1.0, 1), USE)
    assert mixed.epsilon_spent == spent_epsilon(both, delta=DELTA, accountant="rdp")


def test_rows_of_sites_and_rows_of_a_sites_data_do_not_mix(path: Path) -> None:
    ledger = Ledger(path)
    reserve(ledger, data_set="federation", unit="site")
    reserve(ledger)
    before = path.read_bytes()

    units: tuple[Unit, ...] = ("record", "subject", "site")
    for data_set, unit in itertools.product(("federation", "photos"), units):
        if (data_set == "federation") == (unit == "site"):
            continue
        with pytest.raises(LedgerError, match="federation whose sites"):
            reserve(ledger, data_set=data_set, unit=unit, round_number=2)
        with pytest.raises(LedgerError, match="federation whose sites"):
            ledger.uses(data_set, unit=unit)
    assert path.read_bytes() == before
    assert ledger.spent("federation", unit="site", delta=DELTA, accountant="rdp") == ONE


def test_a_ledger_that_is_not_there_is_not_begun_by_looking(path: Path) -> None:
    with pytest.raises(LedgerError, match="no such file"):
        Ledger.existing(path)
    assert not path.parent.exists()

    ledger = Ledger(path)
    reserve(ledger)
    assert Ledger.existing(path).data_sets() == ("photos",)
    path.unlink()
    with pytest.raises(LedgerError):
        ledger.spent("photos", unit="record", delta=DELTA, accountant="rdp")
    assert not path.exists()


USES = st.builds(
    MechanismUse, st.sampled_from((0.7, 1.0, 2.0, 4.0)), st.sampled_from((0.1, 1.0)), st.integers(1, 5)
)  # few mechanisms, so that many are equal
UNITS: st.SearchStrategy[Unit] = st.sampled_from(("record", "subject"))


@settings(deadline=None, max_examples=15)
@given(st.lists(st.tuples(USES, UNITS, st.booleans()), max_size=8), st.randoms(use_true_random=False))
def test_the_totals_of_the_file_are_those_of_its_rows(
    rows: list[tuple[MechanismUse, Unit, bool]], random: Random
) -> None:
    """Merged by SQL or row by row, in either order: the same uses, and no void one among them."""
    with tempfile.TemporaryDirectory() as folder:
        first, second = Ledger(Path(folder) / "first.db"), Ledger(Path(folder) / "second.db")
        shuffled = random.sample(rows, len(rows))
        for ledger, order in ((first, rows), (second, shuffled)):
            for number, (use, unit, is_void) in enumerate(order):
                row = reserve(ledger, use=use, unit=unit, round_number=number, cap_epsilon=math.inf)
                if is_void:
                    ledger.void(row)
        for unit in ("record", "subject"):
            counted = [protects(use, held=held, unit=unit) for use, held, is_void in rows if not is_void]
            uses = first.uses("photos", unit=unit)
            assert uses == second.uses("photos", unit=unit) == uses_of_rows(first.rows("photos"), unit=unit)
            assert len({(use.noise_multiplier, use.sample_rate) for use in uses}) == len(uses)
            assert sum(use.steps for use in uses) == sum(use.steps for use in counted)
            one_by_one = spent_epsilon(counted, delta=DELTA, accountant="rdp")
            assert spent_epsilon(uses, delta=DELTA, accountant="rdp") == one_by_one


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(USES, UNITS), max_size=6), st.tuples(USES, UNITS), UNITS)
def test_one_more_row_never_costs_less(
    rows: list[tuple[MechanismUse, Unit]], more: tuple[MechanismUse, Unit], unit: Unit
) -> None:
    def total(held: list[tuple[MechanismUse, Unit]]) -> float:
        uses = [protects(use, held=each, unit=unit) for use, each in held]
        return spent_epsilon(uses, delta=DELTA, accountant="rdp")

    assert total([*rows, more]) >= total(rows)
