"""Left: everything that left the sites, field by field: what it is, whose it is, whether it depends on anybody.

in        a RunRecord
out       rows for the page of a run and for the privacy report
relies on words.toml for what fields mean; a field that it does not know stands out in red
"""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from server.records import RunRecord
from server.report.document import Block, Cell, Heading, Table, Tone, rows
from server.report.document import Words as Paragraph
from server.report.levels import is_withheld
from server.report.numbers import count_text, epsilon_text, listed
from server.report.participation import Value, participation
from server.report.privacy_words import PrivacyWords
from server.report.words import Words
from shared.messages import PrivacyStatement, ReplyHeader
from shared.targets import count_names, most_counts_of_a_row

Exposure = Literal["none", "protected", "trusted", "exposed"]
"""trusted: to a server that is trusted to hide it in noise"""

_TONES: dict[Exposure, Tone] = {"none": "", "protected": "good", "trusted": "care", "exposed": "bad"}
_MOST_NAMED = 3
"""sites up to which they are named, and not counted"""


@dataclass(frozen=True)
class FieldRow:
    """One thing that left sites, or many alike."""

    name: str
    meaning: str
    depends: str
    sites: str
    values: str
    exposure: Exposure


def field_rows(record: RunRecord, *, words: Words) -> list[FieldRow]:
    """Everything that any reply held; the arrays of one part of the model stand in one row."""
    values, senders = _header_values(record), _senders(record)
    parts: Counter[str] = Counter()
    part_senders: dict[str, set[str]] = {}
    found = []
    for name in sorted(senders, key=lambda name: (name.startswith("update."), name.startswith("privacy."), name)):
        if name.startswith("update."):
            parts[_model_part(name)] += 1
            part_senders.setdefault(_model_part(name), set()).update(senders[name])
            continue
        meaning, depends = words.field(name)
        exposure = _exposure(depends, record)
        found.append(FieldRow(name, meaning, depends, _whose(senders[name], record), values.get(name, ""), exposure))
    sent = _update_exposure(record)
    meaning, depends = words.updates[sent]
    for part, count in parts.items():
        arrays = "" if is_withheld(record) else count_text(count, "array")
        found.append(FieldRow(part, meaning, depends, _whose(part_senders[part], record), arrays, sent))
    return found


def left_blocks(record: RunRecord, *, words: Words, sentences: PrivacyWords) -> tuple[Block, ...]:
    """The same as blocks of the privacy report, and the noisy counts where there are any."""
    lines = [
        (row.name, row.meaning, Cell(row.depends, _TONES[row.exposure]), row.sites, row.values)
        for row in field_rows(record, words=words)
    ]
    lead = sentences.left["withheld" if is_withheld(record) else "lead"]
    head = ("Field", "What it is", "Depends on records?", "From", "Values")
    found: list[Block] = [Paragraph(lead)]
    found.append(Table(head=head, rows=rows(*lines)) if lines else Paragraph(sentences.left["nothing"]))
    if record.statistics:
        names, most = count_names(record.run.data), most_counts_of_a_row(record.run.data)
        # a row that can be in several counts counts less than 1 in each: shown as rows again
        counted = [
            (each.site, *(f"{count * math.sqrt(most):.1f}" for count in each.counts)) for each in record.statistics
        ]
        numeric = tuple(range(1, len(names) + 1))
        noise = sorted({f"{each.noise_multiplier * math.sqrt(most):.3g}" for each in record.statistics})
        said = (
            sentences.left["counts"] if most == 1 else f"{sentences.left['counts']} {sentences.left['counts_of_many']}"
        )
        found += [Heading("Noisy counts"), Paragraph(said.format(most=most, noise=listed(noise)))]
        found.append(Table(head=("Site", *names), rows=rows(*counted), numeric=numeric))
    return tuple(found)


def _senders(record: RunRecord) -> dict[str, set[str]]:
    """Field -> who sent it in any round; where that is withheld, every field that a reply may hold."""
    senders = {name: set(sites) for name, sites in participation(record).senders.items()}
    if is_withheld(record):
        stated = PrivacyStatement.model_fields if record.run.local_privacy is not None else ()
        allowed = [*(set(ReplyHeader.model_fields) - {"privacy"}), *(f"privacy.{name}" for name in stated), "update.*"]
        for name in allowed:
            senders.setdefault(name, set())
    if record.statistics:
        senders["statistics.counts"] = {each.site for each in record.statistics}
    return senders


def _whose(sites: Iterable[str], record: RunRecord) -> str:
    named = sorted(sites)
    if not named:
        return "withheld"
    if len(named) == len(record.sites) > 1:
        return f"all {len(named)} sites"
    return ", ".join(named) if len(named) <= _MOST_NAMED else f"{len(named)} of {len(record.sites)} sites"


def _exposure(depends: str, record: RunRecord) -> Exposure:
    if depends.startswith("No"):
        return "none"
    if depends.startswith("Yes, protected") and not record.reproducible_noise:
        return "protected"
    return "trusted" if depends.startswith("Yes, to the server") and not record.reproducible_noise else "exposed"


def _update_exposure(record: RunRecord) -> Exposure:
    if record.reproducible_noise:
        return "exposed"
    if record.run.local_privacy is not None:
        return "protected"
    return "trusted" if record.run.central_privacy is not None else "exposed"


def _model_part(name: str) -> str:
    """`update.encoders.image.layers.0.weight` -> `update.encoders.image`."""
    pieces = name.split(".")
    return ".".join(pieces[: 3 if pieces[1:2] == ["encoders"] and len(pieces) > 3 else 2])


def _header_values(record: RunRecord) -> dict[str, str]:
    """Which values each number took: itself, or the smallest and the largest."""
    seen = dict(participation(record).values)
    if record.statistics:
        seen["statistics.counts"] = {count for each in record.statistics for count in each.counts}
    # the number a reader relies on is rounded up here too
    stated = {epsilon_text(value) for value in seen.get("privacy.epsilon", set()) if isinstance(value, float)}
    ranges = {name: _range(values) for name, values in seen.items()}
    if stated:
        lowest, highest = min(stated, key=float), max(stated, key=float)
        ranges["privacy.epsilon"] = highest if lowest == highest else f"{lowest} to {highest}"
    return ranges


def _range(values: set[Value]) -> str:
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(values) > 1 and len(numbers) == len(values):
        return f"{min(numbers):.4g} to {max(numbers):.4g}"
    shown = sorted(_plain(value) for value in values)
    return ", ".join(shown[:3]) + (f" and {len(shown) - 3} more" if len(shown) > 3 else "")


def _plain(value: Value) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}".replace("e-0", "e-") if isinstance(value, float) else str(value)
