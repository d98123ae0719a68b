"""Tables: the rows of every table in the report, as short texts in the order they are shown.

in        a RunRecord
out       small records of text for the page; nothing is computed here but sums and sorting
relies on words.toml for what fields, codes and outcomes mean
"""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from server.records import Estimate, Evaluation, RunRecord, Scores
from server.report.charts import headline_metric
from server.report.numbers import (
    METRIC_NAMES,
    bytes_text,
    epsilon_text,
    estimate_text,
    interval_text,
    metric_text,
)
from server.report.participation import MISSING, SiteTotals, participation
from server.report.plots import interval_bar
from server.report.words import Words

_MOST_CONFUSED = 30
"""classes up to which the confusion matrix is drawn"""
_MOST_VALUES = 40
"""values of a group column up to which each has a row"""


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


@dataclass(frozen=True)
class Cell:
    """A square of the confusion matrix."""

    count: str
    share: str
    background: str
    ink: str


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
    test, validation = record.test.overall.metrics, record.validation.overall.metrics
    return [
        MetricRow(label, estimate_text(test.get(name)), estimate_text(validation.get(name)))
        for name, label in METRIC_NAMES.items()
        if name in test or name in validation
    ]


def subset_table(record: RunRecord) -> BarTable | None:
    """Scores by subset of modalities, the smallest subsets first and the best of each size first."""
    found = record.test.by_modalities
    if len(found) < 2:
        return None
    metric, everything = headline_metric(record), "+".join(record.run.modalities)
    sign = 1 if metric == "mae" else -1
    order = sorted(found, key=lambda name: (name.count("+"), sign * _value(found[name], metric)))
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


def class_table(record: RunRecord) -> BarTable | None:
    """Precision, recall and F1 of each class on the test part."""
    classes = record.test.overall.classes
    rows = tuple(
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
    return BarTable("Class", "F1", ("Precision", "Recall"), rows) if rows else None


def confusion_rows(record: RunRecord) -> list[tuple[str, list[Cell]]]:
    """True class by predicted class; the darker, the larger its share of the true class. Empty where there is none."""
    counts, labels = record.test.overall.confusion, record.run.data.labels
    if not counts or len(counts) > _MOST_CONFUSED:
        return []
    rows = []
    for label, row in zip(labels, counts, strict=True):
        total = sum(row)
        rows.append((label, [_cell(count, share=count / total if total else 0.0) for count in row]))
    return rows


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
    metric = headline_metric(record)
    others = ("pearson",) if metric == "mae" else ("accuracy", "macro_recall")
    highest = [estimate.high or estimate.value for _, scores, _ in named if (estimate := scores.metrics.get(metric))]
    largest = 1.0 if metric == "macro_f1" else max(highest, default=1.0)
    rows = tuple(
        BarRow(
            name=name,
            num_samples=f"{scores.num_samples:,}",
            bar=_bar(scores.metrics.get(metric), largest=largest),
            value=metric_text(scores.metrics[metric].value) if metric in scores.metrics else "–",
            interval=interval_text(scores.metrics[metric]) if metric in scores.metrics else "",
            others=tuple(estimate_text(scores.metrics.get(other)) for other in others),
            is_all=is_all,
        )
        for name, scores, is_all in named
    )
    return BarTable(first, METRIC_NAMES[metric], tuple(METRIC_NAMES[name] for name in others), rows, note)


def _bar(estimate: Estimate | None, *, largest: float) -> Markup:
    if estimate is None:
        return Markup("")
    return interval_bar(estimate.value, low=estimate.low, high=estimate.high, largest=largest)


def _value(scores: Scores, metric: str) -> float:
    return scores.metrics[metric].value if metric in scores.metrics else 0.0


def _cell(count: int, *, share: float) -> Cell:
    light, dark = (255, 255, 255), (8, 69, 126)
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(light, dark, strict=True))
    return Cell(
        count=f"{count:,}" if count else "0",
        share=f"{share:.0%}" if count else "",
        background=f"#{red:02x}{green:02x}{blue:02x}",
        ink="#ffffff" if share > 0.5 else "#1a1a1a",
    )
