"""Compare: the reports of several runs side by side.

in        run folders
out       a table for the terminal: one column a run, one row a number or a setting that differs
relies on report.json in every folder
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from server.headline import headline_of
from server.records import RunRecord
from server.report.contributed import contribution_text
from server.report.html import flat_settings, read_record
from server.report.levels import is_withheld, levels, run_time_text
from server.report.numbers import (
    bytes_text,
    count_text,
    delta_text,
    epsilon_text,
    estimate_text,
    in_order,
    metric_name,
)
from server.report.participation import participation
from server.report.promise import bound_of, highest_epsilon
from shared.errors import RunError


def compare_runs(folders: Sequence[Path]) -> Table:
    """What each run reached and cost, and in which settings they differ.

    Raises:
        RunError: no folder, or folders without a readable report; all of them are named.
    """
    records = _read_all(folders)
    table = Table(title="Test part, 95 % intervals", title_justify="left")
    table.add_column("")
    for folder, record in zip(folders, records, strict=True):
        table.add_column(_heading(folder, record=record), overflow="fold")
    shown = [record.test.overall.named for record in records]
    for name in in_order(name for metrics in shown for name in metrics):
        table.add_row(escape(metric_name(name)), *(estimate_text(metrics.get(name)) for metrics in shown))
    subsets = [record.test.by_modalities for record in records]
    for subset in dict.fromkeys(name for found in subsets for name in found):
        cells = [
            estimate_text(found[subset].named.get(headline_of(record.run.data).main)) if subset in found else "–"
            for found, record in zip(subsets, records, strict=True)
        ]
        table.add_row(f"  only {escape(subset.replace('+', ' + '))}", *cells)
    brought = [record.test.contributions.by_modality if record.test.contributions else {} for record in records]
    for name in dict.fromkeys(name for found in brought for name in found):
        table.add_row(f"  {escape(name)} brings", *(contribution_text(found.get(name)) for found in brought))
    table.add_section()
    for label, cell in _FACTS.items():
        table.add_row(label, *(Text(cell(record)) for record in records))
    differences = _differing_settings(records)
    if differences:
        table.add_section()
    for setting, values in differences:
        table.add_row(escape(setting), *(Text(value) for value in values))
    return table


def result_lines(folders: Sequence[Path]) -> list[str]:
    """A line of JSON for each run: what a results file keeps of it.

    Raises:
        RunError: as `compare_runs`.
    """
    return [json.dumps(_result(record)) for record in _read_all(folders)]


def _result(record: RunRecord) -> dict[str, object]:
    parts = {"validation": record.validation, "test": record.test}
    return {
        "run": record.run.name,
        "settings": record.run.digest[:16],
        "seed": record.run.seed,
        "data": record.card.title if record.card else None,
        "epsilon": highest_epsilon(record),
        "delta": next((level.delta for level in levels(record)), None),
        "levels": [{"unit": level.unit, "epsilon": bound_of(level), "delta": level.delta} for level in levels(record)],
        "rounds": len(record.rounds),
        "chosen_round": record.chosen_round,
        "sites": len(record.sites),
        **{
            part: {name: [e.value, e.low, e.high] for name, e in found.overall.named.items()}
            for part, found in parts.items()
        },
        "by_modalities": {
            names: main.value
            for names, scores in record.test.by_modalities.items()
            if (main := scores.named.get(headline_of(record.run.data).main)) is not None
        },
        "contributions": {
            name: found.shapley
            for name, found in (record.test.contributions.by_modality if record.test.contributions else {}).items()
        },
        "seconds": None if is_withheld(record) else round(record.seconds, 1),
        "peak_memory_bytes": record.peak_memory_bytes,
        "versions": record.versions,
    }


def _read_all(folders: Sequence[Path]) -> list[RunRecord]:
    if not folders:
        raise RunError("no run is named; give one or more run folders: motet compare RUN RUN")
    records, faults = [], []
    for folder in folders:
        try:
            records.append(read_record(folder))
        except RunError as error:
            faults.append(str(error))
    if faults:
        raise RunError("\n".join(faults))
    return records


def _heading(folder: Path, *, record: RunRecord) -> Text:
    heading = Text(folder.resolve().name)
    if not levels(record):
        heading.append("\nNOT PRIVATE", style="bold red")
    elif record.reproducible_noise:
        heading.append("\nREPRODUCIBLE NOISE", style="bold red")
    if record.card is not None and record.card.generated:
        heading.append("\nGENERATED DATA", style="yellow")
    return heading


def _privacy(record: RunRecord) -> str:
    found = []
    for level in levels(record):
        most = "at most " if level.epsilon is None and level.is_withheld else ""
        found.append(f"{most}{epsilon_text(bound_of(level))} at delta {delta_text(level.delta)} per {level.unit}")
    return "\n".join(found) or "none"


def _sites(record: RunRecord) -> str:
    if is_withheld(record):
        return f"{count_text(len(record.sites), 'site')}, who when is withheld"
    used = sum(totals.outcomes["used"] > 0 for totals in participation(record).sites.values())
    return f"{used} of {count_text(len(record.sites), 'site')}"


_FACTS: dict[str, Callable[[RunRecord], str]] = {
    "Highest epsilon": _privacy,
    "Data": lambda record: record.card.title if record.card else "–",
    "Test samples": lambda record: f"{record.test.overall.num_samples:,}",
    "Contributed": _sites,
    "Rounds (kept)": lambda record: f"{len(record.rounds)} ({record.chosen_round})",
    "Parameters": lambda record: f"{record.num_parameters:,}",
    "Time": run_time_text,
    "Memory": lambda record: bytes_text(record.peak_memory_bytes),
    "Engine": lambda record: record.engine,
}


def _differing_settings(records: Sequence[RunRecord]) -> list[tuple[str, list[str]]]:
    """Settings that are not the same in all runs, with each run's value or a dash."""
    settings = [dict(flat_settings(record.run)) for record in records]
    names = dict.fromkeys(name for each in settings for name in each)
    rows = [(name, [each.get(name, "–") for each in settings]) for name in names]
    return [(name, values) for name, values in rows if len(set(values)) > 1]
