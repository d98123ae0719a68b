"""Markdown: a privacy report as text that any viewer shows and any diff tool compares.

in        a Document
out       CommonMark with GitHub's tables
relies on escaping every text: a site may call itself anything
"""

import re
from collections.abc import Iterator

from server.report.document import Block, Cell, Document, Figure, Heading, Items, Table, Words

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~&!])")


def to_markdown(document: Document) -> str:
    """The whole document; the same document gives the same text."""
    lines = [f"# {escaped(document.title)}", "", escaped(document.subtitle), ""]
    for notice in document.notices:
        lines += [f"> **{escaped(notice.title)}**  ", f"> {escaped(notice.text)}", ""]
    for section in document.sections:
        lines += [f"## {escaped(section.title)}", ""]
        for block in section.blocks:
            lines += [*_lines(block), ""]
    lines += ["---", "", escaped(document.footer), ""]
    return "\n".join(lines)


def escaped(text: str) -> str:
    """Text that Markdown shows as it is, on one line; a number at its beginning starts no list."""
    flat = _SPECIAL.sub(r"\\\1", re.sub(r"\s+", " ", text).strip())
    return re.sub(r"^(\d+)([.)])", r"\1\\\2", re.sub(r"^([-+=])", r"\\\1", flat))


def _lines(block: Block) -> Iterator[str]:
    if isinstance(block, Words):
        yield escaped(block.text)
    elif isinstance(block, Heading):
        yield f"### {escaped(block.text)}"
    elif isinstance(block, Items):
        yield from (f"- {escaped(text)}" for text in block.texts)
    elif isinstance(block, Table):
        yield from _table(block)
    else:
        yield from _figure(block)


def _figure(block: Figure) -> Iterator[str]:
    for number, chart in enumerate(block.charts):
        if number:
            yield ""
        yield from (f"### {escaped(chart.heading)}", "", escaped(chart.caption), "")
        yield from _row_lines(chart.head, [tuple(Cell(text) for text in row) for row in chart.numbers], numeric=True)


def _table(block: Table) -> Iterator[str]:
    if block.caption:
        yield from (f"**{escaped(block.caption)}**", "")
    yield from _row_lines(block.head, list(block.rows), numeric=False, right=block.numeric)


def _row_lines(
    head: tuple[str, ...], lines: list[tuple[Cell, ...]], *, numeric: bool, right: tuple[int, ...] = ()
) -> Iterator[str]:
    width = len(head) or (len(lines[0]) if lines else 1)
    # a table needs a head; one of facts has an empty one
    yield "| " + " | ".join(escaped(text) for text in head or ("",) * width) + " |"
    yield "|" + "|".join(" ---: " if numeric or column in right else " --- " for column in range(width)) + "|"
    for line in lines:
        yield "| " + " | ".join(_cell(cell) for cell in line) + " |"


def _cell(cell: Cell) -> str:
    text = escaped(cell.text)
    return f"**{text}**" if cell.tone and text else text
