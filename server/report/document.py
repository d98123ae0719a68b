"""Document: what the privacy report says, as sections of plain blocks, before it becomes a page, a text or JSON.

in        blocks made by privacy.py and its neighbours
out       Document, which page.toml shows as HTML and markdown.py writes as Markdown: the same words in both
relies on every number being text already, rounded as numbers.py rounds
"""

from dataclasses import dataclass
from typing import Literal

from server.report.charts import Chart

Tone = Literal["", "good", "care", "bad"]


@dataclass(frozen=True)
class Words:
    """A paragraph."""

    text: str
    kind: Literal["words"] = "words"


@dataclass(frozen=True)
class Heading:
    """The title of what follows, within a section."""

    text: str
    kind: Literal["heading"] = "heading"


@dataclass(frozen=True)
class Items:
    """A list."""

    texts: tuple[str, ...]
    kind: Literal["items"] = "items"


@dataclass(frozen=True)
class Cell:
    """A field of a table; `tone` colours it, and Markdown sets what is not plain in bold."""

    text: str
    tone: Tone = ""


@dataclass(frozen=True)
class Table:
    """Rows under a head; the first field of each names it."""

    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    numeric: tuple[int, ...] = ()
    """columns of numbers, counted from 0, set flush right"""
    is_folded: bool = False
    """shown on the page only when it is opened, under the name `caption`"""
    caption: str = ""
    kind: Literal["table"] = "table"


@dataclass(frozen=True)
class Figure:
    """Drawings beside each other; the numbers behind each follow as a folded table."""

    charts: tuple[Chart, ...]
    kind: Literal["figure"] = "figure"


Block = Words | Heading | Items | Table | Figure


@dataclass(frozen=True)
class Section:
    """Blocks under a title; `name` is its anchor in the page."""

    name: str
    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Notice:
    """What stands before everything else; an alarm in red."""

    title: str
    text: str
    is_alarm: bool


@dataclass(frozen=True)
class Document:
    """A whole privacy report."""

    title: str
    subtitle: str
    notices: tuple[Notice, ...]
    sections: tuple[Section, ...]
    footer: str


def rows(*lines: tuple[str | Cell, ...]) -> tuple[tuple[Cell, ...], ...]:
    """Rows of a table from texts and cells."""
    return tuple(tuple(each if isinstance(each, Cell) else Cell(each) for each in line) for line in lines)


def facts(*lines: tuple[str, str | Cell]) -> Table:
    """A table of two columns without a head."""
    return Table(head=(), rows=rows(*lines))
