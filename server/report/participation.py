"""Participation: what became of every site in every round, counted in one pass for all tables and drawings.

in        a RunRecord, with an entry for each site and round
out       Participation: by site, by round and by field, as sums and ranges
relies on rounds being a tuple that nobody changes: the counts of the last one asked for are kept
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from server.history import used_replies
from server.records import Outcome, RoundRecord, RunRecord, SiteRound
from shared.config import NoiseKind

MISSING: frozenset[Outcome] = frozenset({"refused", "failed", "late", "invalid"})
"""what became of a site that was asked and gave nothing"""
_NOT_ASKED: frozenset[Outcome] = frozenset({"not-asked", "withheld"})

Value = str | int | float | bool


@dataclass
class SiteTotals:
    """One site over the whole run."""

    outcomes: Counter[str] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)
    sent_bytes: int = 0
    last_used: int = 0
    """the last round in which its update was used; 0 where none was"""
    gone: tuple[int, SiteRound] | None = None
    """round and entry with which it left: the first refusal after its last used update, or else the first absence"""


@dataclass
class RoundTotals:
    """One round over all sites."""

    round: int
    asked: int
    used: int


@dataclass
class Participation:
    """All that a page says about who took part, and what left them."""

    sites: dict[str, SiteTotals] = field(default_factory=dict)
    rounds: list[RoundTotals] = field(default_factory=list)
    is_withheld: bool = False
    epsilon: dict[str, list[float]] = field(default_factory=dict)
    """site -> epsilon after each round, 0 before its first reply; sites that never stated one are left out"""
    senders: dict[str, set[str]] = field(default_factory=dict)
    """field of a reply -> sites that ever sent it"""
    values: dict[str, set[Value]] = field(default_factory=dict)
    """number of a header -> the values it took; of those that change every round, the smallest and the largest"""
    noise: dict[str, set[NoiseKind]] = field(default_factory=dict)
    """unit -> kinds of noise that were stated"""
    clip_norms: dict[str, set[float]] = field(default_factory=dict)
    """unit -> clip norms that were stated"""


_latest: list[tuple[tuple[RoundRecord, ...], Participation]] = []


def participation(record: RunRecord) -> Participation:
    """The counts of a run; asked for again for the same rounds, those made before."""
    if not _latest or _latest[0][0] is not record.rounds:
        _latest[:] = [(record.rounds, _counted(record.rounds))]
    return _latest[0][1]


def _counted(rounds: tuple[RoundRecord, ...]) -> Participation:
    found = Participation()
    for place, each in enumerate(rounds):
        outcomes = Counter(entry.outcome for entry in each.sites)
        found.is_withheld = found.is_withheld or outcomes["withheld"] > 0
        asked = len(each.sites) - sum(outcomes[outcome] for outcome in _NOT_ASKED)
        found.rounds.append(RoundTotals(each.round, asked=asked, used=outcomes["used"]))
        for entry in each.sites:
            _count(entry, each.round, found)
            if entry.epsilon is not None:
                _extend(found.epsilon.setdefault(entry.site, []), entry.epsilon, place=place)
    for line in found.epsilon.values():
        line.extend([line[-1]] * (len(rounds) - len(line)))
    found.epsilon = dict(sorted(found.epsilon.items()))
    _add_headers(found, rounds)
    return found


def _count(entry: SiteRound, number: int, found: Participation) -> None:
    totals = found.sites.get(entry.site)
    if totals is None:
        totals = found.sites[entry.site] = SiteTotals()
    totals.outcomes[entry.outcome] += 1
    if entry.outcome == "used":
        totals.sent_bytes += entry.update_bytes
        totals.last_used, totals.gone = number, None
    elif entry.outcome in MISSING and (
        # a refusal tells more than a failure on the way to it
        totals.gone is None or (entry.outcome == "refused" != totals.gone[1].outcome)
    ):
        totals.gone = (number, entry)
    if entry.code is not None:
        totals.codes[entry.code] += 1
    for name in entry.fields:
        found.senders.setdefault(name, set()).add(entry.site)


def _extend(line: list[float], epsilon: float, *, place: int) -> None:
    """The line up to a round: nothing is forgotten, so it never falls."""
    last = line[-1] if line else 0.0
    line.extend([last] * (place - len(line)))
    line.append(max(epsilon, last))


def _add_headers(found: Participation, rounds: tuple[RoundRecord, ...]) -> None:
    """Values of each number: constant ones once a site, those that change every round by their extremes."""
    seen: dict[str, int] = {}
    numbers: dict[str, set[Value]] = {"round_number": set()}
    epsilons, shares = list[float](), list[float]()
    for reply in used_replies(rounds):
        numbers["round_number"].add(reply.round)
        if reply.epsilon is not None:
            epsilons.append(reply.epsilon)
        if reply.unclipped_share is not None:
            shares.append(reply.unclipped_share)
        if seen.get(reply.site) == id(reply.header):
            continue
        seen[reply.site], privacy = id(reply.header), reply.header.privacy
        held = reply.header.model_dump(exclude_none=True, exclude={"privacy", "round_number", "unclipped_share"})
        if privacy is not None:
            stated = privacy.model_dump(exclude_none=True, exclude={"epsilon"})
            held |= {f"privacy.{name}": value for name, value in stated.items()}
            found.noise.setdefault(privacy.unit, set()).add(privacy.noise)
            found.clip_norms.setdefault(privacy.unit, set()).add(privacy.clip_norm)
        for name, value in held.items():
            numbers.setdefault(name, set()).add(value)
    numbers |= {"privacy.epsilon": _extremes(epsilons), "unclipped_share": _extremes(shares)}
    found.values = {name: values for name, values in numbers.items() if values}


def _extremes(values: Iterable[float]) -> set[Value]:
    held = list(values)
    return {min(held), max(held)} if held else set()
