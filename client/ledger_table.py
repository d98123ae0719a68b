"""Ledger table: a budget as its owner reads it on a terminal.

in        Budget or LedgerListing from ledger.py
out       tables of rich
relies on nothing else; what it shows stays on this screen
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from client.ledger import Budget, LedgerListing, Part
from client.outlook import Outlook
from shared.privacy.ledger import State

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

STAYS_HERE = "Run names and dates are yours; nothing of this is sent to anybody."


def render_budget(budget: Budget) -> "RenderableType":
    """Cap, spent and left; by run and by month; what a run would cost, where one was asked about."""
    from rich.console import Group
    from rich.markup import escape

    table = _table(f"budget of {budget.data_set}", "what", "epsilon")
    table.add_row(f"cap, for a {budget.unit}, at delta {budget.delta:g}", _epsilon(budget.cap_epsilon))
    table.add_row(f"spent ({budget.accountant})", _epsilon(budget.spent_epsilon))
    table.add_row("left", _epsilon(budget.left_epsilon), end_section=True)
    table.add_row("rows", _rows(budget.rows))
    table.caption = escape(_caption(budget))
    shown: list[RenderableType] = [table]
    for title, parts in (("run", budget.runs), ("month", budget.months)):
        if parts:
            shown.append(_parts(title, parts))
    if budget.outlook is not None:
        shown.append(_outlook(budget.outlook, cap=budget.cap_epsilon))
    return Group(*shown)


def render_listing(listing: LedgerListing) -> "RenderableType":
    """Every data set of a ledger, a row each."""
    from rich.markup import escape

    title = f"{listing.ledger} at delta {listing.delta:g} ({listing.accountant})"
    table = _table(title, "data set", "epsilon", "unit", "rows", "last")
    for each in listing.data_sets:
        table.add_row(escape(each.data_set), _epsilon(each.epsilon), each.unit, _rows(each.rows), _day(each.last_utc))
    table.caption = STAYS_HERE if listing.data_sets else "It holds no data set yet: nothing was spent."
    return table


def _caption(budget: Budget) -> str:
    lines = [STAYS_HERE]
    if not budget.is_begun:
        lines.append(f"There is no ledger at {budget.ledger} yet: nothing was spent.")
    elif not sum(budget.rows.values()) and budget.others:
        held = ", ".join(budget.others[:5]) + (" ..." if len(budget.others) > 5 else "")
        lines.append(
            f"The ledger holds nothing under this name, but {held}. Was data_set renamed? What was spent under the old "
            "name is spent."
        )
    if math.isinf(budget.spent_epsilon):
        lines.append(
            f"Spent without bound: a round ran without noise, or protected less than a {budget.unit}. No further "
            "private round is granted."
        )
    return "\n".join(lines)


def _parts(title: str, parts: Sequence[Part]) -> "Table":
    from rich.markup import escape

    table = _table("", title, "epsilon", "rounds", "first", "last")
    for part in parts:
        table.add_row(
            escape(part.name), _epsilon(part.epsilon), str(part.rounds), _day(part.first_utc), _day(part.last_utc)
        )
    table.caption = "Each by itself; they do not add up to what was spent in all."
    return table


def _outlook(outlook: Outlook, *, cap: float) -> "Table":
    from rich.markup import escape

    table = _table(f"run {outlook.run}, were it to begin now", "what", "")
    table.add_row("what happens", escape(outlook.what_happens))
    if outlook.noise_multiplier is not None:
        table.add_row("noise multiplier", f"{outlook.noise_multiplier:.4g}")
    if outlook.counts_epsilon is not None:
        table.add_row("noisy counts before it add", _epsilon(outlook.counts_epsilon))
    if outlook.next_round_epsilon is not None:
        table.add_row("its next round adds", _epsilon(outlook.next_round_epsilon))
    table.add_row("rounds that fit", f"{outlook.rounds_that_fit} of {outlook.planned_rounds}")
    if outlook.total_epsilon is not None:
        table.add_row("spent in all after them", f"{_epsilon(outlook.total_epsilon)} of {cap:g}")
    table.caption = f"For a {outlook.unit}, at delta {outlook.delta:g}, by {outlook.accountant}; asked in every round."
    return table


def _table(title: str, *columns: str) -> "Table":
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(title) or None, title_justify="left", caption_justify="left", min_width=60)
    for column in columns:
        table.add_column(column, justify="right" if column in {"epsilon", "rounds"} else "left")
    return table


def _rows(rows: Mapping[State, int]) -> str:
    return ", ".join(f"{count} {state}" for state, count in rows.items() if count) or "none"


def _epsilon(value: float) -> str:
    return "infinite" if math.isinf(value) else f"{value:.4g}"


def _day(utc: str) -> str:
    return utc[:10]
