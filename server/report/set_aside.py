"""Set aside: which sites' updates a robust aggregation left out or made smaller, and in how many rounds.

in        a RunRecord
out       blocks for the page of a run and for the privacy report; none where every update counted in full
relies on AggregationNote: it follows from updates alone, and is never there where participation is secret
"""

from collections import Counter

from server.records import AggregationNote, RunRecord
from server.report.document import Block, Table, Words, rows
from server.report.participation import participation
from shared.config import FederationSettings


def set_aside_blocks(record: RunRecord) -> tuple[Block, ...]:
    """The rule in words, and a row for each site of which something was left out."""
    notes = [each.aggregated for each in record.rounds if each.aggregated is not None]
    if not notes:
        return ()
    how = f"Updates became one by {_rule(record.run.federation, notes=notes)}."
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


def _rule(federation: FederationSettings, *, notes: list[AggregationNote]) -> str:
    bears = f", and bears {federation.byzantine_sites} hostile sites a round"
    if federation.aggregation == "krum":
        return f"krum, which takes the one update that lies closest to its neighbours{bears}"
    if federation.aggregation == "multi-krum":
        return f"multi-krum, which averages the updates that lie closest to their neighbours{bears}"
    bounds = sorted(note.norm_bound for note in notes if note.norm_bound is not None)
    low, high = f"{bounds[0]:.3g}", f"{bounds[-1]:.3g}"
    return f"a mean of updates cut to a norm of {low}" + ("" if low == high else f" to {high}, the round's own")
