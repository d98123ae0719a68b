"""Budget: cap, spent before, spent in this run and left, site by site and at the server.

in        a RunRecord
out       tables of the privacy report, and the curves by round
relies on epsilons being rounded up and what is left being rounded down: neither may look better than it is
"""

import math
from dataclasses import replace

from server.records import RunRecord, SitePrivacy
from server.report.curves import privacy_charts
from server.report.document import Block, Cell, Figure, Table, Words, facts, rows
from server.report.levels import is_withheld, levels
from server.report.numbers import delta_text, epsilon_text
from server.report.participation import SiteTotals, participation
from server.report.privacy_words import PrivacyWords
from server.report.words import Words as Meanings

_HEAD = ("Site", "Unit", "Cap", "Before", "This run", "In all", "Left", "Delta", "Rounds used", "Left the run")
_MOST_ROWS, _MOST_SPENT = 24, 5
"""sites up to which each has a row at once; of more, so many of those that spent most"""


def budget_blocks(record: RunRecord, *, words: Meanings, sentences: PrivacyWords) -> tuple[Block, ...]:
    """The sites' budgets, the server's, and the curves."""
    texts, found = sentences.budget, list[Block]()
    if not levels(record):
        return (Words(texts["none"]),)
    local = record.run.local_privacy
    if local is None:
        found.append(Words(texts["no_ledger"]))
    elif is_withheld(record):
        said = texts["withheld"].format(epsilon=f"{local.epsilon:g}", delta=delta_text(local.delta))
        found += [Words(texts["lead"]), Words(said), _planned_table(record)]
    elif record.privacy:
        found += [
            Words(texts["lead"]),
            *_site_tables(record, words=words, sentences=sentences),
            Words(texts["columns"]),
        ]
    else:
        found += [Words(texts["lead"]), Words(sentences.plain["nothing"])]
    if record.central is not None:
        found += [Words(texts["server"]), _server_table(record)]
    charts = privacy_charts(record)
    return (*found, Figure(tuple(charts))) if charts else tuple(found)


def _site_tables(record: RunRecord, *, words: Meanings, sentences: PrivacyWords) -> tuple[Block, ...]:
    """One table; of many sites, those that left and those that spent most first, and all of them folded."""
    whole = site_table(record, words=words, sentences=sentences)
    if len(whole.rows) <= _MOST_ROWS:
        return (whole,)
    most = {plan.site for plan in sorted(record.privacy, key=lambda plan: (-plan.epsilon, plan.site))[:_MOST_SPENT]}
    shown = tuple(row for row in whole.rows if row[-1].text)[:_MOST_ROWS]
    named = {row[0].text for row in shown}
    shown += tuple(row for row in whole.rows if row[0].text in most - named)
    said = f"{len(whole.rows)} sites. Those that left come first, then the {_MOST_SPENT} that spent most:"
    folded = replace(whole, is_folded=True, caption=f"All {len(whole.rows)} sites")
    return (Words(said), replace(whole, rows=shown), folded)


def site_table(record: RunRecord, *, words: Meanings, sentences: PrivacyWords) -> Table:
    """A row a site; those that left come first."""
    plans = {plan.site: plan for plan in record.privacy}
    found = participation(record)
    totals = {site: found.sites.get(site, SiteTotals()) for site in record.sites}
    spent, left_texts = found.epsilon, {site: _left_text(held, words=words) for site, held in totals.items()}
    lines = []
    for site in sorted(record.sites, key=lambda site: (not left_texts[site].text, site)):
        if site in plans:
            numbers = _numbers(plans[site], sentences=sentences)
        else:
            # it never protected an update that arrived; what it spent for nothing is in its own ledger
            stated = epsilon_text(spent[site][-1]) if site in spent else "–"
            numbers = ("–", "–", "–", "–", stated, "–", "–")
        lines.append((site, *numbers, f"{totals[site].outcomes['used']} of {len(record.rounds)}", left_texts[site]))
    return Table(head=_HEAD, rows=rows(*lines), numeric=(2, 3, 4, 5, 6, 7))


def left_text(cap: float, epsilon: float) -> str:
    """What is left of a cap, rounded down."""
    return f"{max(0.0, math.floor(round((cap - epsilon) * 100, 6)) / 100):.2f}"


def _numbers(plan: SitePrivacy, *, sentences: PrivacyWords) -> tuple[str | Cell, ...]:
    not_told = sentences.budget["not_told"]
    cap, before = plan.cap_epsilon, plan.epsilon_before
    is_past = cap is not None and plan.epsilon > cap
    return (
        plan.unit,
        not_told if cap is None else f"{cap:.2f}",
        not_told if before is None else epsilon_text(before),
        epsilon_text(plan.run_epsilon),
        Cell(epsilon_text(plan.epsilon), "bad" if is_past else "good"),
        not_told if cap is None else left_text(cap, plan.epsilon),
        delta_text(plan.delta),
    )


def _left_text(totals: SiteTotals, *, words: Meanings) -> Cell:
    """When and why a site gave no more updates; empty where it was there to the end."""
    if totals.gone is None:
        return Cell("")
    last, (number, entry) = totals.last_used, totals.gone
    why = words.outcomes[entry.outcome] + (f": {words.code(entry.code)}" if entry.code else "")
    return Cell(f"{f'after round {last}' if last else 'never began'}; in round {number} {why}", "bad")


def _planned_table(record: RunRecord) -> Table:
    """What the run can add at each site at most: the same whether or not the site was ever drawn."""
    lines = [(plan.site, plan.unit, epsilon_text(plan.epsilon), delta_text(plan.delta)) for plan in record.privacy]
    return Table(head=("Site", "Unit", "This run, at most", "Delta"), rows=rows(*lines), numeric=(2, 3))


def _server_table(record: RunRecord) -> Table:
    held = record.central
    if held is None:
        return facts()
    is_past = held.epsilon > held.cap_epsilon
    line = (
        "the server, for every site",
        f"{held.cap_epsilon:.2f}",
        epsilon_text(held.epsilon_before),
        epsilon_text(held.epsilon_run),
        Cell(epsilon_text(held.epsilon), "bad" if is_past else "good"),
        left_text(held.cap_epsilon, held.epsilon),
        delta_text(held.delta),
        f"{held.rounds}",
    )
    head = ("Whole sites", "Cap", "Before", "This run", "In all", "Left", "Delta", "Rounds charged")
    return Table(head=head, rows=rows(line), numeric=(1, 2, 3, 4, 5, 6, 7))
