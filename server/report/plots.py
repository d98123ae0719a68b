"""Plots: series of numbers as SVG that stands in the page, reads in print, and names itself to a screen reader.

in        Series and Band from charts.py
out       markup; every text in it is escaped
relies on no drawing library: the same record gives the same bytes, and text stays text
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#8b4789", "#b8860b", "#3a3a3a", "#2f9fd8", "#c2185b")
"""Okabe and Ito's colours for all kinds of colour vision, the light ones darkened to be read on white"""
DASHES = ("", "7 3", "2 3", "9 3 2 3", "12 4", "4 2", "1 2", "6 2 1 2")

WIDTH, HEIGHT = 540, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 54, 18, 14, 46
_MOST_MARKERS = 30
_MOST_POINTS = 400

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Series:
    """A line through points in the order given."""

    name: str
    points: Points
    style: int = 0
    """index into COLOURS and DASHES"""
    is_strong: bool = True


@dataclass(frozen=True)
class Band:
    """The space between two lines over the same x."""

    name: str
    low: Points
    high: Points
    shade: str


@dataclass(frozen=True)
class Mark:
    """A point or a level that the reader should see, with a few words beside it."""

    text: str
    x: float | None = None
    y: float | None = None


@dataclass(frozen=True)
class Axes:
    """What is drawn over what, and over which range at least."""

    x: str
    y: str
    y_from: float | None = None
    y_to: float | None = None
    whole_x: bool = True
    whole_y: bool = False


def line_chart(
    series: Sequence[Series], *, axes: Axes, told: str, bands: Sequence[Band] = (), marks: Sequence[Mark] = ()
) -> Markup:
    """A chart with its legend.

    Args:
        told: what the chart shows, in a sentence, for those who do not see it.
    """
    scale = _Scale(series, axes=axes, bands=bands, marks=marks)
    body = [
        *(scale.band(band) for band in bands),
        *scale.grid(),
        *(scale.mark(mark) for mark in marks),
        *(scale.line(each) for each in series),
    ]
    picture = Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, HEIGHT, told, Markup("").join(body)
    )
    return Markup('<div class="wide">{}</div>{}').format(picture, _legend(series, bands=bands))


def interval_bar(value: float, *, low: float | None, high: float | None, largest: float) -> Markup:
    """A bar from 0 to the value, with a whisker over its interval; the number stands beside it in the table."""

    def at(number: float) -> str:
        return _number(200 * min(max(number / largest, 0.0), 1.0)) if largest > 0 else "0"

    whisker = Markup("")
    if low is not None and high is not None:
        whisker = Markup('<path d="M{0} 7H{1}M{0} 3V11M{1} 3V11" class="whisker"/>').format(at(low), at(high))
    return Markup(
        '<svg class="bar" viewBox="-1 0 202 14" preserveAspectRatio="none" aria-hidden="true">'
        '<rect x="0" y="2" width="200" height="10" class="track"/>'
        '<rect x="0" y="2" width="{}" height="10" class="fill"/>{}</svg>'
    ).format(at(value), whisker)


def step_bar(start: float, end: float, *, low: float, high: float, is_bad: bool = False) -> Markup:
    """A bar from one value to another on a track from low to high; a step the wrong way is in another colour."""
    scale = 200 / (high - low) if high > low else 0.0
    left, right = ((min(max(number, low), high) - low) * scale for number in sorted((start, end)))
    return Markup(
        '<svg class="bar" viewBox="-1 0 202 14" preserveAspectRatio="none" aria-hidden="true">'
        '<rect x="0" y="2" width="200" height="10" class="track"/>'
        '<rect x="{}" y="2" width="{}" height="10" class="{}"/></svg>'
    ).format(_number(left), _number(right - left), "fill worse" if is_bad else "fill")


def ticks(low: float, high: float, *, most: int = 6, whole: bool = False) -> list[float]:
    """Round numbers that cover [low, high]: steps of 1, 2 or 5 times a power of ten, `most` at most."""
    span = max(high - low, 1e-9)
    power = 10.0 ** math.floor(math.log10(span / most))
    step = next(factor * power for factor in (1, 2, 5, 10, 20) if span / (factor * power) <= most - 1)
    step = max(step, 1.0) if whole else step
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, last + 1)]


def thinned(points: Points) -> Points:
    """At most a few hundred of the points, the last among them: more would not be seen."""
    stride = math.ceil(len(points) / _MOST_POINTS)
    return points if stride <= 1 else [*points[:-1:stride], points[-1]]


class _Scale:
    """Where a number lies on the paper."""

    def __init__(self, series: Sequence[Series], *, axes: Axes, bands: Sequence[Band], marks: Sequence[Mark]) -> None:
        points = [point for each in series for point in each.points]
        points += [point for band in bands for edge in (band.low, band.high) for point in edge]
        xs = [x for x, _ in points] + [mark.x for mark in marks if mark.x is not None]
        ys = [y for _, y in points] + [mark.y for mark in marks if mark.y is not None]
        ys += [bound for bound in (axes.y_from, axes.y_to) if bound is not None]
        xs, ys = xs or [0.0, 1.0], ys or [0.0, 1.0]
        self.axes = axes
        self.x_ticks = ticks(min(xs), max(xs), most=8, whole=axes.whole_x)
        self.y_ticks = ticks(min(ys), max(ys), whole=axes.whole_y)
        # a line that begins in round 1 begins at the edge, not a fifth of the way in
        self.x_from, self.x_to = min(xs), max(*xs, min(xs) + 1e-9)
        self.y_from, self.y_to = self.y_ticks[0], max(self.y_ticks[-1], self.y_ticks[0] + 1e-9)

    def x(self, value: float) -> float:
        return _LEFT + (value - self.x_from) / (self.x_to - self.x_from) * (WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        return HEIGHT - _BOTTOM - (value - self.y_from) / (self.y_to - self.y_from) * (HEIGHT - _TOP - _BOTTOM)

    def grid(self) -> list[Markup]:
        """Lines at round numbers, the numbers, and the names of the axes."""
        right, bottom = WIDTH - _RIGHT, HEIGHT - _BOTTOM
        parts = [
            Markup('<path d="M{} {}H{}" class="grid"/><text x="{}" y="{}" class="tick end">{}</text>').format(
                _LEFT,
                _number(self.y(tick)),
                right,
                _LEFT - 7,
                _number(self.y(tick) + 4),
                _tick_text(tick, self.y_ticks),
            )
            for tick in self.y_ticks
        ]
        parts += [
            Markup('<text x="{}" y="{}" class="tick middle">{}</text>').format(
                _number(self.x(tick)), bottom + 17, _tick_text(tick, self.x_ticks)
            )
            for tick in self.x_ticks
            if self.x_from <= tick <= self.x_to
        ]
        middle = _number((_TOP + bottom) / 2)
        parts.append(
            Markup(
                '<path d="M{0} {1}H{2}" class="axis"/><text x="{3}" y="{4}" class="name middle">{5}</text>'
                '<text transform="translate(13 {6}) rotate(-90)" class="name middle">{7}</text>'
            ).format(_LEFT, bottom, right, (_LEFT + right) / 2, HEIGHT - 8, self.axes.x, middle, self.axes.y)
        )
        return parts

    def line(self, series: Series) -> Markup:
        colour, dash = COLOURS[series.style % len(COLOURS)], DASHES[series.style % len(DASHES)]
        points = thinned(series.points)
        path = Markup('<path d="{}" fill="none" stroke="{}" stroke-width="{}" stroke-dasharray="{}"/>').format(
            self._path(points), colour, "2.2" if series.is_strong else "1.2", dash
        )
        if len(points) > _MOST_MARKERS:
            return path
        dots = [
            Markup('<circle cx="{}" cy="{}" r="2.6" fill="{}"/>').format(_number(self.x(x)), _number(self.y(y)), colour)
            for x, y in points
        ]
        return path + Markup("").join(dots)

    def band(self, band: Band) -> Markup:
        edge = [*thinned(band.high), *reversed(thinned(band.low))]
        return Markup('<path d="{}Z" fill="{}"/>').format(self._path(edge), band.shade)

    def mark(self, mark: Mark) -> Markup:
        """A dashed line at the level or place, its words where they leave the paper on no side."""
        if mark.x is None and mark.y is not None:
            # its words stand on the left: what is spent grows from there and reaches its limit on the right
            y = self.y(mark.y)
            below = y - 6 < _TOP + 8
            line = Markup('<path d="M{} {}H{}" class="mark"/>').format(_LEFT, _number(y), WIDTH - _RIGHT)
            words = Markup('<text x="{}" y="{}" class="tick">{}</text>')
            return line + words.format(_LEFT + 8, _number(y + (16 if below else -6)), mark.text)
        # words stand on the axis, where a line of scores seldom is
        x = self.x(mark.x or 0.0)
        side, shift = ("end", -6) if x > WIDTH / 2 else ("start", 6)
        top = float(_TOP) if mark.y is None else self.y(mark.y) + 6
        line = Markup('<path d="M{0} {1}V{2}" class="mark"/><text x="{3}" y="{4}" class="tick {5}">{6}</text>').format(
            _number(x), _number(top), HEIGHT - _BOTTOM, _number(x + shift), HEIGHT - _BOTTOM - 8, side, mark.text
        )
        if mark.y is None:
            return line
        ring = Markup('<circle cx="{}" cy="{}" r="6" class="ring"/>').format(_number(x), _number(self.y(mark.y)))
        return line + ring

    def _path(self, points: Points) -> str:
        return "M" + "L".join(f"{_number(self.x(x))} {_number(self.y(y))}" for x, y in points) if points else ""


def _legend(series: Sequence[Series], *, bands: Sequence[Band]) -> Markup:
    if len(series) + len(bands) < 2:
        return Markup("")
    keys = [
        Markup(
            '<li><svg viewBox="0 0 26 10" aria-hidden="true"><path d="M0 5H26" stroke="{}" stroke-width="2.4" '
            'stroke-dasharray="{}"/></svg>{}</li>'
        ).format(COLOURS[each.style % len(COLOURS)], DASHES[each.style % len(DASHES)], each.name)
        for each in series
    ]
    keys += [
        Markup(
            '<li><svg viewBox="0 0 26 10" aria-hidden="true"><rect width="26" height="10" fill="{}"/></svg>{}</li>'
        ).format(band.shade, band.name)
        for band in bands
    ]
    return Markup('<ul class="legend">{}</ul>').format(Markup("").join(keys))


def _number(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _tick_text(tick: float, all_ticks: Sequence[float]) -> str:
    step = all_ticks[1] - all_ticks[0] if len(all_ticks) > 1 else 1.0
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return f"{tick:.{decimals}f}".replace("-0.0", "0.0") if decimals else f"{tick:,.0f}"
