"""Verify: a report held against the run folder and the ledgers, number by number.

in        a run folder, and ledgers where the sites' own are elsewhere
out       Verification: every number stated, computed again, its difference and a verdict
relies on recompute.py for the arithmetic; a number that could not be checked is never called right
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from server.checkpoint import STATE_FILE
from server.code_digest import code_digest
from server.history import METRICS_FILE, SiteHistory, read_rounds, site_histories
from server.records import RoundRecord, RunRecord
from server.report.again import AUDIT_FILE, pages_of, read_audit
from server.report.checks import Check, first_difference, information, same, unchecked
from server.report.html import StoredReport, read_report
from server.report.ledger_rows import SERVER_LEDGER, NamedLedger, SiteRows, find_site_rows
from server.report.levels import is_withheld
from server.report.recompute import check_central, check_planned, check_site, reproducible
from server.report.registry import registry_entry
from server.report.round_totals import RoundTotals, round_totals
from server.settings import ServerSettings, read_preflight, read_settings
from shared.errors import RunError
from shared.privacy.accountant import MechanismUse
from shared.privacy.ledger import Ledger


@dataclass(frozen=True)
class Verification:
    """What came of checking one report."""

    checks: tuple[Check, ...]
    sites: tuple[str, ...] = ()
    """whose names the names of their checks begin with"""

    @property
    def is_sound(self) -> bool:
        """Every number was checked, and none differs."""
        return not any(check.verdict in {"differs", "not checked"} for check in self.checks)


def verify(
    folder: Path, *, ledgers: Sequence[NamedLedger] = (), tell: Callable[[str], None] = lambda _: None
) -> Verification:
    """Holds report.json against metrics.jsonl, server.json, audit.json, preflight.json and the ledgers.

    Args:
        folder: of a run that has ended.
        ledgers: of sites whose ledgers are not in the run folder.
        tell: called with a site's name before its numbers are computed, which can take seconds.

    Raises:
        RunError: the folder holds no report, or a file in it cannot be read.
        LedgerError: a ledger cannot be read.
    """
    report = read_report(folder)
    record, entry = report.record, report.entry
    settings = read_settings(folder)
    # version 0.2.0 kept all rounds twice: in report.json and in metrics.jsonl
    history = record.rounds if report.rounds is not None else _read_history(folder)
    found = [
        same("settings, SHA-256", stated=record.run.digest, found=settings.run.digest),
        *_circumstances(record, settings=settings, history=history),
        *_rounds(report, history),
        reproducible(record, history=history, settings=settings, noted=_noted(folder)),
    ]
    if settings.run.local_privacy is not None:
        found += _sites(record, folder=folder, history=history, settings=settings, ledgers=ledgers, tell=tell)
    if settings.run.central_privacy is not None or record.central is not None:
        tell("the server")
        found += _central(record, folder=folder, history=history, settings=settings)
    found += _beside(record, entry, folder=folder)
    digest = code_digest()
    if record.code_digest == digest:
        found.append(same("program, SHA-256", stated=record.code_digest, found=digest))
    else:
        note = "the run was made by another program than this one; numbers are still computed by this one"
        found.append(information("program, SHA-256", stated=record.code_digest or None, found=digest, note=note))
    found += _pages(record, folder=folder, is_this_program=record.code_digest == digest)
    return Verification(tuple(found), sites=tuple(record.sites))


def _circumstances(record: RunRecord, *, settings: ServerSettings, history: Sequence[RoundRecord]) -> list[Check]:
    """Where and on what the run was made: a simulation on generated data must not pass for anything else."""
    cards = [{"card": card.model_dump(mode="json") if card else None} for card in (record.card, settings.card)]
    sites = sorted({site.site for each in history for site in each.sites})
    return [
        same("engine", stated=record.engine, found=settings.engine),
        same("started", stated=record.started, found=settings.started),
        _whole("data set and where it comes from", first_difference(cards[0], cards[1])),
        *([same("sites", stated=", ".join(sorted(record.sites)), found=", ".join(sites))] if history else []),
    ]


def _rounds(report: StoredReport, history: Sequence[RoundRecord]) -> list[Check]:
    """The report's rounds against metrics.jsonl, field by field; those that it keeps as totals with their digests."""
    stated: Sequence[RoundTotals | RoundRecord] = report.record.rounds if report.rounds is None else report.rounds
    held: Sequence[RoundTotals | RoundRecord] = history if report.rounds is None else round_totals(history)
    found = [same("rounds", stated=len(stated), found=len(held))]
    for first, second in zip(stated, held, strict=False):
        if first != second:
            where = first_difference(_dumped(first), _dumped(second))
            found.append(_whole(f"round {first.round}", where or "something"))
    if len(found) == 1 and found[0].verdict == "same":
        found.append(same("everything in every round", stated=len(stated), found=len(held)))
    return found


def _dumped(record: RoundTotals | RoundRecord) -> object:
    return record.model_dump(mode="json")


def _sites(
    record: RunRecord,
    *,
    folder: Path,
    history: Sequence[RoundRecord],
    settings: ServerSettings,
    ledgers: Sequence[NamedLedger],
    tell: Callable[[str], None],
) -> list[Check]:
    plans = {plan.site: plan for plan in record.privacy}
    histories = site_histories(history)
    names = sorted({*plans, *(site for site, held in histories.items() if held.said)})
    rows = find_site_rows(folder, given=ledgers, sites=names, run_id=settings.run_id, histories=histories)
    counts, found = (
        {each.site: MechanismUse(each.noise_multiplier, 1.0, 1) for each in record.statistics},
        list[Check](),
    )
    for site in names:
        tell(site)
        if is_withheld(record) and site in plans:
            found += check_planned(plans[site], run=settings.run, rows=rows[site], run_id=settings.run_id)
        else:
            found += check_site(
                plans.get(site),
                site,
                found_in=histories.get(site, SiteHistory()),
                counts=counts.get(site),
                rows=rows[site],
                run_id=settings.run_id,
            )
    gone = [
        same(f"{site}: rows of the run, and no such site in the report", stated=0, found=len(paid))
        for site, held in rows.items()
        if site not in record.sites and isinstance(held, SiteRows) and (paid := held.of_run(settings.run_id))
    ]
    return [*found, *gone, *_uncounted(counts, names=names, rows=rows, run_id=settings.run_id)]


def _uncounted(
    counts: dict[str, MechanismUse], *, names: Sequence[str], rows: dict[str, SiteRows | str], run_id: str
) -> list[Check]:
    """Noisy counts that a ledger holds and the report does not, or of a site that sent nothing else."""
    found = [
        unchecked(f"{site}: noisy counts", stated="sent", why="no round of it is here")
        for site in set(counts) - set(names)
    ]
    for site in names:
        held = rows[site]
        if site not in counts and isinstance(held, SiteRows):
            paid = [row for row in held.of_run(run_id) if row.mechanism == "counts"]
            if paid:
                note = "paid for, and in no report: their reply was lost, or they were taken out"
                found.append(information(f"{site}: noisy counts", stated="none", found="in the ledger", note=note))
    return found


def _central(
    record: RunRecord, *, folder: Path, history: Sequence[RoundRecord], settings: ServerSettings
) -> list[Check]:
    own = folder / SERVER_LEDGER
    path = own if own.is_file() else settings.ledger
    if path is None or not path.is_file():
        why = f"the server's ledger is not here: {path or own}"
        return [unchecked("whole sites: epsilon", stated=record.central and record.central.epsilon, why=why)]
    rows = Ledger.existing(path).rows(settings.federation)
    return check_central(record.central, history=history, settings=settings, rows=rows)


def _beside(record: RunRecord, entry: object, *, folder: Path) -> list[Check]:
    """What the report repeats from files beside it, and what follows from the rest of it."""
    made = registry_entry(record)
    expected = made.model_dump(mode="json", exclude_none=True) if made else None
    where = first_difference(entry, expected)
    found = [_whole("deployment registry entry", where)]
    if where and record.code_digest != code_digest() and _promised(entry) == _promised(expected):
        note = f"another program says it in other words, at {where}; its unit, epsilon and delta are the same"
        found = [information("deployment registry entry", stated="other words", found="this one's", note=note)]
    checks = read_preflight(folder)
    if checks or record.preflight:
        held = [[check.model_dump() for check in each] for each in (record.preflight, checks)]
        where = first_difference({"preflight": held[0]}, {"preflight": held[1]})
        found.append(_whole("preflight checks", where))
    if record.audit is not None:
        audit = read_audit(folder)
        if audit is not None:
            where = first_difference(record.audit.model_dump(mode="json"), audit.model_dump(mode="json"))
            found.append(_whole("audit", where))
        else:
            found.append(unchecked("audit", stated="in report.json", why=f"no {AUDIT_FILE} in the run folder"))
    elif (folder / AUDIT_FILE).is_file():
        note = "made after the run; its numbers stand in that file alone and were not computed again"
        found.append(information("audit", stated="on the pages", found=AUDIT_FILE, note=note))
    return found


def _pages(record: RunRecord, *, folder: Path, is_this_program: bool) -> list[Check]:
    """The pages that people read, byte for byte as this program makes them of the record."""
    found = []
    for name, texts in pages_of(record, folder=folder).items():
        path = folder / name
        if not path.is_file():
            continue
        if is_this_program:
            where = (
                ""
                if path.read_bytes() in texts
                else f"not what report.json says; write it again: motet report {folder}"
            )
            found.append(_whole(name, where))
        else:
            note = "made by another program, so it was not compared; write it again with: motet report"
            found.append(information(name, stated="there", found="not made", note=note))
    return found


def _promised(entry: object) -> object:
    """Unit, epsilon and delta of a deployment registry entry; nothing where there are none."""
    for key in ("deployment", "privacy_loss"):
        entry = entry.get(key) if isinstance(entry, dict) else None
    return [entry.get(key) for key in ("privacy_unit", "privacy_parameters")] if isinstance(entry, dict) else None


def _whole(name: str, where: str) -> Check:
    """A part of the report that has to be there as it is elsewhere; `where` it is not."""
    return same(name, stated="as stated", found="other" if where else "as stated", note=where)


def _noted(folder: Path) -> bool:
    """Whether the last checkpoint says that a site's noise could be drawn again."""
    path = folder / "checkpoints" / STATE_FILE
    try:
        held = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise RunError(f"{path}: not readable ({error}); restore it from a backup") from None
    return bool(isinstance(held, dict) and held.get("reproducible_noise"))


def _read_history(folder: Path) -> list[RoundRecord]:
    path = folder / METRICS_FILE
    if not path.is_file():
        raise RunError(f"{folder}: no {METRICS_FILE} in it; give the whole folder of a run that has ended")
    return read_rounds(path)
