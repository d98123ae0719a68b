"""Breadth's page: the tables of docs/model.md, made from results/breadth.json and from nothing else.

in        results/breadth.json and the page as it is
out       the page with the text between its markers made anew
relies on the markers; what people wrote around them stays
"""

import re
from collections.abc import Sequence
from pathlib import Path

from shared.errors import RunError
from simulations.bench.breadth_result import Breadth, PartResult, Recurrence
from simulations.bench.harness import ROOT
from simulations.bench.step import OPACUS, TORCH_LSTM

PAGE = ROOT / "docs" / "model.md"
KINDS = ("encoder", "fusion", "head")
ENGINES = {"bookkeeping": "book-keeping", "functional": "torch.func"}
HEAD = "| name | what it is | source | in -> out | parameters | trains under privacy | batch | private step | engine |"


def with_parts(text: str, breadth: Breadth) -> str:
    """The page with every marked table made from what was measured.

    Raises:
        RunError: the page does not mark each table once.
    """
    tables = {kind: _table(breadth, kind) for kind in KINDS}
    tables |= {"recurrence": _recurrence(breadth.recurrence), "provenance": [_provenance(breadth)]}
    pattern = re.compile(r"(<!-- breadth of (\w+) -->\n)(.*?)(<!-- end of \2 -->)", flags=re.DOTALL)
    marked = [found[2] for found in pattern.finditer(text)]
    if sorted(marked) != sorted(tables):
        raise RunError(f"the page marks {sorted(marked)}; allowed: each of {sorted(tables)} once")
    return pattern.sub(lambda found: found[1] + "\n".join(tables[found[2]]) + "\n" + found[4], text)


def write_page(page: Path = PAGE) -> None:
    """Writes the page."""
    page.write_text(with_parts(page.read_text(encoding="utf-8"), Breadth.read()), encoding="utf-8")


def _table(breadth: Breadth, kind: str) -> list[str]:
    parts = sorted((each for each in breadth.parts if each.kind == kind), key=lambda each: (each.takes, each.name))
    if kind != "encoder":
        return [HEAD, "| --- " * 4 + "| ---: | --- | ---: | ---: | --- |", *(_row(each) for each in parts)]
    lines = list[str]()
    for takes in dict.fromkeys(each.takes for each in parts):
        lines += [f"**{takes}**", "", HEAD, "| --- " * 4 + "| ---: | --- | ---: | ---: | --- |"]
        lines += [*(_row(each) for each in parts if each.takes == takes), ""]
    return lines[:-1]


def _row(part: PartResult) -> str:
    name = f"`{part.name}`" + (f", {part.mode}" if part.mode else "")
    if part.why_not:
        return f"| {name} | {_cell(part.about)} | {_cell(part.source)} | {_cell(part.why_not)} | | | | | |"
    cells = [
        name,
        _cell(part.about) + (f" Numbers of this row: {_cell(part.tried_on)}." if part.tried_on else ""),
        _cell(part.source) or "ours",
        f"{_shape(part.inputs)} -> {_shape(part.outputs)} {part.gives}".rstrip(),
        f"{part.parameters:,}" if part.parameters else "none",
        part.trains,
        str(part.batch),
        f"{part.ratio:.1f} x" if part.ratio is not None else "",
        ENGINES.get(part.engine, part.engine),
    ]
    return f"| {' | '.join(cells)} |"


def _shape(shape: Sequence[int]) -> str:
    if not shape:
        return "words and embeddings"
    return "[" + ", ".join(str(length) for length in shape) + "]"


def _cell(text: str) -> str:
    return text.replace("|", "/")


def _recurrence(found: Sequence[Recurrence]) -> list[str]:
    hooks = next(iter(OPACUS))
    lines = [
        f"| model | {TORCH_LSTM} | Motet, private | DPLSTM with Opacus hooks, private | Motet's step, of torch's |"
        " Opacus' step, of torch's |",
        "| --- " + "| ---: " * 5 + "|",
    ]
    for each in found:
        floor, ours, theirs = (each.cpu_s.get(name) for name in (TORCH_LSTM, "Motet auto", hooks))
        times = [f"{1e3 * time.median:.1f} ms" if time else "failed" for time in (floor, ours, theirs)]
        ratios = [f"{time.median / floor.median:.1f} x" if time and floor else "" for time in (ours, theirs)]
        lines.append(f"| {each.model}, batch {each.batch} | {' | '.join([*times, *ratios])} |")
    return lines


def _provenance(breadth: Breadth) -> str:
    facts, tree = breadth.machine, "" if breadth.tree_is_clean else " with changes that are in no commit"
    later = f" Measured later: {', '.join(breadth.later)}." if breadth.later else ""
    named = ", ".join(f"{name} {version}" for name, version in breadth.versions.items())
    return (
        f"Medians of processor time in turns. {facts.processor}, {facts.cores} cores, "
        f"{facts.memory_bytes / 1e9:.0f} GB, {facts.system}, load {facts.load:g} before; {named}; commit "
        f"{breadth.commit[:12] or 'unknown'}{tree}; {breadth.started}.{later}"
    )
