"""History: the rounds of a run as they are kept: each site's reply whole once, and after that what changed in it.

in        RoundRecords as rounds.py makes them; lines of RUN/metrics.jsonl
out       the same, shortened; every used reply with the header that holds for it; a line for each round and back again
relies on a reply's header being the same from round to round but for round_number, epsilon and unclipped_share

A header is about a kilobyte: a thousand sites in five hundred rounds would repeat half a gigabyte of it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from server.records import Outcome, RoundRecord, SiteRound
from shared.errors import RunError
from shared.messages import PrivacyStatement, ReplyHeader
from shared.privacy.accountant import MechanismUse

METRICS_FILE = "metrics.jsonl"


class Used(NamedTuple):
    """A reply that was used, and what its site said of it."""

    round: int
    site: str
    epsilon: float | None
    unclipped_share: float | None
    header: ReplyHeader
    """round number, epsilon and unclipped share in it are those of the round in which it was last written whole"""


class LastReplies:
    """What the last used reply of each site held."""

    def __init__(self, rounds: Sequence[RoundRecord] = ()) -> None:
        """As after these rounds, shortened or not."""
        self._headers: dict[str, tuple[object, ...]] = {}
        self._seen: tuple[ReplyHeader | None, tuple[object, ...]] = (None, ())
        """the last header, and what is constant in it: replies that say the same have one object as their header"""
        self._fields: dict[str, tuple[str, ...]] = {}
        for each in rounds:
            self.shortened(each)

    def shortened(self, record: RoundRecord) -> RoundRecord:
        """The next round without what its sites have said before; one that is shortened already comes back as it is."""
        sites = tuple(map(self._shortened_entry, record.sites))
        return record.model_copy(update={"sites": sites})

    def _shortened_entry(self, entry: SiteRound) -> SiteRound:
        site, header, fields = entry.site, entry.header, entry.fields
        if fields and self._fields.get(site) == fields:
            fields = ()
        elif fields:
            self._fields[site] = fields
        share = entry.unclipped_share
        if header is not None:
            constant, share = self._constant(header), header.unclipped_share
            if self._headers.get(site) == constant:
                header = None
            else:
                self._headers[site] = constant
        if header is entry.header and fields is entry.fields:
            return entry
        return replace(entry, header=header, fields=fields, unclipped_share=share)

    def _constant(self, header: ReplyHeader) -> tuple[object, ...]:
        if header is not self._seen[0]:
            self._seen = (header, _constant(header))
        return self._seen[1]


def used_replies(rounds: Sequence[RoundRecord]) -> Iterator[Used]:
    """Every used reply that came with a header, round after round."""
    headers: dict[str, ReplyHeader] = {}
    for each in rounds:
        number = each.round
        for entry in each.sites:
            if entry.outcome != "used":
                continue
            header, share = entry.header, entry.unclipped_share
            if header is not None:
                headers[entry.site], share = header, header.unclipped_share
            else:
                header = headers.get(entry.site)
            if header is not None:
                yield Used(number, entry.site, entry.epsilon, share, header)


@dataclass(frozen=True, slots=True)
class Stated:
    """What a used reply said of its protection."""

    epsilon: float
    """after this round"""
    privacy: PrivacyStatement
    """all else; the epsilon in it is that of the round in which it was last written whole"""


@dataclass
class SiteHistory:
    """What the rounds say of one site."""

    said: dict[int, Stated] = field(default_factory=dict)
    """round -> what its used reply said of its protection"""
    nominal_size: int = 0
    """as its last used reply declares it"""
    last_used: int = 0
    since: set[Outcome] = field(default_factory=set)
    """what became of it after its last used round, where it was asked"""

    def uses(self) -> frozenset[MechanismUse]:
        """The different mechanisms that it stated."""
        statements = {id(each.privacy): each.privacy for each in self.said.values()}
        return frozenset(map(use_of, statements.values()))

    def left_after(self) -> int | None:
        """The last round in which its update was used, where it refused every later one that asked it."""
        return self.last_used if self.last_used and self.since == {"refused"} else None


def site_histories(history: Sequence[RoundRecord]) -> dict[str, SiteHistory]:
    """site -> what the rounds say of it, all sites in one pass."""
    found: dict[str, SiteHistory] = {}
    for each in history:
        for entry in each.sites:
            held = found.setdefault(entry.site, SiteHistory())
            if entry.outcome == "used":
                held.last_used = each.round
                held.since.clear()
            elif entry.outcome != "not-asked":
                held.since.add(entry.outcome)
    for reply in used_replies(history):
        held, privacy = found[reply.site], reply.header.privacy
        held.nominal_size = reply.header.nominal_size
        if privacy is not None:
            held.said[reply.round] = Stated(privacy.epsilon if reply.epsilon is None else reply.epsilon, privacy)
    return found


def use_of(said: PrivacyStatement) -> MechanismUse:
    """The mechanism of one round, as a site stated it."""
    return MechanismUse(said.noise_multiplier, said.sample_rate, said.steps_per_round)


def metrics_line(record: RoundRecord) -> str:
    """A round as its line of metrics.jsonl, without its line end; the same round gives the same line."""
    return record.model_dump_json(exclude_defaults=True)


def read_rounds(path: Path, *, most: int | None = None) -> list[RoundRecord]:
    """The rounds that metrics.jsonl holds, the first `most` of them; none where there is no such file.

    Raises:
        RunError: a line is damaged.
    """
    lines = path.read_bytes().splitlines()[:most] if path.is_file() else []
    try:
        return [RoundRecord.model_validate_json(line) for line in lines]
    except ValidationError as error:
        raise RunError(
            f"{path}: a line is damaged ({error.error_count()} faults); restore it from a backup or start a new run"
        ) from None


def _constant(header: ReplyHeader) -> tuple[object, ...]:
    """Everything in a header that is the same in every round."""
    privacy = header.privacy
    # field by field, not by a list of names: a field that is added later must not be taken for a constant one
    said = [(name, value) for name, value in header if name not in {"round_number", "unclipped_share", "privacy"}]
    stated = [(name, value) for name, value in privacy if name != "epsilon"] if privacy is not None else []
    return (*said, *stated)
