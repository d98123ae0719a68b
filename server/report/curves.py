"""Curves: how the privacy budget was spent round by round, and what was learned for it.

in        a RunRecord
out       charts with their numbers: epsilon of each site, epsilon of whole sites at the server, score against epsilon
relies on charts.py for drawing and table; an epsilon is written as numbers.py writes it, rounded up
"""

import numpy as np

from server.headline import headline_of
from server.records import RunRecord
from server.report.charts import Chart, draw, headline_metric, metric_points
from server.report.numbers import epsilon_text, metric_name, metric_text
from server.report.participation import participation
from server.report.plots import Axes, Band, Mark, Series

_MOST_LINES = 8
"""sites up to which each has a line of its own"""
_LIGHT, _MIDDLE = "#d6e6f2", "#9cc4e0"
_FARTHEST_CAP = 3.0
"""times what was spent, up to which a cap is drawn; a higher one would press the curves flat"""


def privacy_charts(record: RunRecord) -> list[Chart]:
    """Epsilon by round at each level, and what it bought; empty for a run that protected nothing."""
    by_site, central = epsilon_by_site(record), central_epsilon(record)
    found = []
    if by_site and record.run.local_privacy is not None:
        found.append(_site_chart(record, by_site))
    if central:
        found.append(_central_chart(record, central))
    highest = np.array(list(by_site.values())).max(axis=0).tolist() if by_site else central
    return [*found, *_trade_chart(record, highest, is_central=not by_site)] if found else []


def epsilon_by_site(record: RunRecord) -> dict[str, list[float]]:
    """site -> epsilon after each round, 0 before its first reply; sites that never stated one are left out."""
    return participation(record).epsilon


def central_epsilon(record: RunRecord) -> list[float]:
    """Epsilon of whole sites after each round; empty where the server's ledger was not asked."""
    line: list[float] = []
    for entry in record.rounds:
        line.append(max(entry.site_epsilon or 0.0, line[-1] if line else 0.0))
    return line if any(line) else []


def _site_chart(record: RunRecord, by_site: dict[str, list[float]]) -> Chart:
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
    asked = record.run.local_privacy.epsilon if record.run.local_privacy is not None else 0.0
    caps = {plan.cap_epsilon for plan in record.privacy}
    cap = max((each for each in caps if each is not None), default=None) if len(caps) == 1 else None
    marks, note = _limits(asked, cap, spent=highest, whose="the owners' cap")
    told = f"Epsilon by round: after round {rounds[-1]:.0f}, the highest of {len(by_site)} is {epsilon_text(highest)}."
    return draw(
        "Epsilon by site and round",
        series,
        axes=Axes(x="round", y="epsilon spent so far", y_from=0.0),
        told=told,
        caption=caption + note,
        number=epsilon_text,
        bands=bands,
        marks=marks,
    )


def _central_chart(record: RunRecord, line: list[float]) -> Chart:
    rounds = [float(entry.round) for entry in record.rounds]
    asked = record.run.central_privacy.epsilon if record.run.central_privacy is not None else 0.0
    cap = record.central.cap_epsilon if record.central is not None else None
    marks, note = _limits(asked, cap, spent=line[-1], whose="the server's cap")
    return draw(
        "Epsilon of whole sites by round",
        [Series("whole sites", list(zip(rounds, line, strict=True)))],
        axes=Axes(x="round", y="epsilon spent so far", y_from=0.0),
        told=f"Epsilon of whole sites by round: {epsilon_text(line[-1])} after round {rounds[-1]:.0f}.",
        caption="All that the server's ledger holds about this federation, earlier runs included." + note,
        number=epsilon_text,
        marks=marks,
    )


def _limits(asked: float, cap: float | None, *, spent: float, whose: str) -> tuple[list[Mark], str]:
    marks = [Mark(f"this run's limit: {asked:g}", y=asked)]
    if cap is None or cap == asked:
        return marks, ""
    if cap > _FARTHEST_CAP * max(spent, asked):
        return marks, f" Above the picture: {whose}, {cap:g}."
    return [*marks, Mark(f"{whose}: {cap:g}", y=cap)], ""


def _trade_chart(record: RunRecord, highest: list[float], *, is_central: bool) -> list[Chart]:
    name = headline_metric(record)
    points = metric_points(record, name=name, x=lambda place: highest[place])
    if not points:
        return []
    label = metric_name(name)
    chosen = next((place for place, entry in enumerate(record.rounds) if entry.round == record.chosen_round), None)
    marks = []
    if chosen is not None and (scores := record.rounds[chosen].validation) is not None and name in scores.named:
        marks = [Mark(f"kept: round {record.chosen_round}", x=highest[chosen], y=scores.named[name].value)]
    reached, spent = metric_text(points[-1][1]), epsilon_text(points[-1][0])
    whose = "epsilon of whole sites" if is_central else "highest epsilon of all sites"
    chart = draw(
        f"{label} against epsilon",
        [Series(label, points)],
        axes=Axes(x=whose, y=label, y_from=0.0, y_to=headline_of(record.run.data).largest, whole_x=False),
        told=f"{label} on the validation part is {reached} when the {whose} is {spent}.",
        caption="What had been learned by the time that so much of the budget was spent. Each point is a round.",
        number=metric_text,
        marks=marks,
    )
    return [chart]
