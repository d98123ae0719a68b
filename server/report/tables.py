"""Tables: the rows of every table in the report, as short texts in the order they are shown.

in        a RunRecord
out       small records of text for the page; nothing is computed here but sums and sorting
relies on words.toml for what fields, codes and outcomes mean
"""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from server.headline import headline_of
from server.records import ClassScores, Estimate, Evaluation, RunRecord, Scores
from server.report.numbers import (
    bytes_text,
    epsilon_text,
    estimate_text,
    in_order,
    interval_text,
    metric_name,
    metric_text,
)
from server.report.participation import MISSING, SiteTotals, participation
from server.report.plots import interval_bar
from server.report.words import Words

_MOST_CONFUSED = 30
"""classes up to which the confusion matrix is drawn"""
_MOST_VALUES = 40
"""values of a group column up to which each has a row"""
_MOST_BESIDE = 4
"""columns of scores beside the one with the bar; all are in report.json"""


@dataclass(frozen=True)
class MetricRow:
    """One metric on both parts."""

    name: str
    test: str
    validation: str


@dataclass(frozen=True)
class BarRow:
    """One set of scores with its bar."""

    name: str
    num_samples: str
    bar: Markup
    value: str
    interval: str
    others: tuple[str, ...]
    is_all: bool = False


@dataclass(frozen=True)
class BarTable:
    """Scores to be compared with each other."""

    first: str
    metric: str
    others: tuple[str, ...]
    rows: tuple[BarRow, ...]
    note: str = ""
    heading: str = ""


@dataclass(frozen=True)
class Cell:
    """A square of the confusion matrix."""

    count: str
    share: str
    background: str
    ink: str


@dataclass(frozen=True)
class Confusion:
    """The confusion matrix of one task."""

    heading: str
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]


@dataclass(frozen=True)
class SiteRow:
    """One site over the whole run."""

    site: str
    outcomes: str
    codes: tuple[str, ...]
    epsilon: str
    second_epsilon: str
    delta: str
    noise_multiplier: str
    sample_rate: str
    steps: str
    nominal_size: str
    sent: str
    is_missing: bool


def metric_rows(record: RunRecord) -> list[MetricRow]:
    """Every metric with its interval, test beside validation."""
    test, validation = record.test.overall.named, record.validation.overall.named
    return [
        MetricRow(metric_name(name), estimate_text(test.get(name)), estimate_text(validation.get(name)))
        for name in in_order((*test, *validation))
    ]


def subset_table(record: RunRecord) -> BarTable | None:
    """Scores by subset of modalities, the smallest subsets first and the best of each size first."""
    found = record.test.by_modalities
    if len(found) < 2:
        return None
    shown, everything = headline_of(record.run.data), "+".join(record.run.modalities)
    sign = 1 if shown.is_error else -1
    order = sorted(found, key=lambda name: (name.count("+"), sign * _value(found[name], shown.main)))
    named = [(name.replace("+", " + "), found[name], name == everything) for name in order]
    return _bar_table("Modalities", named, record=record)


def group_tables(evaluation: Evaluation, *, record: RunRecord) -> list[BarTable]:
    """Scores by the values of each group column, the largest groups first."""
    tables = []
    for column, found in evaluation.by_group.items():
        order = sorted(found, key=lambda value: (-found[value].num_samples, value))
        named = [(value, found[value], False) for value in order[:_MOST_VALUES]]
        left = len(order) - len(named)
        note = f"The {left} smallest groups are in report.json." if left else ""
        tables.append(_bar_table(column.replace("_", " ").capitalize(), named, record=record, note=note))
    return tables


def class_tables(record: RunRecord) -> list[BarTable]:
    """Precision, recall and F1 of each class or label on the test part, task by task."""
    tables = []
    for column, part in record.run.data.parts.items():
        is_many = part.kind == "multi-label"
        heading = "Label by label" if is_many else "Class by class"
        if record.run.data.task == "several":
            heading = f"{column.replace('_', ' ').capitalize()}: {heading.lower()}"
        rows = _class_rows(_scores_of(column, record=record).classes)
        if rows:
            first = "Label" if is_many else "Class"
            tables.append(BarTable(first, "F1", ("Precision", "Recall"), rows, heading=heading))
    return tables


def _scores_of(column: str, *, record: RunRecord) -> Scores:
    """The test scores of a task, by the column that its answers stand in."""
    overall = record.test.overall
    if record.run.data.task != "several":
        return overall
    return overall.tasks.get(column, Scores(num_samples=0, metrics={}))


def _class_rows(classes: Sequence[ClassScores]) -> tuple[BarRow, ...]:
    return tuple(
        BarRow(
            name=scores.label,
            num_samples=f"{scores.support:,}",
            bar=interval_bar(scores.f1.value, low=scores.f1.low, high=scores.f1.high, largest=1.0),
            value=metric_text(scores.f1.value),
            interval=interval_text(scores.f1),
            others=(estimate_text(scores.precision), estimate_text(scores.recall)),
        )
        if scores.support
        else BarRow(scores.label, "0", Markup(""), "–", "", ("–", "–"))
        for scores in classes
    )


def confusions(record: RunRecord) -> list[Confusion]:
    """True class by predicted class, of each task with single labels; the darker, the larger its share of the class."""
    found = []
    for column, part in record.run.data.parts.items():
        counts = _scores_of(column, record=record).confusion
        if not counts or len(counts) > _MOST_CONFUSED:
            continue
        rows = []
        for label, row in zip(part.labels, counts, strict=True):
            total = sum(row)
            rows.append((label, tuple(_cell(count, share=count / total if total else 0.0) for count in row)))
        heading = "Which classes are taken for which"
        if record.run.data.task == "several":
            heading = f"{column.replace('_', ' ').capitalize()}: {heading.lower()}"
        found.append(Confusion(heading, tuple(rows)))
    return found


def site_rows(record: RunRecord, *, words: Words) -> list[SiteRow]:
    """What became of every site, those with a missing contribution first."""
    plans = {plan.site: plan for plan in record.privacy}
    found = participation(record)
    spent = {site: line[-1] for site, line in found.epsilon.items()}
    rows = []
    for site in dict.fromkeys((*record.sites, *found.sites)):
        totals = found.sites.get(site, SiteTotals())
        outcomes, codes = totals.outcomes, totals.codes
        plan = plans.get(site)
        rows.append(
            SiteRow(
                site=site,
                outcomes=", ".join(
                    f"{outcomes[name]} {words.outcomes[name]}" for name in words.outcomes if outcomes[name]
                ),
                codes=tuple(f"{code} ({count} ×): {words.code(code)}" for code, count in codes.most_common()),
                epsilon=epsilon_text(plan.epsilon if plan else spent.get(site)),
                second_epsilon=epsilon_text(plan.second_epsilon if plan else None),
                delta=f"{plan.delta:.1e}".replace(".0e", "e").replace("e-0", "e-") if plan else "–",
                noise_multiplier=f"{plan.noise_multiplier:.3g}" if plan else "–",
                sample_rate=f"{plan.sample_rate:.3g}" if plan else "–",
                steps=f"{plan.steps:,}" if plan else "–",
                nominal_size=f"{plan.nominal_size:,}" if plan else "–",
                sent=bytes_text(totals.sent_bytes),
                is_missing=any(outcomes[name] for name in MISSING),
            )
        )
    return sorted(rows, key=lambda row: not row.is_missing)


def _bar_table(first: str, named: Sequence[tuple[str, Scores, bool]], *, record: RunRecord, note: str = "") -> BarTable:
    shown = headline_of(record.run.data)
    metric, others = shown.main, shown.beside[:_MOST_BESIDE]
    highest = [estimate.high or estimate.value for _, scores, _ in named if (estimate := scores.named.get(metric))]
    largest = shown.largest or max(highest, default=1.0)
    rows = tuple(
        BarRow(
            name=name,
            num_samples=f"{scores.num_samples:,}",
            bar=_bar(scores.named.get(metric), largest=largest),
            value=metric_text(scores.named[metric].value) if metric in scores.named else "–",
            interval=interval_text(scores.named[metric]) if metric in scores.named else "",
            others=tuple(estimate_text(scores.named.get(other)) for other in others),
            is_all=is_all,
        )
        for name, scores, is_all in named
    )
    return BarTable(first, metric_name(metric), tuple(metric_name(name) for name in others), rows, note)


def _bar(estimate: Estimate | None, *, largest: float) -> Markup:
    if estimate is None:
        return Markup("")
    return interval_bar(estimate.value, low=estimate.low, high=estimate.high, largest=largest)


def _value(scores: Scores, metric: str) -> float:
    return scores.named[metric].value if metric in scores.named else 0.0


def _cell(count: int, *, share: float) -> Cell:
    light, dark = (255, 255, 255), (8, 69, 126)
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(light, dark, strict=True))
    return Cell(
        count=f"{count:,}" if count else "0",
        share=f"{share:.0%}" if count else "",
        background=f"#{red:02x}{green:02x}{blue:02x}",
        ink="#ffffff" if share > 0.5 else "#1a1a1a",
    )
