"""Privacy: the privacy budget report, put together for someone who decides whether data may be used.

in        a RunRecord
out       a Document, and RUN/privacy.html, privacy.json and privacy.md, which say the same
relies on each part being made in a file of its own; nothing is claimed here
"""

import json
import math
from dataclasses import asdict
from pathlib import Path

from server.records import RunRecord
from server.report.budget import budget_blocks
from server.report.curves import central_epsilon, epsilon_by_site
from server.report.document import Block, Cell, Document, Figure, Section, Table, Words, rows
from server.report.evidence import again_blocks, evidence_blocks
from server.report.exactly import exact_blocks
from server.report.left import left_blocks
from server.report.levels import levels
from server.report.markdown import to_markdown
from server.report.page import render_page
from server.report.privacy_words import PrivacyWords, read_privacy_words
from server.report.promise import guesses, notices, plain_guarantee
from server.report.pyramid import pyramid_blocks
from server.report.registry import registry_entry
from server.report.set_aside import set_aside_blocks
from server.report.shares import share_blocks
from server.report.trust import trust_blocks
from server.report.words import Words as Meanings
from server.report.words import read_words
from server.settings import write_atomically

DIGITS = 6
"""of an epsilon by round in privacy.json"""
NAMES = ("privacy.html", "privacy.json", "privacy.md")


def privacy_document(record: RunRecord) -> Document:
    """The whole report as sections."""
    words, sentences = read_words(), read_privacy_words()
    data = f"{record.card.title} · " if record.card else ""
    promised = (Words(plain_guarantee(record, words=words, sentences=sentences)), *_scale(record))
    return Document(
        title=f"Privacy budget of {record.run.name}",
        subtitle=f"{data}{len(record.sites)} sites · {len(record.rounds)} rounds · {record.started[:10]}",
        notices=tuple(notices(record, words=words, sentences=sentences)),
        sections=(
            Section("guarantee", "The guarantee in plain words", promised),
            *budget_sections(record, words=words, sentences=sentences),
            Section("left", "What left each site", left_blocks(record, words=words, sentences=sentences)),
            Section("trust", "Who is trusted, and what is protected", _trust(record, words, sentences)),
            Section("tested", "Was it tested?", evidence_blocks(record, sentences=sentences)),
            Section(
                "pyramid",
                "Level by level: the questions of NIST SP 800-226",
                pyramid_blocks(record, words=words, sentences=sentences),
            ),
            Section("again", "How to check this report", again_blocks(record, sentences=sentences)),
        ),
        footer=f"Motet {record.versions.get('motet', '')}. This report loads nothing from anywhere and runs no script.",
    )


def budget_sections(record: RunRecord, *, words: Meanings, sentences: PrivacyWords) -> tuple[Section, ...]:
    """What the page of a run shows of the privacy report, too: the guarantee exactly, and the budgets."""
    return (
        Section("exactly", "The guarantee exactly", exact_blocks(record, words=words, sentences=sentences)),
        Section("budget", "The budget of every site", budget_blocks(record, words=words, sentences=sentences)),
        *([Section("shares", "What of the model was whose", shares)] if (shares := share_blocks(record)) else []),
        *([Section("set-aside", "Whose updates were left out", aside)] if (aside := set_aside_blocks(record)) else []),
    )


def write_privacy(record: RunRecord, folder: Path) -> tuple[Path, ...]:
    """Writes the three files into a folder that is there; their paths come back, the page's first."""
    texts = privacy_texts(record)
    for name, text in texts.items():
        write_atomically(folder / name, text.encode())
    return tuple(folder / name for name in texts)


def privacy_texts(record: RunRecord) -> dict[str, str]:
    """Name of each of the three files -> what stands in it."""
    document = privacy_document(record)
    texts = (render_page(document), privacy_json(record, document=document), to_markdown(document))
    return dict(zip(NAMES, texts, strict=True))


def privacy_json(record: RunRecord, *, document: Document) -> str:
    """The numbers for programs, and the words of the page; the same record gives the same bytes."""
    entry = registry_entry(record)
    held = {
        "run": record.run.name,
        "settings_digest": record.run.digest,
        "code_digest": record.code_digest,
        "reproducible_noise": record.reproducible_noise,
        "levels": [level.model_dump(mode="json") for level in levels(record)],
        "sites": [plan.model_dump(mode="json") for plan in record.privacy],
        "central": record.central.model_dump(mode="json") if record.central else None,
        "epsilon_by_round": {
            "sites": {site: [_rounded_up(value) for value in line] for site, line in epsilon_by_site(record).items()},
            "whole_sites": central_epsilon(record),
        },
        "audit": record.audit.model_dump(mode="json") if record.audit else None,
        "preflight": [check.model_dump(mode="json") for check in record.preflight],
        "deployment_registry": entry.model_dump(mode="json", exclude_none=True) if entry else None,
        "document": _words_of(document),
    }
    return _laid_out(held) + "\n"


def _rounded_up(value: float) -> float:
    """To six digits: half a million exact numbers of a thousand sites would be most of the file.

    Never below the value, which stands in metrics.jsonl; infinity stays infinity.
    """
    if not value or not math.isfinite(value):
        return value
    unit: float = 10.0 ** (DIGITS - 1 - math.floor(math.log10(value)))
    up = math.ceil(value * unit)
    return up / unit if up / unit >= value else (up + 1) / unit


def _laid_out(value: object, *, margin: str = "") -> str:
    """JSON to look at: a level a line further in, but a list or table of plain values on one line.

    A line for each number would make half a million of the curves of a thousand sites.
    """
    inner = margin + "  "
    match value:
        case dict() if any(isinstance(each, dict | list | tuple) for each in value.values()):
            lines = [
                f"{json.dumps(name, ensure_ascii=False)}: {_laid_out(value[name], margin=inner)}" for name in value
            ]
            opening, closing = "{", "}"
        case list() | tuple() if any(isinstance(each, dict | list | tuple) for each in value):
            lines = [_laid_out(each, margin=inner) for each in value]
            opening, closing = "[", "]"
        case _:
            return json.dumps(value, ensure_ascii=False)
    between = f",\n{inner}"
    return f"{opening}\n{inner}{between.join(lines)}\n{margin}{closing}"


def _words_of(document: Document) -> dict[str, object]:
    held = asdict(document)
    for section, parts in zip(document.sections, held["sections"], strict=True):
        parts["blocks"] = [_block_words(block) for block in section.blocks]
    return held


def _block_words(block: Block) -> dict[str, object]:
    if not isinstance(block, Figure):
        return asdict(block)
    # the drawing is for eyes; its numbers are here
    charts = [
        {"heading": chart.heading, "caption": chart.caption, "head": chart.head, "numbers": chart.numbers}
        for chart in block.charts
    ]
    return {"charts": charts, "kind": block.kind}


def _scale(record: RunRecord) -> tuple[Block, ...]:
    scale = guesses(record)
    if not scale:
        return ()
    caption = "How sure someone who knows everything else can be, at most, that one was there"
    lines = [(Cell(name, "good" if name.startswith("this run") else ""), sure) for name, sure in scale]
    return (Table(head=("Epsilon", "Sure at most"), rows=rows(*lines), numeric=(1,), caption=caption),)


def _trust(record: RunRecord, words: Meanings, sentences: PrivacyWords) -> tuple[Block, ...]:
    return trust_blocks(record, words=words, sentences=sentences)
