"""Closing: what a run came to, as a table for the terminal.

in        a RunRecord and the folder its report lies in
out       something rich can print
relies on numbers.py for how numbers are written
"""

from pathlib import Path

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from server.headline import headline_of
from server.records import RunRecord, Scores
from server.report.contributed import contribution_line
from server.report.html import HTML_NAME
from server.report.levels import is_withheld, levels, run_time_text
from server.report.numbers import (
    bytes_text,
    delta_text,
    epsilon_text,
    interval_text,
    metric_name,
    metric_text,
)
from server.report.participation import MISSING, participation
from server.report.privacy_words import read_privacy_words
from server.report.promise import bound_of, notices
from server.report.shares import late_sites
from server.report.words import read_words

_MOST_COLUMNS = 4
"""of scores, which 80 columns of a terminal hold uncut; further tasks are in the report"""
_INTERVAL_WIDTH = len("0.000–0.000")


def closing_table(record: RunRecord, *, folder: Path) -> RenderableType:
    """Test scores, by subset of modalities too, what privacy was spent, and where the report is."""
    parts: list[RenderableType] = [
        Text(banner.title, style="bold white on red" if banner.is_alarm else "bold black on yellow")
        for banner in notices(record, words=read_words(), sentences=read_privacy_words())
    ]
    parts.append(_scores_table(record))
    facts = Table.grid(padding=(0, 2))
    brought = contribution_line(record)
    told = [*([brought] if brought else []), *_privacy_facts(record), *_cost_facts(record)]
    for name, value in (*told, ("report", str(folder / HTML_NAME))):
        facts.add_row(name, Text(value, overflow="fold"))
    return Group(*parts, facts)


def _scores_table(record: RunRecord) -> Table:
    shown = headline_of(record.run.data)
    names = (shown.main, *shown.beside)[:_MOST_COLUMNS]
    table = Table(title=f"{escape(record.run.name)}: test part, 95 % intervals", title_justify="left")
    # names of modalities go on below, intervals do not
    table.add_column("modalities", max_width=len("modalities") if len(names) == _MOST_COLUMNS else None)
    table.add_column("samples", justify="right")
    for name in names:
        table.add_column(metric_name(name), justify="right", min_width=_INTERVAL_WIDTH)
    everything = "+".join(record.run.modalities)
    subsets = {name: scores for name, scores in record.test.by_modalities.items() if name != everything}
    for subset, scores in subsets.items():
        table.add_row(subset.replace("+", " + "), f"{scores.num_samples:,}", *_cells(scores, names=names))
    table.add_section()
    label = "all together" if len(record.run.modalities) > 1 else everything
    table.add_row(
        label,
        f"{record.test.overall.num_samples:,}",
        *_cells(record.test.overall, names=names),
        style="bold",
    )
    return table


def _cells(scores: Scores, *, names: tuple[str, ...]) -> list[str]:
    cells = []
    for name in names:
        estimate = scores.named.get(name)
        interval = interval_text(estimate).replace(" to ", "–") if estimate else ""
        cells.append("–" if estimate is None else f"{metric_text(estimate.value)} {interval}".strip())
    return cells


def _privacy_facts(record: RunRecord) -> list[tuple[str, str]]:
    found = []
    for level in levels(record):
        most = "at most " if level.epsilon is None and level.is_withheld else ""
        name = "epsilon of a whole site" if level.is_central else "highest epsilon"
        earlier = ""
        if level.counts_earlier and level.run_epsilon is not None:
            earlier = f" in all (this run: {epsilon_text(level.run_epsilon)})"
        value = f"{most}{epsilon_text(bound_of(level))}{earlier} at delta {delta_text(level.delta)}"
        found.append((name, value if level.is_central else f"{value}, per {level.unit}"))
    return found or [("privacy", "NOT PRIVATE: no update was protected")]


def _cost_facts(record: RunRecord) -> list[tuple[str, str]]:
    found = list(participation(record).sites.values())
    missing = {name: sum(totals.outcomes[name] > 0 for totals in found) for name in sorted(MISSING)}
    used = sum(totals.outcomes["used"] > 0 for totals in found)
    told = "".join(f", {num} at times {name}" for name, num in missing.items() if num)
    contributed = "; ".join([f"{used} of {len(record.sites)} contributed{told}", *late_sites(record)])
    if is_withheld(record):
        contributed = f"{len(record.sites)}; who took part when is withheld"
    return [
        ("sites", contributed),
        ("rounds", f"{len(record.rounds)} trained, kept: {record.chosen_round}"),
        ("time, memory", f"{run_time_text(record)}, {bytes_text(record.peak_memory_bytes)}"),
    ]
