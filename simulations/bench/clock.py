"""Clock: what a benchmark's program measures of itself, and how it says so.

in        marks at the start and after every round; the processes that the program has started
out       a line "RESULT {json}" on standard output for each contender, read by harness.py
relies on nothing but the standard library: the peers run it in environments that lack ours. Processes are counted where
          the system lists them under /proc; elsewhere only the program's own and those it has waited for
"""

import json
import os
import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

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


def tree_cpu_s(root: int | None = None) -> float:
    """Processor seconds of a process (this one, if none is named), of its descendants, and of those they waited for."""
    me = os.getpid()
    root = me if root is None else root
    total, own = 0.0, os.times()
    for process in tree(root):
        if process == me:
            # to the nanosecond, where others are told in ticks of ten milliseconds
            total += time.process_time() + own.children_user + own.children_system
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


class Clock:
    """Wall and processor time between marks; the first interval is warm-up and left out."""

    def __init__(self, cpu: Callable[[], float] = tree_cpu_s) -> None:
        self._cpu = cpu
        self._wall: list[float] = []
        self._processor: list[float] = []

    def mark(self) -> None:
        """A round begins or ends here."""
        self._wall.append(time.perf_counter())
        self._processor.append(self._cpu())

    def tell(self, **numbers: float) -> None:
        """The line with the median wall and mean processor seconds of a round."""
        rounds = [after - before for before, after in zip(self._wall, self._wall[1:], strict=False)]
        if len(rounds) < 2:
            raise RuntimeError(f"{len(rounds)} rounds were marked; allowed: two or more, as the first is warm-up")
        processor = (self._processor[-1] - self._processor[1]) / (len(rounds) - 1)
        tell(wall_s=[statistics.median(rounds[1:])], cpu_s=[processor], numbers={"first_s": rounds[0], **numbers})


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
