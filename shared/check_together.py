"""Check together: what the folders of one data set tell about each other, for the same screen as check.py.

in        the summaries of all folders of a data set, its root
out       a warning for each held-out part that tests on what was trained on
relies on names of subjects and items meaning the same in every folder; nothing here is sent, logged or written
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from shared.check import FolderSummary, named

HELD_OUT = "held-out"
_MOST_NAMED = 3


def leaks(summaries: Sequence[FolderSummary], *, root: Path) -> tuple[str, ...]:
    """A sentence for each held-out folder that shares subjects, or items of a matching, with sites or other parts.

    Args:
        summaries: of the folders below `root`; with a folder alone there is nothing to compare.
        root: the data set, with held-out/ in it.
    """
    known = {named(summary.folder, root=root): summary for summary in summaries}
    parts = [name for name in known if name.split("/")[0] == HELD_OUT]
    found = list[str]()
    for number, part in enumerate(parts):
        # two parts are told of once
        others = [name for name in known if name not in parts[: number + 1]]
        for what in ("subjects", "items"):
            found += _shared(known, part, others, what=what)
    return tuple(found)


def _shared(known: dict[str, FolderSummary], part: str, others: Sequence[str], *, what: str) -> Iterator[str]:
    """The sentence about one part, where there is something to tell."""
    own = _names(known[part], what=what)
    where = {name: own & _names(known[name], what=what) for name in others}
    both = frozenset[str]().union(*where.values())
    if both:
        places = [name for name, names in where.items() if names]
        yield (
            f"{part}: {len(both)} of its {len(own)} {what} are in {_listed(places)} as well: {_listed(sorted(both))}. "
            "Scores on them are too good: a model is tested on what it has learned from. Keep all rows of "
            f"{'a subject' if what == 'subjects' else 'an item'} together, or, if these only happen to be called "
            "alike, give them names of their own"
        )


def _names(summary: FolderSummary, *, what: str) -> frozenset[str]:
    return summary.subjects if what == "subjects" else summary.items


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more
