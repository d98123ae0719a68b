"""Levels: each promise that a run makes, as numbers: about which unit, by whom, how strong, by which mechanism.

in        a RunRecord
out       Level, one for each unit that is protected; alarms, which stand before everything else
relies on nothing that a site did not state or the server's ledger does not hold: what is withheld stays None
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from server.records import RunRecord, SitePrivacy
from server.report.numbers import duration_text
from server.report.participation import participation
from shared.config import Clipping, NoiseKind, PrivacySettings, Unit
from shared.privacy.accountant import ERROR_OF_PRV
from shared.settings import Settings

Range = tuple[float, float]
"""smallest and largest"""

LARGEST_DISAGREEMENT = 0.05
"""how far above the stated epsilon a second accountant may be before it alarms; sound ones differ by about 1 %"""


class Level(Settings):
    """One promise of a run: about one kind of unit, kept by the sites or by the server."""

    unit: Unit
    is_central: bool
    """kept by the server, which is trusted with the updates; else by every site by itself"""
    asked_epsilon: float
    """what the run's rounds may cost at most"""
    epsilon: float | None
    """everything ever released, at the site that spent most; None where it is withheld or nothing was released"""
    run_epsilon: float | None
    """this run alone"""
    delta: float
    sites: tuple[str, ...]
    """which sites keep it"""
    noise_multipliers: Range | None
    sample_rates: Range | None
    steps: Range | None
    """noisy sums in this run: local steps of a site, or rounds of the server"""
    clipping: Clipping
    clip_norms: Range | None
    noise: tuple[NoiseKind, ...]
    accountants: tuple[str, ...]
    second_accountants: tuple[str, ...]
    second_epsilon: float | None
    disagreement: float | None
    """second opinion over the first, minus 1, for the same steps; of the site where it is furthest from 0"""
    counts_earlier: bool = False
    """`epsilon` holds what earlier runs released, too"""
    is_withheld: bool = False
    """who took part is drawn in secret, so no site's own numbers are told"""


@dataclass(frozen=True)
class Alarm:
    """What must not be overlooked; `name` is a key of the texts."""

    name: str
    values: dict[str, str]


def levels(record: RunRecord) -> tuple[Level, ...]:
    """Every promise of the run, the sites' own before the server's; none for a run without privacy."""
    local = record.run.local_privacy
    found = []
    if local is not None:
        # an owner who protects subjects does so in a run that asks for records, too
        units = {plan.unit for plan in record.privacy} or {local.unit}
        both: tuple[Literal["record", "subject"], ...] = ("record", "subject")
        found = [_local_level(record, unit, asked=local) for unit in both if unit in units]
    central = _central_level(record)
    return (*found, central) if central else tuple(found)


def is_protected(record: RunRecord) -> bool:
    """Whether anything was promised, by noise that is secret."""
    return bool(levels(record)) and not record.reproducible_noise


def alarms(record: RunRecord) -> list[Alarm]:
    """What takes the promise away, or casts doubt on it; the worst first."""
    found: list[Alarm] = []
    if not levels(record):
        found.append(Alarm("not_private", {}))
    elif record.reproducible_noise:
        found.append(Alarm("reproducible_noise", {}))
    audit = record.audit
    if audit is not None and audit.planted_fault is not None:
        found.append(Alarm("planted_fault", {"fault": audit.planted_fault}))
    if audit is not None:
        above = [attack for attack in audit.attacks if attack.lower_bound > audit.claimed_epsilon]
        for attack in above:
            said = {"attack": attack.name, "bound": f"{attack.lower_bound:.2f}", "sure": f"{attack.confidence:.0%}"}
            found.append(Alarm("audit_above_claim", {**said, "claim": f"{audit.claimed_epsilon:.2f}"}))
    failed = [check.name for check in record.preflight if not check.passed]
    if failed:
        found.append(Alarm("preflight_failed", {"checks": ", ".join(failed)}))
    for level in levels(record):
        if level.disagreement is not None and any(_disagree(*pair) for pair in _opinions(record, level)):
            found.append(Alarm("accountants_disagree", {"unit": level.unit, "share": f"{level.disagreement:.0%}"}))
    past = [plan.site for plan in record.privacy if plan.cap_epsilon is not None and plan.epsilon > plan.cap_epsilon]
    if record.central is not None and record.central.epsilon > record.central.cap_epsilon:
        past.append("the server")
    if past:
        found.append(Alarm("cap_passed", {"sites": ", ".join(past)}))
    return found


def is_withheld(record: RunRecord) -> bool:
    """Whether who took part in which round is kept by the server."""
    return participation(record).is_withheld


def run_time_text(record: RunRecord) -> str:
    """How long the run took; where the draw of sites is secret, that would tell how often they were drawn."""
    return "withheld" if is_withheld(record) else duration_text(record.seconds)


def _local_level(record: RunRecord, unit: Literal["record", "subject"], *, asked: PrivacySettings) -> Level:
    plans, withheld = [plan for plan in record.privacy if plan.unit == unit], is_withheld(record)
    found = participation(record)
    norms = [each.clip_norm for each in record.rounds if each.clip_norm is not None]
    return Level(
        unit=unit,
        is_central=False,
        asked_epsilon=asked.epsilon,
        # where participation is secret, a site's entry is what was planned for it, not what it has released
        epsilon=None if withheld else _highest(plan.epsilon for plan in plans),
        run_epsilon=None if withheld else _highest(plan.run_epsilon for plan in plans),
        delta=max((plan.delta for plan in plans), default=asked.delta),
        sites=tuple(plan.site for plan in plans),
        noise_multipliers=_range(plan.noise_multiplier for plan in plans),
        sample_rates=_range(plan.sample_rate for plan in plans),
        steps=_range(float(plan.steps) for plan in plans),
        clipping=asked.clipping,
        clip_norms=_range(norms) or _range(found.clip_norms.get(unit, ())) or (asked.clip_norm, asked.clip_norm),
        noise=tuple(sorted(found.noise.get(unit, ()))),
        accountants=tuple(sorted({plan.accountant for plan in plans})) or (asked.accountant,),
        second_accountants=tuple(sorted({plan.second_accountant for plan in plans if plan.second_epsilon is not None})),
        second_epsilon=_highest(plan.second_epsilon for plan in plans),
        disagreement=_furthest(plans),
        counts_earlier=any((plan.epsilon_before or 0.0) > 0 or plan.epsilon > asked.epsilon * 1.001 for plan in plans),
        is_withheld=withheld,
    )


def _central_level(record: RunRecord) -> Level | None:
    asked, held = record.run.central_privacy, record.central
    if asked is None:
        return None
    norms = [each.site_clip_norm for each in record.rounds if each.site_clip_norm is not None]
    rate = record.run.federation.site_sample_rate or 1.0
    return Level(
        unit="site",
        is_central=True,
        asked_epsilon=asked.epsilon,
        epsilon=held.epsilon if held else None,
        run_epsilon=held.epsilon_run if held else None,
        delta=held.delta if held else asked.delta,
        sites=record.sites,
        noise_multipliers=(held.noise_multiplier, held.noise_multiplier) if held else None,
        sample_rates=(held.sample_rate, held.sample_rate) if held else (rate, rate),
        steps=(float(held.rounds), float(held.rounds)) if held else None,
        clipping=asked.clipping,
        clip_norms=_range(norms) or (asked.clip_norm, asked.clip_norm),
        noise=("float64",),
        accountants=(held.accountant if held else asked.accountant,),
        second_accountants=(held.second_accountant,) if held and held.second_epsilon is not None else (),
        second_epsilon=held.second_epsilon if held else None,
        disagreement=_disagreement(held.epsilon_run, held.second_epsilon) if held else None,
        counts_earlier=held is not None and held.epsilon_before > 0,
        is_withheld=is_withheld(record),
    )


def _furthest(plans: Iterable[SitePrivacy]) -> float | None:
    found = [_disagreement(plan.run_epsilon, plan.second_epsilon) for plan in plans]
    return max((each for each in found if each is not None), key=abs, default=None)


def _opinions(record: RunRecord, level: Level) -> list[tuple[float | None, float | None]]:
    """The stated epsilon of the run and the second accountant's, for whatever the level has them for."""
    if level.is_central:
        held = record.central
        return [(held.epsilon_run, held.second_epsilon)] if held else []
    return [(plan.run_epsilon, plan.second_epsilon) for plan in record.privacy]


def _disagree(first: float | None, second: float | None) -> bool:
    """Whether the second is above the first by more than both methods' errors explain."""
    if first is None or second is None:
        return False
    return second > first * (1 + LARGEST_DISAGREEMENT) + ERROR_OF_PRV


def _disagreement(first: float | None, second: float | None) -> float | None:
    return second / first - 1 if first and second is not None else None


def _highest(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def _range(values: Iterable[float]) -> Range | None:
    found = list(values)
    return (min(found), max(found)) if found else None
