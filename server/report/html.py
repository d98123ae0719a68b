"""HTML: a run's record as one page that opens anywhere and loads nothing.

in        a RunRecord
out       RUN/report.html and RUN/report.json, each whole or not at all; report.json back as a RunRecord
relies on page.toml for the page and its style, and on Jinja to escape every value: a site may call itself anything
"""

import json
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel

from server.records import RunRecord
from server.report import summary, tables
from server.report.charts import learning_charts, participation_charts
from server.report.evidence import evidence_blocks
from server.report.left import field_rows
from server.report.page import render_template
from server.report.privacy import budget_sections
from server.report.privacy_words import read_privacy_words
from server.report.promise import guarantee, guesses, notices
from server.report.pyramid import pyramid_blocks
from server.report.registry import registry_entry
from server.report.trust import not_protected, protected
from server.report.words import read_words
from server.settings import write_atomically
from shared.config import parse_settings_json
from shared.errors import ConfigError, RunError

HTML_NAME, JSON_NAME = "report.html", "report.json"
REGISTRY_FIELD = "deployment_registry"
"""of report.json, beside the fields of RunRecord: follows from them, and is made anew whenever they are written"""


def write_report(record: RunRecord, folder: Path) -> Path:
    """Write both files of the report; the path of the page comes back."""
    entry = registry_entry(record)
    held = record.model_dump(mode="json")
    held[REGISTRY_FIELD] = entry.model_dump(mode="json", exclude_none=True) if entry else None
    write_atomically(folder / JSON_NAME, json.dumps(held, separators=(",", ":")).encode())
    write_atomically(folder / HTML_NAME, render(record).encode())
    return folder / HTML_NAME


def read_record(folder: Path) -> RunRecord:
    """The record of a finished run.

    Raises:
        RunError: there is none, or it cannot be read.
    """
    return read_report(folder)[0]


def read_report(folder: Path) -> tuple[RunRecord, object]:
    """The record of a finished run, and its registry entry as it stands in the file.

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
        # as JSON, so that lists become tuples only where JSON has no other way
        return parse_settings_json(RunRecord, json.dumps(held), place=str(path)), entry
    except (ConfigError, ValueError, OSError) as error:
        raise RunError(
            f"{path}: not a report that this version can read ({error}); open it with the version that wrote it"
        ) from None


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
        subsets=tables.subset_table(record),
        classes=tables.class_table(record),
        groups=tables.group_tables(record.test, record=record),
        confusion=tables.confusion_rows(record),
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
