"""HTML: a run's record as one page that opens anywhere and loads nothing.

in        a RunRecord
out       RUN/report.html and RUN/report.json, each whole or not at all; with metrics.jsonl back as a RunRecord
relies on page.toml for the page and its style, and on Jinja to escape every value: a site may call itself anything
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, TypeAdapter

from server.history import METRICS_FILE, metrics_line, read_rounds
from server.records import RunRecord
from server.report import summary, tables
from server.report.aim import metrics_note
from server.report.charts import learning_charts, participation_charts
from server.report.contributed import contribution_table
from server.report.evidence import evidence_blocks
from server.report.left import field_rows
from server.report.page import render_template
from server.report.privacy import budget_sections
from server.report.privacy_words import read_privacy_words
from server.report.promise import guarantee, guesses, notices
from server.report.pyramid import pyramid_blocks
from server.report.registry import registry_entry
from server.report.round_totals import RoundTotals, round_totals
from server.report.trust import not_protected, protected
from server.report.words import read_words
from server.settings import write_atomically
from shared.errors import ConfigError, RunError
from shared.settings import parse_settings_json

HTML_NAME, JSON_NAME = "report.html", "report.json"
REGISTRY_FIELD = "deployment_registry"
"""of report.json, beside the fields of RunRecord: follows from them, and is made anew whenever they are written"""
_ROUNDS = TypeAdapter(tuple[RoundTotals, ...])


class StoredReport(NamedTuple):
    """What report.json holds, and the rounds beside it."""

    record: RunRecord
    entry: object
    """its registry entry as it stands in the file"""
    rounds: tuple[RoundTotals, ...] | None
    """its rounds as they stand in the file; None where it holds them whole, as version 0.2.0 wrote it"""


def write_report(record: RunRecord, folder: Path) -> Path:
    """Write both files of the report; the path of the page comes back.

    What every site did in every round is in metrics.jsonl, written here only where a run has not done it.
    """
    entry = registry_entry(record)
    # field by field: the rounds are left out before anything is made of them
    held = record.model_dump(mode="json", exclude={"rounds"})
    held["rounds"] = [each.model_dump(mode="json", exclude_defaults=True) for each in round_totals(record.rounds)]
    held[REGISTRY_FIELD] = entry.model_dump(mode="json", exclude_none=True) if entry else None
    metrics = folder / METRICS_FILE
    if not metrics.is_file():
        write_atomically(metrics, "".join(metrics_line(each) + "\n" for each in record.rounds).encode())
    write_atomically(folder / JSON_NAME, json.dumps(held, separators=(",", ":")).encode())
    write_atomically(folder / HTML_NAME, render(record).encode())
    return folder / HTML_NAME


def read_record(folder: Path) -> RunRecord:
    """The record of a finished run.

    Raises:
        RunError: there is none, or it cannot be read.
    """
    return read_report(folder).record


def read_report(folder: Path) -> StoredReport:
    """The record of a finished run, from report.json and metrics.jsonl.

    Raises:
        RunError: there is none, or it cannot be read.
    """
    path = folder / JSON_NAME
    if not path.is_file():
        raise RunError(
            f"{folder}: no {JSON_NAME} in it; give the folder of a run that has ended, "
            f"or end it with: motet simulate --resume {folder}"
        )
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        entry = held.pop(REGISTRY_FIELD, None) if isinstance(held, dict) else None
        stated = _ROUNDS.validate_python(held.pop("rounds")) if _is_short(held) else None
        if stated is not None:
            held["rounds"] = []
        # as JSON, so that lists become tuples only where JSON has no other way
        record = parse_settings_json(RunRecord, json.dumps(held), place=str(path))
    except (ConfigError, ValueError, OSError) as error:
        raise RunError(
            f"{path}: not a report that this version can read ({error}); open it with the version that wrote it"
        ) from None
    if stated is None:
        return StoredReport(record, entry, None)
    if not (folder / METRICS_FILE).is_file():
        raise RunError(f"{folder}: no {METRICS_FILE} in it; give the whole folder of a run that has ended")
    rounds = tuple(read_rounds(folder / METRICS_FILE))
    return StoredReport(record.model_copy(update={"rounds": rounds}), entry, stated)


def _is_short(held: object) -> bool:
    """Whether the rounds of a report are elsewhere; those of version 0.2.0 name every site."""
    rounds = held.get("rounds") if isinstance(held, dict) else None
    return isinstance(rounds, list) and not any(isinstance(each, dict) and "sites" in each for each in rounds)


def render(record: RunRecord) -> str:
    """The page as text; the same record gives the same bytes."""
    words, sentences = read_words(), read_privacy_words()
    return render_template(
        "page",
        record=record,
        notices=notices(record, words=words, sentences=sentences),
        headlines=summary.headlines(record),
        lead=summary.lead(record, words=words),
        guarantee=guarantee(record, words=words, sentences=sentences),
        guesses=guesses(record),
        views=summary.views(record, words=words),
        protected=protected(record, words=words),
        not_protected=not_protected(record, sentences=sentences),
        costs=summary.costs(record),
        charts=[*learning_charts(record), *participation_charts(record)],
        budget=budget_sections(record, words=words, sentences=sentences),
        evidence=evidence_blocks(record, sentences=sentences),
        pyramid=pyramid_blocks(record, words=words, sentences=sentences),
        metrics=tables.metric_rows(record),
        metrics_note=metrics_note(record.run.data, words=words),
        subsets=tables.subset_table(record),
        contributions=contribution_table(record),
        classes=tables.class_tables(record),
        groups=tables.group_tables(record.test, record=record),
        confusions=tables.confusions(record),
        sites=tables.site_rows(record, words=words),
        fields=field_rows(record, words=words),
        settings=list(flat_settings(record.run)),
    )


def flat_settings(settings: BaseModel) -> Iterator[tuple[str, str]]:
    """Every setting by its dotted name, as `report.json` has it."""
    yield from _flat("", settings.model_dump(mode="json"))


def _flat(place: str, value: object) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from _flat(f"{place}.{name}" if place else str(name), inner)
    elif isinstance(value, list):
        yield place, ", ".join(map(str, value)) or "none"
    elif isinstance(value, dict):
        yield place, "none"
    else:
        yield place, "not set" if value is None else str(value)
