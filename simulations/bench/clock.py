"""Clock: what a benchmark's program measures of itself, and how it says so.

in        marks at the start and after every round; the processes that the program has started
out       a line "RESULT {json}" on standard output for each contender, read by harness.py
relies on nothing but the standard library: the peers run it in environments that lack ours. Processes are counted where
          the system lists them under /proc; elsewhere only the program's own and those it has waited for
"""

import itertools
import json
import os
import resource
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

MARK = "RESULT "
_PROC = Path("/proc")
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def tree(root: int) -> list[int]:
    """A process and all that descend from it now, by number."""
    children: dict[int, list[int]] = {}
    for folder in _PROC.glob("[0-9]*"):
        stat = _stat(int(folder.name))
        if stat:
            children.setdefault(int(stat[1]), []).append(int(folder.name))
    found = [root]
    for each in found:
        found.extend(children.get(each, ()))
    return found


def others_cpu_s(root: int) -> float:
    """Processor seconds of a process and its descendants, this one left out but not what it has waited for."""
    me, total = os.getpid(), 0.0
    for process in tree(root):
        if process == me:
            own = os.times()
            total += own.children_user + own.children_system
        elif stat := _stat(process):
            total += sum(int(ticks) for ticks in stat[11:15]) * _TICK_S
    return total


def tree_resident_bytes(root: int) -> int:
    """Memory that a process and its descendants hold now; pages that several share count once for each."""
    total = 0
    for process in tree(root):
        try:
            total += int((_PROC / str(process) / "statm").read_text().split()[1])
        except (OSError, IndexError):  # it has ended since, or the system has no /proc
            continue
    return total * resource.getpagesize()


class Mark(NamedTuple):
    """What was read between two rounds. Reading takes milliseconds of its own, which belong to neither."""

    ended_wall: float
    ended_own: float
    others: float
    """processor seconds of other processes, in ticks of ten milliseconds"""
    begun_wall: float
    begun_own: float
    """processor seconds of this process, to the nanosecond"""


class Clock:
    """Wall and processor time between marks; the first interval is warm-up and left out.

    Args:
        root: process whose descendants are counted; this one, if none is named.
    """

    def __init__(self, root: int | None = None) -> None:
        self._root = os.getpid() if root is None else root
        self._marks: list[Mark] = []

    def mark(self) -> None:
        """A round begins or ends here."""
        ended = time.perf_counter(), time.process_time()
        others = others_cpu_s(self._root)
        self._marks.append(Mark(*ended, others, time.perf_counter(), time.process_time()))

    def tell(self, **numbers: float) -> None:
        """The line with the median wall and mean processor seconds of a round."""
        told = rounds_of(self._marks)
        tell(wall_s=[told.wall_s], cpu_s=[told.cpu_s], numbers={"first_s": told.first_s, **numbers})


class Rounds(NamedTuple):
    """What the marks of a run say."""

    first_s: float
    wall_s: float
    """median of all but the first"""
    cpu_s: float
    """mean of all but the first"""


def rounds_of(marks: Sequence[Mark]) -> Rounds:
    """Times of a round from the marks before and after each.

    Raises:
        RuntimeError: there is none beside the first.
    """
    pairs = list(itertools.pairwise(marks))
    if len(pairs) < 2:
        raise RuntimeError(f"{len(pairs)} rounds were marked; allowed: two or more, as the first is warm-up")
    walls = [after.ended_wall - before.begun_wall for before, after in pairs]
    own = sum(after.ended_own - before.begun_own for before, after in pairs[1:])
    others = marks[-1].others - marks[1].others
    return Rounds(walls[0], statistics.median(walls[1:]), (own + others) / len(pairs[1:]))


def tell(
    *,
    wall_s: Sequence[float] = (),
    cpu_s: Sequence[float] = (),
    numbers: Mapping[str, float] | None = None,
    contender: str = "",
    why_not: str = "",
) -> None:
    """One contender's line: its times, or why it has none."""
    said = {"wall_s": list(wall_s), "cpu_s": list(cpu_s), "numbers": dict(numbers or {})}
    print(MARK + json.dumps({"contender": contender, "why_not": why_not, **said}), flush=True)


def _stat(process: int) -> list[str]:
    """Fields of /proc/PROCESS/stat from the state on (the third); none where it has ended."""
    try:
        text = (_PROC / str(process) / "stat").read_text()
    except OSError:
        return []
    return text[text.rindex(")") + 2 :].split()
