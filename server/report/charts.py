"""Charts: which numbers of a run are drawn, what is said about each drawing, and the same numbers as a table.

in        a RunRecord
out       Chart (a heading, a drawing, a caption, a table) for the page; those of the privacy budget are in curves.py
relies on plots.py for the drawing
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from server.headline import Curves, headline_of
from server.records import RunRecord
from server.report.numbers import epsilon_text, metric_name, metric_text
from server.report.participation import participation
from server.report.plots import Axes, Band, Mark, Points, Series, line_chart

_MOST_ROWS = 12
"""of the table beside a drawing"""


@dataclass(frozen=True)
class Chart:
    """A drawing with the words around it."""

    heading: str
    drawing: Markup
    caption: str
    head: tuple[str, ...] = ()
    numbers: tuple[tuple[str, ...], ...] = ()
    """a dozen of the points, for those who do not see the drawing or want the numbers"""


def draw(
    heading: str,
    series: Sequence[Series],
    *,
    axes: Axes,
    told: str,
    caption: str,
    number: Callable[[float], str],
    bands: Sequence[Band] = (),
    marks: Sequence[Mark] = (),
) -> Chart:
    """A chart whose table holds the same lines as its drawing.

    Args:
        told: what is to be seen, in a sentence.
        number: how the table writes a value.
    """
    edges = [(f"{band.name}, {side}", points) for band in bands for side, points in _edges(band)]
    lines = [(each.name, each.points) for each in series] + edges
    xs = sorted({x for _, points in lines for x, _ in points})
    stride = max(1, -(-len(xs) // _MOST_ROWS))
    # an axis that is not whole is an epsilon, rounded up; counted from the end, so that the last point is there
    shown = [x for place, x in enumerate(reversed(xs)) if place % stride == 0][::-1]
    values = [dict(points) for _, points in lines]
    return Chart(
        heading=heading,
        drawing=line_chart(series, axes=axes, told=told, bands=bands, marks=marks),
        caption=caption,
        head=(axes.x, *(name for name, _ in lines)),
        numbers=tuple(
            (f"{x:g}" if axes.whole_x else epsilon_text(x), *(number(each[x]) if x in each else "–" for each in values))
            for x in shown
        ),
    )


def _edges(band: Band) -> tuple[tuple[str, Points], ...]:
    return ("lowest", band.low), ("highest", band.high)


def learning_charts(record: RunRecord) -> list[Chart]:
    """Validation metrics by round; empty when no round was measured."""
    return [chart for curves in headline_of(record.run.data).curves for chart in _learning_chart(record, curves)]


def participation_charts(record: RunRecord) -> list[Chart]:
    """How many sites were asked, and how many of their updates were used; empty where that is withheld."""
    found = participation(record)
    if found.is_withheld:
        return []
    asked = [(float(each.round), float(each.asked)) for each in found.rounds]
    used = [(float(each.round), float(each.used)) for each in found.rounds]
    missing = sum(each.asked - each.used for each in found.rounds)
    series = [Series("asked", asked, style=1, is_strong=False), Series("used", used)]
    axes = Axes(x="round", y="sites", y_from=0.0, whole_y=True)
    told = f"Sites asked and sites used by round: {missing} updates that were asked for are missing."
    caption = "An update is used when it came in time and in the agreed form; the rest is in the table of sites."
    return [draw("Sites by round", series, axes=axes, told=told, caption=caption, number=lambda value: f"{value:.0f}")]


def headline_metric(record: RunRecord) -> str:
    """The metric by which a run is judged."""
    return headline_of(record.run.data).main


def _learning_chart(record: RunRecord, curves: Curves) -> list[Chart]:
    series = []
    for style, name in enumerate(curves.names):
        points = metric_points(record, name=name, x=lambda number: float(record.rounds[number].round))
        if points:
            series.append(Series(metric_name(name), points, style=style))
    if not series:
        return []
    marks = [Mark(f"kept: round {record.chosen_round}", x=float(record.chosen_round))] if record.chosen_round else []
    first, last = series[0].points[0], series[0].points[-1]
    told = (
        f"{curves.heading}: {series[0].name} on the validation part is {metric_text(first[1])} after round "
        f"{first[0]:.0f} and {metric_text(last[1])} after round {last[0]:.0f}."
    )
    every = record.run.evaluation.every_rounds
    how_often = f"every {every} rounds" if every > 1 else "every round"
    choice = "the round that is kept is the best by " + metric_name(headline_metric(record))
    if record.run.federation.select == "last":
        choice = "the last round is the one that is kept"
    caption = f"Measured by the server on its validation part after {how_often}; {choice}."
    axes = Axes(x="round", y=curves.y, y_from=0.0, y_to=curves.y_to)
    return [draw(curves.heading, series, axes=axes, told=told, caption=caption, number=metric_text, marks=marks)]


def metric_points(record: RunRecord, *, name: str, x: Callable[[int], float]) -> list[tuple[float, float]]:
    """A validation metric over what `x` says of the round at a place in the record."""
    return [
        (x(number), named[name].value)
        for number, entry in enumerate(record.rounds)
        if entry.validation is not None and name in (named := entry.validation.named)
    ]
