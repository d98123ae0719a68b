"""Alternate: functions that do the same job in one process take turns; a line for each contender.

in        contenders by name, each made when its case begins and refused where it gives wrong numbers
out       lines of times, as clock.py writes them
relies on each function doing its whole job at every call, in this process and its threads
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from simulations.bench.clock import tell

Job = Callable[[], object]


@dataclass
class Turns:
    """One contender's times, or why it has none."""

    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    why_not: str = ""


def alternate(
    contenders: Mapping[str, Callable[[], Job]],
    *,
    per_call: int = 1,
    budget_s: float = 20.0,
    least: int = 5,
    most: int = 50,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Turns]:
    """Every contender once to warm up, then in turns, A B C A B C, until the time is over.

    Args:
        contenders: name -> what prepares its job; an exception there or later is its reason for having no times.
        per_call: steps that a call makes; times are told of one.
        budget_s: no further turn is begun after so long, but `least` turns are taken in any case.
    """
    jobs, turns = dict[str, Job](), {name: Turns() for name in contenders}
    for name, prepare in contenders.items():
        try:
            jobs[name] = prepare()
            jobs[name]()
        except Exception as error:  # noqa: BLE001  # whatever another library raises is what there is to tell
            turns[name].why_not = reason(error)
    begun, turn = clock(), 0
    while turn < least or (turn < most and clock() - begun < budget_s):
        turn += 1
        for name, run in jobs.items():
            if not turns[name].why_not:
                _take(run, turns[name], per_call=per_call, clock=clock)
    return turns


def tell_all(turns: Mapping[str, Turns]) -> None:
    """A line for each contender."""
    for name, each in turns.items():
        if each.why_not:
            tell(contender=name, why_not=each.why_not)
        else:
            tell(contender=name, wall_s=each.wall_s, cpu_s=each.cpu_s)


def reason(error: Exception) -> str:
    """The first line of what an exception says, cut to fit a table."""
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first}"[:160]


def _take(run: Job, turns: Turns, *, per_call: int, clock: Callable[[], float]) -> None:
    processor, wall = time.process_time(), clock()
    try:
        run()
    except Exception as error:  # noqa: BLE001  # as above
        turns.why_not = reason(error)
        return
    wall, processor = clock() - wall, time.process_time() - processor
    turns.wall_s.append(wall / per_call)
    turns.cpu_s.append(processor / per_call)
