"""Set aside: which sites' updates a robust aggregation left out or made smaller, and in how many rounds.

in        a RunRecord
out       blocks for the page of a run and for the privacy report; none where every update counted in full
relies on AggregationNote: it follows from updates alone, and is never there where participation is secret
"""

from collections import Counter

from server.records import AggregationNote, RunRecord
from server.report.document import Block, Table, Words, rows
from server.report.participation import participation

_RULES = {
    "krum": "krum, which takes the one update that lies closest to its neighbours, and bears {hostile} hostile sites a "
    "round",
    "multi-krum": "multi-krum, which averages the updates that lie closest to their neighbours, and bears {hostile} "
    "hostile sites a round",
    "norm-bound": "a mean of updates that were cut to a norm ({bound})",
}


def set_aside_blocks(record: RunRecord) -> tuple[Block, ...]:
    """The rule in words, and a row for each site of which something was left out."""
    notes = [each.aggregated for each in record.rounds if each.aggregated is not None]
    if not notes:
        return ()
    federation = record.run.federation
    rule = _RULES[federation.aggregation].format(hostile=federation.byzantine_sites, bound=_bounds(notes))
    how = f"Updates became one by {rule}."
    left_out = Counter(site for note in notes for site in note.set_aside)
    cut = Counter(site for note in notes for site in note.scaled_down)
    used = participation(record).sites
    lines = [
        (site, str(used[site].outcomes["used"]), str(left_out[site]), str(cut[site]))
        for site in sorted(left_out | cut, key=lambda site: (-left_out[site], -cut[site], site))
    ]
    if not lines:
        return (Words(f"{how} Every update counted in full."),)
    said = (
        f"{how} Of {len(notes)} rounds that changed the model, the table says in how many a site's update was left out "
        "or cut. That proves nothing against a site: one whose data differ is left out, too, and what it spent of its "
        "budget is spent all the same."
    )
    head = ("Site", "Usable updates", "Left out", "Cut")
    return (Words(said), Table(head=head, rows=rows(*lines), numeric=(1, 2, 3)))


def _bounds(notes: list[AggregationNote]) -> str:
    bounds = [note.norm_bound for note in notes if note.norm_bound is not None]
    low, high = f"{min(bounds):.3g}", f"{max(bounds):.3g}"
    return low if low == high else f"{low} to {high}, the round's own"
