"""HTML: a run's record as one page that opens anywhere and loads nothing.

in        a RunRecord
out       RUN/report.html and RUN/report.json, each whole or not at all
relies on page.toml for the page and its style, and on Jinja to escape every value: a site may call itself anything
"""

from collections.abc import Iterator
from pathlib import Path
from typing import cast

from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup
from pydantic import BaseModel

from server.records import RunRecord
from server.report import summary, tables
from server.report.charts import learning_charts, participation_chart, privacy_charts
from server.report.words import FOLDER, read_words
from server.settings import write_atomically
from shared.config import read_toml

HTML_NAME, JSON_NAME = "report.html", "report.json"


def write_report(record: RunRecord, folder: Path) -> Path:
    """Write both files of the report; the path of the page comes back."""
    write_atomically(folder / JSON_NAME, record.model_dump_json().encode())
    write_atomically(folder / HTML_NAME, render(record).encode())
    return folder / HTML_NAME


def render(record: RunRecord) -> str:
    """The page as text; the same record gives the same bytes."""
    words, template = read_words(), cast("dict[str, str]", read_toml(FOLDER / "page.toml"))
    environment = Environment(
        loader=DictLoader(template), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("page").render(
        # the style is ours, and a quote in it must stay a quote
        style=Markup(template["style"]),  # noqa: S704
        record=record,
        banners=summary.banners(record, words=words),
        headlines=summary.headlines(record),
        lead=summary.lead(record, words=words),
        guarantee=summary.guarantee(record, words=words),
        guesses=summary.guesses(record),
        views=summary.views(record, words=words),
        protected=summary.protected(record, words=words),
        not_protected=summary.not_protected(record, words=words),
        costs=summary.costs(record),
        charts=[*learning_charts(record), *privacy_charts(record), participation_chart(record)],
        metrics=tables.metric_rows(record),
        subsets=tables.subset_table(record),
        classes=tables.class_table(record),
        groups=tables.group_tables(record.test, record=record),
        confusion=tables.confusion_rows(record),
        sites=tables.site_rows(record, words=words),
        fields=tables.field_rows(record, words=words),
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
