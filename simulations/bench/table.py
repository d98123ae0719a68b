"""Table: one benchmark's results as Markdown, for the terminal and for docs/performance.md.

in        a BenchResult
out       lines
relies on results.py: where a contender has no time, its reason stands in the place of numbers
"""

from collections.abc import Sequence

from simulations.bench.results import BenchResult, CaseResult, Goal, Measured

HEAD = "| case | contender | wall, ms | smallest | quartiles | processor, ms | peak memory, MB | times the fastest |"


def render(result: BenchResult) -> list[str]:
    """What it is, every case, what was to be reached, and on what it was measured."""
    lines = [f"{result.about} Times are of {result.time_of}.", "", HEAD, "| --- | --- |" + " ---: |" * 6]
    for case in result.cases:
        lines += [_row(case, each) for each in case.measured]
    goals = [_goal(case, goal) for case in result.cases for goal in case.goals]
    if goals:
        lines += ["", "| case | to reach | reached | |", "| --- | --- | --- | --- |", *goals]
    return [*lines, "", provenance(result)]


def provenance(result: BenchResult) -> str:
    """Machine, versions, commit and repeats, in one sentence each."""
    machine, versions = result.machine, ", ".join(f"{name} {version}" for name, version in result.versions.items())
    tree = "" if result.tree_is_clean else " with changes that are in no commit"
    quick = " A quick run, whose times say little." if result.quick else ""
    return (
        f"{machine.processor}, {machine.cores} cores, {machine.memory_bytes / 1e9:.0f} GB, {machine.system}, load "
        f"{machine.load:g} before; {versions}; commit {result.commit[:12] or 'unknown'}{tree}; {result.started}; "
        f"{result.repeats} repeats in turns.{quick}"
    )


def reached(case: CaseResult, goal: Goal) -> float | None:
    """Seconds, or times the best of those that it is compared with; None where either has no time."""
    own = case.of(goal.contender).wall_s
    if own is None:
        return None
    if goal.seconds is not None:
        return own.median
    others = [each.wall_s.median for each in case.measured if each.contender in goal.against and each.wall_s]
    return own.median / min(others) if others else None


def _row(case: CaseResult, measured: Measured) -> str:
    start = f"| {case.case} | {measured.contender} |"
    if measured.wall_s is None:
        return f"{start} {measured.why_not.replace('|', '/')} | | | | | |"
    wall = measured.wall_s
    fastest = min(each.wall_s.median for each in case.measured if each.wall_s)
    cells = [
        _ms(wall.median),
        _ms(wall.smallest),
        f"{_ms(wall.lower_quartile)} to {_ms(wall.upper_quartile)}",
        _ms(measured.cpu_s.median) if measured.cpu_s else "",
        f"{measured.peak_memory_bytes / 1e6:,.0f}" if measured.peak_memory_bytes else "",
        f"{wall.median / fastest:.2f}" if fastest else "",
    ]
    return f"{start} {' | '.join(cells)} |"


def _goal(case: CaseResult, goal: Goal) -> str:
    value = reached(case, goal)
    if goal.seconds is not None:
        wanted, came = f"{goal.contender}: {goal.seconds:g} s", f"{value:.3g} s" if value is not None else ""
        met = value is not None and value <= goal.seconds
    else:
        times = goal.times or 1.0
        wanted = f"{goal.contender}: {_factor(times)} {'as' if times < 1 else 'of'} {_named(goal.against)}"
        came = _factor(value) if value is not None else ""
        met = value is not None and value <= times
    verdict = "not measured" if value is None else "yes" if met else "**no**"
    return f"| {case.case} | {wanted} | {came} | {verdict} |"


def _factor(times: float) -> str:
    """0.5 is told as twice as fast."""
    return f"{1 / times:.3g} x as fast" if times < 1 else f"{times:.3g} x the time"


def _named(against: Sequence[str]) -> str:
    return against[0] if len(against) == 1 else f"the best of {', '.join(against)}"


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:,.4g}" if seconds < 1 else f"{1e3 * seconds:,.0f}"
