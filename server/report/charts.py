"""Charts: which numbers of a run are drawn, and what is said about each drawing.

in        a RunRecord
out       Chart (a heading, a drawing, a caption) for the page
relies on plots.py for the drawing
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from server.records import RunRecord
from server.report.numbers import METRIC_NAMES, epsilon_text, metric_text
from server.report.plots import Axes, Band, Mark, Series, line_chart

_MOST_LINES = 8
"""sites up to which each has a line of its own"""
_LIGHT, _MIDDLE = "#d6e6f2", "#9cc4e0"


@dataclass(frozen=True)
class Chart:
    """A drawing with the words around it."""

    heading: str
    drawing: Markup
    caption: str


def learning_charts(record: RunRecord) -> list[Chart]:
    """Validation metrics by round; empty when no round was measured."""
    if record.run.data.task == "rating":
        return [
            *_learning_chart(record, ("mae", "rmse"), heading="Error by round", y="error, lower is better"),
            *_learning_chart(
                record, ("pearson", "spearman"), heading="Correlation by round", y="correlation", y_to=1.0
            ),
        ]
    return _learning_chart(record, ("macro_f1", "accuracy"), heading="Learning curve", y="share", y_to=1.0)


def privacy_charts(record: RunRecord) -> list[Chart]:
    """Epsilon by site and round, and what it bought; empty for a run that protected nothing."""
    by_site = epsilon_by_site(record)
    if not by_site or record.run.privacy == "none":
        return []
    return [_epsilon_chart(record, by_site), *_trade_chart(record, by_site)]


def participation_chart(record: RunRecord) -> Chart:
    """How many sites were asked, and how many of their updates were used."""
    asked, used = (
        [(float(each.round), float(sum(site.outcome in wanted for site in each.sites))) for each in record.rounds]
        for wanted in ({"used", "refused", "failed", "late", "invalid"}, {"used"})
    )
    missing = sum(before - after for (_, before), (_, after) in zip(asked, used, strict=True))
    series = [Series("asked", asked, style=1, is_strong=False), Series("used", used)]
    axes = Axes(x="round", y="sites", y_from=0.0, whole_y=True)
    told = f"Sites asked and sites used by round: {missing:.0f} updates that were asked for are missing."
    caption = "An update is used when it came in time and in the agreed form; the rest is in the table of sites."
    return Chart("Sites by round", line_chart(series, axes=axes, told=told), caption)


def epsilon_by_site(record: RunRecord) -> dict[str, list[float]]:
    """site -> epsilon after each round, 0 before its first reply; sites that never stated one are left out."""
    spent: dict[str, list[float]] = {}
    for number, entry in enumerate(record.rounds):
        for site in entry.sites:
            if site.epsilon is not None:
                line = spent.setdefault(site.site, [0.0] * number)
                line.extend([line[-1] if line else 0.0] * (number - len(line)))
                line.append(max(site.epsilon, line[-1] if line else 0.0))
    for line in spent.values():
        line.extend([line[-1]] * (len(record.rounds) - len(line)))
    return dict(sorted(spent.items()))


def headline_metric(record: RunRecord) -> str:
    """The metric by which a run is judged."""
    return "mae" if record.run.data.task == "rating" else "macro_f1"


def _learning_chart(
    record: RunRecord, names: tuple[str, ...], *, heading: str, y: str, y_to: float | None = None
) -> list[Chart]:
    series = []
    for style, name in enumerate(names):
        points = _points(record, name=name, x=lambda number: float(record.rounds[number].round))
        if points:
            series.append(Series(METRIC_NAMES[name], points, style=style))
    if not series:
        return []
    marks = [Mark(f"kept: round {record.chosen_round}", x=float(record.chosen_round))] if record.chosen_round else []
    first, last = series[0].points[0], series[0].points[-1]
    told = (
        f"{heading}: {series[0].name} on the validation part is {metric_text(first[1])} after round {first[0]:.0f} "
        f"and {metric_text(last[1])} after round {last[0]:.0f}."
    )
    caption = "Measured by the server on its validation part after every round; the round that is kept is chosen by it."
    if record.run.evaluation.every_rounds > 1:
        caption = caption.replace("after every round", f"after every {record.run.evaluation.every_rounds} rounds")
    if record.run.federation.select == "last":
        caption = caption.replace("the round that is kept is chosen by it", "the last round is the one that is kept")
    axes = Axes(x="round", y=y, y_from=0.0, y_to=y_to)
    return [Chart(heading, line_chart(series, axes=axes, told=told, marks=marks), caption)]


def _epsilon_chart(record: RunRecord, by_site: dict[str, list[float]]) -> Chart:
    rounds = [float(entry.round) for entry in record.rounds]
    highest_site = max(by_site, key=lambda site: by_site[site][-1])
    highest = by_site[highest_site][-1]
    bands: list[Band] = []
    if len(by_site) <= _MOST_LINES:
        series = [
            Series(site, list(zip(rounds, line, strict=True)), style=style)
            for style, (site, line) in enumerate(by_site.items())
        ]
        caption = "One line a site. Lines of sites that spend alike lie on each other."
    else:
        table = np.array(list(by_site.values()))
        low, quarter, median, three_quarters, high = (
            list(zip(rounds, (float(value) for value in row), strict=True))
            for row in np.quantile(table, (0, 0.25, 0.5, 0.75, 1), axis=0)
        )
        bands = [
            Band("all sites", low, high, _LIGHT),
            Band("the middle half of the sites", quarter, three_quarters, _MIDDLE),
        ]
        most = list(zip(rounds, by_site[highest_site], strict=True))
        series = [Series(f"highest at the end: {highest_site}", most, style=1), Series("median site", median, style=0)]
        caption = f"{len(by_site)} sites, too many for a line each; every one of them is in the table of sites."
    marks = []
    if record.run.privacy != "none":
        marks = [Mark(f"the run's limit: {record.run.privacy.epsilon:g}", y=record.run.privacy.epsilon)]
    told = f"Epsilon by round: after round {rounds[-1]:.0f}, the highest of {len(by_site)} is {epsilon_text(highest)}."
    axes = Axes(x="round", y="epsilon spent so far", y_from=0.0)
    return Chart(
        "Epsilon by site and round", line_chart(series, axes=axes, told=told, bands=bands, marks=marks), caption
    )


def _trade_chart(record: RunRecord, by_site: dict[str, list[float]]) -> list[Chart]:
    highest = np.array(list(by_site.values())).max(axis=0)
    name = headline_metric(record)
    points = _points(record, name=name, x=lambda number: float(highest[number]))
    if not points:
        return []
    label = METRIC_NAMES[name]
    chosen = next((number for number, entry in enumerate(record.rounds) if entry.round == record.chosen_round), None)
    marks = []
    if chosen is not None and (scores := record.rounds[chosen].validation) is not None and name in scores.metrics:
        marks = [Mark(f"kept: round {record.chosen_round}", x=float(highest[chosen]), y=scores.metrics[name].value)]
    reached, spent = metric_text(points[-1][1]), epsilon_text(points[-1][0])
    told = f"{label} on the validation part is {reached} when the highest epsilon is {spent}."
    axes = Axes(
        x="highest epsilon of all sites", y=label, y_from=0.0, y_to=1.0 if name == "macro_f1" else None, whole_x=False
    )
    drawing = line_chart([Series(label, points)], axes=axes, told=told, marks=marks)
    caption = "What had been learned by the time that so much of the budget was spent. Each point is a round."
    return [Chart(f"{label} against epsilon", drawing, caption)]


def _points(record: RunRecord, *, name: str, x: Callable[[int], float]) -> list[tuple[float, float]]:
    return [
        (x(number), entry.validation.metrics[name].value)
        for number, entry in enumerate(record.rounds)
        if entry.validation is not None and name in entry.validation.metrics
    ]
