"""Tests of simulations/bench/: contenders take turns, and what is shown is what was measured or why it was not."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from shared.errors import RunError
from simulations.bench.alternate import Job, alternate
from simulations.bench.benchmarks import BENCHMARKS
from simulations.bench.clock import Clock, Mark, rounds_of
from simulations.bench.harness import Benchmark, Case, Plan, Program, run_benchmark, run_case
from simulations.bench.page import NOTHING, PAGE, with_tables
from simulations.bench.results import BenchResult, Goal, Measured, read_results, spread, write_result
from simulations.bench.table import reached, render

needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="the system lists no processes there")


def program(name: str, body: str, **more: object) -> Program:
    """A program that says what `body` has it say, by `tell`."""
    return Program((name,), (sys.executable, "-c", f"from simulations.bench.clock import tell\n{body}"), **more)  # type: ignore[arg-type]


def counting(name: str, *, log: Path, first: float, then: float) -> Program:
    """Writes its name down; its first time is one, every later one another."""
    body = (
        f"from pathlib import Path\nlog = Path({str(log)!r})\nbefore = log.read_text() if log.exists() else ''\n"
        f"log.write_text(before + {name!r})\n"
        f"tell(wall_s=[{first} if {name!r} not in before else {then}], cpu_s=[2.0])"
    )
    return program(name, body)


def silent(_: str) -> None:
    """Nobody reads it."""


def result_of(*cases: Case, repeats: int = 1) -> BenchResult:
    plan = Plan(work=Path(), peers=Path(), repeats=repeats)
    return run_benchmark(Benchmark("fake", "A fake.", "a turn", lambda _: cases), plan=plan, say=silent)


def test_programs_take_turns_and_the_median_is_over_all_of_them(tmp_path: Path) -> None:
    log = tmp_path / "log"
    programs = (counting("A", log=log, first=9.0, then=1.0), counting("B", log=log, first=4.0, then=4.0))
    case = run_case(Case("case", programs), repeats=3, say=silent)

    assert log.read_text() == "ABABAB"
    wall = case.of("A").wall_s
    assert wall is not None
    assert (wall.median, wall.smallest, wall.samples) == (1.0, 1.0, 3)
    assert (wall.lower_quartile, wall.upper_quartile) == (1.0, 5.0)
    assert case.of("B").wall_s == spread([4.0, 4.0, 4.0])
    assert case.of("B").cpu_s == spread([2.0, 2.0, 2.0])


def test_one_program_may_speak_for_several_contenders() -> None:
    body = "tell(contender='x', wall_s=[1.0], cpu_s=[1.0]); tell(contender='y', why_not='will not')"
    command = (sys.executable, "-c", f"from simulations.bench.clock import tell\n{body}")
    case = run_case(Case("case", (Program(("x", "y"), command),)), repeats=2, say=silent)

    assert case.of("x").wall_s == spread([1.0, 1.0])
    assert case.of("x").peak_memory_bytes is None
    assert case.of("y") == Measured(contender="y", why_not="will not")


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("raise SystemExit('no such thing')", "exit code 1: no such thing"),
        ("tell(wall_s=[1.0], cpu_s=[1.0], why_not='wrong numbers')", "wrong numbers"),
        ("pass", "it ended without a result"),
    ],
)
def test_a_program_that_fails_is_shown_with_its_reason_and_never_as_a_number(body: str, why: str) -> None:
    good = program("good", "tell(wall_s=[0.5], cpu_s=[0.5])")
    goal = Goal(contender="bad", against=("good",), times=1.0)
    result = result_of(Case("case", (good, program("bad", body)), (goal,)))

    (case,) = result.cases
    assert case.of("bad") == Measured(contender="bad", why_not=why)
    assert reached(case, goal) is None
    (row,) = [line for line in render(result) if line.startswith("| case | bad |")]
    assert row == f"| case | bad | {why} | | | | | |"
    assert any("not measured" in line for line in render(result))


def test_a_contender_that_fails_once_has_no_number_whatever_its_other_turns_gave(tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    body = (
        f"from pathlib import Path\nflag = Path({str(flag)!r})\n"
        "if flag.exists(): raise SystemExit('second time')\nflag.touch()\ntell(wall_s=[1.0], cpu_s=[1.0])"
    )
    case = run_case(Case("case", (program("A", body),)), repeats=3, say=silent)

    assert case.of("A") == Measured(contender="A", why_not="exit code 1: second time")


def test_a_program_that_is_not_there_is_told_and_not_run(tmp_path: Path) -> None:
    log = tmp_path / "log"
    gone = Program(("gone",), counting("gone", log=log, first=1, then=1).command, missing="not installed")
    case = run_case(Case("case", (gone,)), repeats=2, say=silent)

    assert case.of("gone") == Measured(contender="gone", why_not="not installed")
    assert not log.exists()


def test_a_program_that_takes_too_long_is_stopped() -> None:
    slow = program("slow", "import time; time.sleep(60)", timeout_s=0.5)
    case = run_case(Case("case", (slow,)), repeats=2, say=silent)

    assert case.of("slow").why_not == "stopped after 0.5 s"


@needs_proc
def test_peak_memory_and_processor_time_are_those_of_all_that_a_program_started() -> None:
    """The child of the program holds 200 MB and works until the system has counted 0.2 s."""
    child = "import time\nheld = bytearray(b'x') * 200_000_000\nwhile time.process_time() < 0.2: pass\ntime.sleep(1)"
    body = (
        "import os, subprocess, sys, time\nfrom simulations.bench.clock import others_cpu_s\n"
        f"child = subprocess.Popen([sys.executable, '-c', {child!r}])\ntime.sleep(0.1)\n"
        "while child.poll() is None and others_cpu_s(child.pid) < 0.2: time.sleep(0.01)\n"
        "alive = child.poll() is None\ntell(wall_s=[1.0], cpu_s=[others_cpu_s(os.getpid()) if alive else 0.0])\nchild.wait()"
    )
    measured = run_case(Case("case", (program("A", body),)), repeats=1, say=silent).of("A")

    assert measured.peak_memory_bytes is not None
    assert measured.peak_memory_bytes > 200_000_000
    assert measured.cpu_s is not None
    assert measured.cpu_s.median >= 0.2


def test_functions_take_turns_after_one_call_to_warm_up() -> None:
    calls, now = list[str](), [0.0]

    def takes(name: str, *seconds: float) -> Callable[[], Job]:
        left = list(seconds)

        def run() -> None:
            calls.append(name)
            now[0] += left.pop(0)

        return lambda: run

    turns = alternate(
        {"A": takes("A", 99.0, 2.0, 4.0), "B": takes("B", 99.0, 1.0, 1.0)},
        per_call=2,
        budget_s=0.0,
        least=2,
        clock=lambda: now[0],
    )

    assert "".join(calls) == "ABABAB"
    assert (turns["A"].wall_s, turns["B"].wall_s) == ([1.0, 2.0], [0.5, 0.5])


def test_a_function_that_breaks_leaves_the_others_their_turns() -> None:
    def broken() -> Job:
        raise ValueError("cannot be prepared\nand more")

    def breaks() -> None:
        raise RuntimeError("cannot be run")

    turns = alternate({"A": broken, "B": lambda: breaks, "C": lambda: int}, least=2, budget_s=0.0)

    assert (turns["A"].why_not, turns["A"].wall_s) == ("ValueError: cannot be prepared", [])
    assert (turns["B"].why_not, turns["B"].wall_s) == ("RuntimeError: cannot be run", [])
    assert len(turns["C"].wall_s) == 2


def test_the_first_round_and_what_the_marks_themselves_take_are_left_out() -> None:
    """Reading takes one second of wall and half a second of processor time at every mark."""
    marks = [
        Mark(0.0, 0.0, 0.0, 1.0, 0.5),
        Mark(90.0, 70.0, 60.0, 91.0, 70.5),
        Mark(93.0, 71.0, 61.0, 94.0, 71.5),
        Mark(98.0, 74.5, 64.0, 99.0, 75.0),
    ]
    told = rounds_of(marks)

    assert told.first_s == 89.0
    assert told.wall_s == 3.0  # of 2 and 4
    assert told.cpu_s == (0.5 + 3.0 + (64.0 - 60.0)) / 2
    with pytest.raises(RuntimeError, match="1 rounds"):
        rounds_of(marks[:2])


def test_a_clock_tells_rounds_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    for _ in range(3):
        clock.mark()
    clock.tell(accuracy=1.0)

    told = json.loads(capsys.readouterr().out.removeprefix("RESULT "))
    assert 0 <= told["wall_s"][0] < 60
    assert 0 <= told["cpu_s"][0] < 60
    assert told["numbers"]["accuracy"] == 1.0


def test_a_goal_is_held_against_the_best_of_those_that_ran() -> None:
    programs = tuple(
        program(name, f"tell(wall_s=[{seconds}], cpu_s=[{seconds}])")
        for name, seconds in (("ours", 1.0), ("slow", 8.0), ("fast", 2.0))
    )
    met = Goal(contender="ours", against=("slow", "fast", "gone"), times=0.5)
    missed = Goal(contender="ours", against=("fast",), times=0.4)
    late = Goal(contender="slow", seconds=7.0)
    gone = Program(("gone",), (), missing="not installed")
    result = result_of(Case("case", (*programs, gone), (met, missed, late)))

    assert [reached(result.cases[0], goal) for goal in (met, missed, late)] == [0.5, 0.5, 8.0]
    lines = "\n".join(render(result))
    assert "| case | ours: 2 x as fast as the best of slow, fast, gone | 2 x as fast | yes |" in lines
    assert "| case | ours: 2.5 x as fast as fast | 2 x as fast | **no** |" in lines
    assert "| case | slow: 7 s | 8 s | **no** |" in lines


def test_a_quick_run_claims_nothing() -> None:
    programs = (program("ours", "tell(wall_s=[1.0], cpu_s=[1.0])"),)
    plan = Plan(work=Path(), peers=Path(), quick=True)
    case = Case("case", programs, (Goal(contender="ours", seconds=7.0),))
    result = run_benchmark(Benchmark("fake", "A fake.", "a turn", lambda _: (case,)), plan=plan, say=silent)

    lines = "\n".join(render(result))
    assert "to reach" not in lines
    assert "A quick run, whose times say little." in lines


def test_results_come_back_as_they_were_written(tmp_path: Path) -> None:
    result = result_of(Case("case", (program("A", "tell(wall_s=[0.25], cpu_s=[0.5], numbers={'accuracy': 1.0})"),)))
    write_result(result, folder=tmp_path)

    assert read_results(["none", "fake"], folder=tmp_path) == {"fake": result}
    assert result.machine.cores >= 1
    assert "torch" in result.versions


def test_the_page_holds_what_the_stored_results_say() -> None:
    text = PAGE.read_text(encoding="utf-8")

    assert with_tables(text, results=read_results(tuple(BENCHMARKS))) == text, "run: python -m simulations.bench.page"


def test_tables_are_made_anew_and_what_stands_around_them_stays() -> None:
    result = result_of(Case("case", (program("A", "tell(wall_s=[0.25], cpu_s=[0.5])"),)))
    marked = "".join(f"<!-- results of {name} -->\nold\n<!-- end of {name} -->\nkept {name}\n" for name in BENCHMARKS)
    text = with_tables(marked, results={"noise": result})

    assert "old" not in text
    assert text.count(NOTHING) == len(BENCHMARKS) - 1
    assert "| case | A | 250 | 250 | 250 to 250 | 500 |" in text
    assert all(f"kept {name}" in text for name in BENCHMARKS)
    with pytest.raises(RunError, match="each of"):
        with_tables(marked.replace("of noise", "of nose"), results={})
