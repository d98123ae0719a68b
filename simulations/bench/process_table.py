"""Process table: what the processes of a deployment on this machine hold and use, by what they are.

in        a deployment of soak_site.py
out       memory now and at its peak, CPU seconds so far, by side (site or server) and kind of process
relies on /proc: PSS counts a page that n processes share as one nth of it in each, so that sums are what is held
"""

import contextlib
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from simulations.bench.soak_site import SoakDeployment, kind_of

_TICKS = os.sysconf("SC_CLK_TCK")
_HOME = b"MOTET_HOME="
Kind = str
"""such as "site agent" or "server superlink" """


@dataclass(frozen=True)
class Held:
    """Memory of one process in bytes."""

    pss: int
    rss: int


def processes_of(made: SoakDeployment) -> dict[int, Kind]:
    """Id -> kind of every process of a deployment that is there now; one look at /proc for all of its machines."""
    sides = {made.server.mark.encode(): "server"} | {each.mark.encode(): "site" for each in made.sites.values()}
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            told = (process / "environ").read_bytes().split(b"\0")
            home = next((each[len(_HOME) :] for each in told if each.startswith(_HOME)), b"")
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if home in sides and command:
                found[int(process.name)] = f"{sides[home]} {name_of(command)}"
    return found


def name_of(command: str) -> str:
    """As `kind_of`, with commands that end by themselves told from those that supervise."""
    kind = kind_of(command)
    return "command" if kind == "supervisor" and " start " not in command else kind


def memory_of(pid: int) -> Held | None:
    """None where the process has gone, or holds nothing any more."""
    with contextlib.suppress(OSError):
        return held_in(Path(f"/proc/{pid}/smaps_rollup").read_text("ascii"))
    return None


def held_in(rollup: str) -> Held | None:
    """What the text of smaps_rollup says."""
    told = {words[0].rstrip(":"): words[1] for line in rollup.splitlines() if len(words := line.split()) == 3}
    return Held(pss=int(told["Pss"]) * 1024, rss=int(told["Rss"]) * 1024) if {"Pss", "Rss"} <= told.keys() else None


def cpu_in(stat: str) -> tuple[float, float]:
    """CPU seconds of a process, and of its children that have ended, from the text of its stat file."""
    # the name in brackets may hold anything
    words = stat.rpartition(")")[2].split()
    user, system, of_children, system_of_children = (int(word) / _TICKS for word in words[11:15])
    return user + system, of_children + system_of_children


def cpu_of(processes: Mapping[int, Kind]) -> dict[Kind, float]:
    """CPU seconds so far by kind; of client apps, which end with their message, what their starter has waited for."""
    used = defaultdict[Kind, float](float)
    for pid, kind in processes.items():
        with contextlib.suppress(OSError):
            own, ended = cpu_in(Path(f"/proc/{pid}/stat").read_text("utf-8"))
            used[kind] += own
            if kind == "site superexec":
                used["site clientapp"] += ended
    return dict(used)


def growth(before: Mapping[Kind, float], after: Mapping[Kind, float], *, per: float) -> dict[Kind, float]:
    """CPU seconds used between two looks, for each of `per` rounds, minutes or the like."""
    return {kind: (value - before.get(kind, 0.0)) / per for kind, value in after.items()}


class Peaks:
    """The largest that each process was seen to hold, and how many of a kind there were at once."""

    def __init__(self) -> None:
        self._largest: dict[int, tuple[Kind, Held]] = {}
        self._most = defaultdict[Kind, int](int)
        self.most_processes = 0
        self.most_pss = 0
        """of all processes together"""

    def look(self, processes: Mapping[int, Kind]) -> None:
        """Takes in what they hold now."""
        found = {pid: held for pid in processes if (held := memory_of(pid)) is not None}
        for pid, held in found.items():
            kind, largest = processes[pid], self._largest.get(pid, (processes[pid], Held(0, 0)))[1]
            self._largest[pid] = kind, Held(max(largest.pss, held.pss), max(largest.rss, held.rss))
        for kind in set(processes.values()):
            self._most[kind] = max(self._most[kind], sum(each == kind for each in processes.values()))
        self.most_processes = max(self.most_processes, len(processes))
        self.most_pss = max(self.most_pss, sum(held.pss for held in found.values()))

    def of_one(self) -> dict[Kind, tuple[int, Held]]:
        """Kind -> most at once, and the median over its processes of the most that each held."""
        by_kind = defaultdict[Kind, list[Held]](list)
        for kind, held in self._largest.values():
            by_kind[kind].append(held)
        return {kind: (self._most[kind], _middle(by_kind[kind])) for kind in sorted(by_kind)}


def available_bytes() -> int:
    """Memory that this machine has left for new processes."""
    lines = Path("/proc/meminfo").read_text("ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


def _middle(held: Iterable[Held]) -> Held:
    found = list(held)
    return Held(pss=int(median(each.pss for each in found)), rss=int(median(each.rss for each in found)))
