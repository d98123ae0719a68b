"""Recompute: every privacy number of a report, from the run folder and the ledgers, with the accountants.

in        the report's record; metrics.jsonl, server.json and ledgers, read apart from it
out       checks of each site, of its noisy counts and of the server
relies on nothing that the report says but which sites there are; mechanisms come from metrics and ledgers
"""

from collections.abc import Mapping, Sequence

from server.history import SiteHistory, Stated, use_of, used_replies
from server.records import CentralPrivacy, RoundRecord, RunRecord, SitePrivacy
from server.report.checks import Check, at_most, compare_fields, information, same, unchecked
from server.report.ledger_rows import SiteRows
from server.settings import ServerSettings
from shared.config import RunConfig
from shared.privacy.accountant import Accountant, MechanismUse, calibrate_noise, spent_epsilon
from shared.privacy.ledger import LedgerRow, uses_of_rows

ACCOUNTANTS: dict[str, Accountant] = {"rdp": "rdp", "prv": "prv", "pld": "pld"}
SECOND: dict[str, Accountant] = {"rdp": "pld", "prv": "pld", "pld": "prv"}


def check_site(
    plan: SitePrivacy | None,
    site: str,
    *,
    found_in: SiteHistory,
    counts: MechanismUse | None,
    rows: SiteRows | str,
    run_id: str,
) -> list[Check]:
    """What a report says of one site that protected its own units."""
    said = found_in.said
    if plan is None or not said:
        return [same(f"{site}: in the list of sites", stated=plan is not None, found=bool(said))]
    found = compare_fields(site, stated=plan.model_dump(), found=_from_metrics(site, said, counts, found_in))
    if isinstance(rows, str):
        why = f"the site's ledger is not here; {rows}" if "--ledger" in rows else rows
        return [*found, unchecked(f"{site}.epsilon, by the ledger", stated=plan.epsilon, why=why)]
    return found + _by_ledger(plan, said, counts=counts, rows=rows, run_id=run_id)


def check_planned(plan: SitePrivacy, *, run: RunConfig, rows: SiteRows | str, run_id: str) -> list[Check]:
    """What a report says of one site where participation is secret: the plan, the same whoever was drawn."""
    local = run.local_privacy
    if local is None:
        return [same(f"{plan.site}.unit", stated=plan.unit, found="nothing: the run protects no records or people")]
    rate = run.training.sampling(plan.nominal_size)
    steps = run.training.steps(plan.nominal_size) * run.federation.rounds
    noise = calibrate_noise(
        epsilon=local.epsilon, delta=local.delta, sample_rate=rate, steps=steps, accountant=local.accountant
    )
    use, second = MechanismUse(noise, rate, steps), SECOND[local.accountant]
    epsilon = spent_epsilon([use], delta=local.delta, accountant=local.accountant)
    held = {
        **dict.fromkeys(SitePrivacy.model_fields),
        "site": plan.site,
        "unit": local.unit,
        "epsilon": epsilon,
        "delta": local.delta,
        "noise_multiplier": noise,
        "sample_rate": rate,
        "steps": steps,
        "nominal_size": plan.nominal_size,
        "accountant": local.accountant,
        "second_epsilon": spent_epsilon([use], delta=local.delta, accountant=second),
        "second_accountant": second,
        "run_epsilon": epsilon,
    }
    found = compare_fields(plan.site, stated=plan.model_dump(), found=held)
    if isinstance(rows, str):
        return [*found, unchecked(f"{plan.site}: this run in the ledger", stated=plan.epsilon, why=rows)]
    own = uses_of_rows(rows.of_run(run_id), unit=local.unit)
    spent = spent_epsilon(own, delta=local.delta, accountant=local.accountant)
    return [*found, at_most(f"{plan.site}: this run in the ledger", stated=plan.epsilon, found=spent)]


def check_central(
    stated: CentralPrivacy | None,
    *,
    history: Sequence[RoundRecord],
    settings: ServerSettings,
    rows: Sequence[LedgerRow],
) -> list[Check]:
    """What a report says of whole sites."""
    privacy = settings.run.central_privacy
    if stated is None or privacy is None:
        return [same("whole sites: in the report", stated=stated is not None, found=privacy is not None)]
    mine = [row for row in rows if row.run_id == settings.run_id and row.state != "void"]
    last = max((row.id for row in mine), default=0)
    others = [row for row in rows if row.run_id != settings.run_id and row.id < last]
    accountant, delta, second = privacy.accountant, privacy.delta, SECOND[privacy.accountant]

    def epsilon(used: Sequence[LedgerRow], *, by: Accountant = accountant) -> float:
        return spent_epsilon(uses_of_rows(used, unit="site"), delta=delta, accountant=by)

    federation = settings.run.federation
    rate, num_sites = federation.site_sample_rate or 1.0, len({site.site for each in history for site in each.sites})
    asked = min(federation.sites_per_round or num_sites, num_sites)
    held = {
        "epsilon": epsilon([*others, *mine]),
        "epsilon_before": epsilon(others),
        "epsilon_run": epsilon(mine),
        "cap_epsilon": settings.site_cap_epsilon or privacy.epsilon,
        "delta": delta,
        "clipping": privacy.clipping,
        "noise_multiplier": mine[0].use.noise_multiplier if mine else None,
        "sample_rate": rate,
        "rounds": sum(row.use.steps for row in mine),
        "denominator": rate * num_sites if federation.site_sample_rate else float(asked),
        "accountant": accountant,
        "second_epsilon": epsilon(mine, by=second),
        "second_accountant": second,
    }
    found = compare_fields("whole sites", stated=stated.model_dump(), found=held)
    if any(row.use.sample_rate != rate or row.use.noise_multiplier != mine[0].use.noise_multiplier for row in mine):
        found.append(same("whole sites: one mechanism in all rows", stated=True, found=False))
    found.append(_rounds_are_charged(mine, history=history))
    for each in history:
        until = max((row.id for row in mine if row.round_number <= each.round), default=0)
        number = epsilon([row for row in (*others, *mine) if row.id <= until])
        found.append(same(f"whole sites: epsilon after round {each.round}", stated=each.site_epsilon, found=number))
    return found


def reproducible(record: RunRecord, *, history: Sequence[RoundRecord], settings: ServerSettings, noted: bool) -> Check:
    """Whether noise that a seed gives back is told."""
    said = any(reply.header.privacy.reproducible_noise for reply in used_replies(history) if reply.header.privacy)
    central = settings.reproducible_noise and settings.run.central_privacy is not None
    return same("reproducible noise", stated=record.reproducible_noise, found=said or central or noted)


def _from_metrics(
    site: str, said: Mapping[int, Stated], counts: MechanismUse | None, found: SiteHistory
) -> dict[str, object]:
    last = said[max(said)].privacy
    uses = [use_of(each.privacy) for each in said.values()]
    every = [*uses, counts] if counts else uses
    own, second = ACCOUNTANTS.get(last.accountant, "pld"), SECOND.get(last.accountant, "prv")
    return {
        "site": site,
        "unit": last.unit,
        "epsilon": max(each.epsilon for each in said.values()),
        "delta": last.delta,
        "noise_multiplier": last.noise_multiplier,
        "sample_rate": last.sample_rate,
        "steps": sum(use.steps for use in uses),
        "nominal_size": found.nominal_size,
        "accountant": last.accountant,
        "second_epsilon": spent_epsilon(every, delta=last.delta, accountant=second),
        "second_accountant": second,
        "run_epsilon": spent_epsilon(every, delta=last.delta, accountant=own),
        "epsilon_before": last.epsilon_before,
        "cap_epsilon": last.cap_epsilon,
        "left_after_round": found.left_after(),
    }


def _by_ledger(
    plan: SitePrivacy,
    said: Mapping[int, Stated],
    *,
    counts: MechanismUse | None,
    rows: SiteRows,
    run_id: str,
) -> list[Check]:
    """Every round that a site stated, against the row that paid for it, and the epsilon of all rows until then."""
    site, found, missing = plan.site, list[Check](), list[str]()
    mine = rows.of_run(run_id)
    if counts is not None and not any(row.mechanism == "counts" and row.use == counts for row in mine):
        missing.append("the noisy counts")
    by_round: dict[int, list[LedgerRow]] = {}
    for row in mine:
        by_round.setdefault(row.round_number, []).append(row)
    for number, stated in said.items():
        each = stated.privacy
        paid = [row for row in by_round.get(number, ()) if row.use == use_of(each)]
        if not paid:
            missing.append(f"round {number}")
            continue
        counted = uses_of_rows(rows.until(paid[-1]), unit=each.unit)
        epsilon = spent_epsilon(counted, delta=each.delta, accountant=ACCOUNTANTS.get(each.accountant, "pld"))
        found.append(same(f"{site}: epsilon after round {number}, by the ledger", stated=stated.epsilon, found=epsilon))
    note = f"not paid for as stated: {', '.join(missing)}" if missing else ""
    paid_for = len(said) + (counts is not None)
    found.append(same(f"{site}: rows in the ledger", stated=paid_for, found=paid_for - len(missing), note=note))
    unstated = [row for row in mine if row.mechanism != "counts" and row.round_number not in said]
    if unstated:
        last = said[max(said)].privacy
        counted = uses_of_rows(rows.until(mine[-1]), unit=last.unit)
        spent = spent_epsilon(counted, delta=last.delta, accountant=ACCOUNTANTS.get(last.accountant, "pld"))
        rounds = ", ".join(str(row.round_number) for row in unstated)
        note = f"paid for and not stated, as the reply was not used: round {rounds}; epsilon at the site is the second"
        found.append(information(f"{site}: all its rows", stated=plan.epsilon, found=spent, note=note))
    if plan.epsilon_before is not None and mine:
        earlier = [row for row in rows.rows if row.run_id != run_id and row.id < mine[0].id]
        last = said[max(said)].privacy
        spent = spent_epsilon(
            uses_of_rows(earlier, unit=last.unit),
            delta=last.delta,
            accountant=ACCOUNTANTS.get(last.accountant, "pld"),
        )
        found.append(same(f"{site}.epsilon_before, by the ledger", stated=plan.epsilon_before, found=spent))
    return found


def _rounds_are_charged(mine: Sequence[LedgerRow], *, history: Sequence[RoundRecord]) -> Check:
    """No site may have been in more rounds than were charged; where that is secret, it may have been in all."""
    asked: dict[str, int] = {}
    for each in history:
        for site in each.sites:
            asked[site.site] = asked.get(site.site, 0) + (site.outcome != "not-asked")
    most, charged = max(asked.values(), default=0), sum(row.use.steps for row in mine)
    return at_most(
        "whole sites: rounds of any one site, within those charged", stated=float(charged), found=float(most)
    )
