"""Budget: what an owner wants to know of the ledger: spent, left, by run and month, and what a run would cost here.

in        site.toml, the ledger it names, a run that somebody asks for; or a ledger file alone
out       Budget and LedgerListing, which `motet budget` prints through ledger_table.py
relies on shared/privacy/ledger.py for the rows, outlook.py for the run; nothing is charged here

What it shows is the owner's: run names and dates stand in it. Nothing of it is sent to anybody.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import get_args

from client.outlook import Epsilon, Outlook, outlook_of
from client.resident.ledger_mark import read_mark, unforgetting
from client.site import ShortBudget, SiteConfig, read_site
from shared.config import RunConfig, Unit
from shared.privacy.accountant import Accountant, MechanismUse, spent_epsilon
from shared.privacy.ledger import Ledger, LedgerRow, State, uses_of_rows
from shared.settings import Settings


class Part(Settings):
    """The rows of one run, or of one month. Its epsilon is of these alone: parts do not add up to the whole."""

    name: str
    """the run's id; the month as 2026-11"""
    rounds: int
    """rows that count: reserved or released"""
    epsilon: Epsilon
    first_utc: str
    last_utc: str


class Budget(Settings):
    """One data set's budget as its owner's ledger has it."""

    site: str
    data_set: str
    ledger: str
    is_begun: bool
    """False: there is no ledger file yet, so nothing was spent"""
    others: tuple[str, ...]
    """further data sets in the same ledger"""
    unit: Unit
    delta: float
    accountant: Accountant
    cap_epsilon: float
    spent_epsilon: Epsilon
    left_epsilon: float
    """cap minus spent; what fits into it is not found by division, as epsilons do not add up"""
    rows: dict[State, int]
    runs: tuple[Part, ...]
    months: tuple[Part, ...]
    on_short_budget: ShortBudget
    outlook: Outlook | None


class DataSetSpending(Settings):
    """What one data set of a ledger has spent, at the weakest unit among its rows."""

    data_set: str
    unit: Unit
    epsilon: Epsilon
    rows: dict[State, int]
    first_utc: str
    last_utc: str


class LedgerListing(Settings):
    """Every data set of one ledger file."""

    ledger: str
    delta: float
    accountant: Accountant
    data_sets: tuple[DataSetSpending, ...]


def budget_of(site_file: Path, *, plan: RunConfig | None, accountant: Accountant = "pld") -> Budget:
    """The budget of the data set that an owner's settings name; a ledger that is not there yet is not begun.

    Args:
        plan: a run whose cost here is asked.

    Raises:
        ConfigError: the owner's settings are not allowed.
        LedgerError: the ledger is damaged, newer than this program, or no ledger; or it was removed or set back since
            the site agent was granted something in it.
    """
    site = read_site(site_file)
    _refuse_forgetting(site)
    unit, is_begun = site.privacy.unit, site.ledger.exists()
    ledger = Ledger.existing(site.ledger) if is_begun else None
    rows = ledger.rows(site.data_set) if ledger else ()
    uses = uses_of_rows(rows, unit=unit)

    def epsilon(part: Sequence[MechanismUse]) -> float:
        return spent_epsilon(part, delta=site.privacy.delta, accountant=accountant)

    spent = epsilon(uses)
    return Budget(
        site=site.name,
        data_set=site.data_set,
        ledger=str(site.ledger),
        is_begun=is_begun,
        others=tuple(name for name in (ledger.data_sets() if ledger else ()) if name != site.data_set),
        unit=unit,
        delta=site.privacy.delta,
        accountant=accountant,
        cap_epsilon=site.privacy.epsilon,
        spent_epsilon=spent,
        left_epsilon=max(0.0, site.privacy.epsilon - spent),
        rows=_by_state(rows),
        runs=_parts(rows, key=lambda row: row.run_id, unit=unit, epsilon=epsilon),
        months=_parts(rows, key=lambda row: row.created_utc[:7], unit=unit, epsilon=epsilon),
        on_short_budget=site.privacy.on_short_budget,
        outlook=outlook_of(plan, site=site, before=uses) if plan else None,
    )


def list_ledger(path: Path, *, delta: float, accountant: Accountant = "pld") -> LedgerListing:
    """Every data set of a ledger file, with what all its rows together cost.

    Raises:
        LedgerError: the file is missing, damaged, newer than this program, or no ledger.
    """
    ledger, found = Ledger.existing(path), []
    for name in ledger.data_sets():
        rows = ledger.rows(name)
        units = {row.unit for row in rows}
        # the only unit about which all rows say something: what protects a subject protects its records
        unit: Unit = "site" if "site" in units else "record" if "record" in units else "subject"
        epsilon = spent_epsilon(ledger.uses(name, unit=unit), delta=delta, accountant=accountant)
        found.append(
            DataSetSpending(
                data_set=name,
                unit=unit,
                epsilon=epsilon,
                rows=_by_state(rows),
                first_utc=rows[0].created_utc,
                last_utc=rows[-1].created_utc,
            )
        )
    return LedgerListing(ledger=str(path), delta=delta, accountant=accountant, data_sets=tuple(found))


def _refuse_forgetting(site: SiteConfig) -> None:
    if (mark := read_mark(site.agent.answers, data_set=site.data_set)) is not None:
        unforgetting(site.ledger, granted=[mark], folder=site.agent.answers, open_ledger=Ledger.existing)


def _by_state(rows: Iterable[LedgerRow]) -> dict[State, int]:
    counts = Counter(row.state for row in rows)
    return {state: counts[state] for state in get_args(State)}


def _parts(
    rows: Sequence[LedgerRow],
    *,
    key: Callable[[LedgerRow], str],
    unit: Unit,
    epsilon: Callable[[Sequence[MechanismUse]], float],
) -> tuple[Part, ...]:
    """Rows that count, by a key, in the order in which the keys first appear."""
    groups: dict[str, list[LedgerRow]] = {}
    for row in rows:
        if row.state != "void":
            groups.setdefault(key(row), []).append(row)
    return tuple(
        Part(
            name=name,
            rounds=len(members),
            epsilon=epsilon(uses_of_rows(members, unit=unit)),
            first_utc=members[0].created_utc,
            last_utc=members[-1].created_utc,
        )
        for name, members in groups.items()
    )
