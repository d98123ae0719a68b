"""Verify table: what came of a verification, for the terminal.

in        a Verification
out       a row for each site, or for each number, and a sentence for everything that is not the same
relies on verify.py for every verdict
"""

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from server.report.checks import Check
from server.report.verify import Verification

_STYLES = {"same": "green", "differs": "bold red", "not checked": "bold yellow", "told": "dim"}


def verification_table(result: Verification, *, every: bool) -> RenderableType:
    """The checks and the verdict on the whole.

    Args:
        result: of one run folder.
        every: a row for every number; else one for each site and for the run, and the numbers that are not the same.
    """
    lines = [
        Text(f"{check.verdict}: {check.name}{f' ({check.note})' if check.note else ''}", style=_STYLES[check.verdict])
        for check in result.checks
        if check.verdict != "same"
    ]
    if result.is_sound:
        lines += [Text(f"All {len(result.checks)} numbers agree with the run folder and the ledgers.", style="green")]
    return Group(_all_rows(result.checks) if every else _summary(result), *lines)


def _summary(result: Verification) -> Table:
    table = _table("Every privacy number of the report, computed again (--all: each in a row)", "of")
    for name in ("numbers", "same", "not the same"):
        table.add_column(name, justify="right")
    groups: dict[str, list[Check]] = {}
    for check in result.checks:
        groups.setdefault(_site_of(check, sites=result.sites), []).append(check)
    for group, checks in groups.items():
        agreed = sum(check.verdict == "same" for check in checks)
        other = len(checks) - agreed
        table.add_row(Text(group), f"{len(checks)}", f"{agreed}", f"{other}" if other else "")
    return table


def _site_of(check: Check, *, sites: Sequence[str]) -> str:
    """The site that a check is about; a name can begin with another's, so the longest counts."""
    known = [site for site in sites if check.name.startswith((f"{site}.", f"{site}:"))]
    return max(known, key=len, default="the run and its files")


def _all_rows(checks: Sequence[Check]) -> Table:
    table = _table("Every privacy number of the report, computed again", "number")
    for name in ("stated", "recomputed", "difference"):
        table.add_column(name, no_wrap=True, justify="right")
    table.add_column("verdict", no_wrap=True)
    for check in checks:
        verdict = Text(check.verdict, style=_STYLES[check.verdict])
        table.add_row(Text(check.name), Text(check.stated), Text(check.found), check.difference, verdict)
    return table


def _table(title: str, first: str) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column(first, overflow="fold", min_width=24)
    return table
