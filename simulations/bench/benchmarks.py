"""Benchmarks: what is measured, against whom, and what is to be reached.

in        a Plan: where data and the peers' environments are, quick or not
out       BENCHMARKS, which harness.py runs
relies on nothing being run until a benchmark's cases are asked for
"""

import sys
from collections.abc import Sequence

from simulations.bench.harness import Benchmark, Case, Plan, Program
from simulations.bench.peers.setup import missing, python_of
from simulations.bench.results import Goal

HERE = "simulations.bench"
ROUNDS = 20
PLAIN, MOTET = "plain loop", "Motet"
ONE_PROCESS = (PLAIN, "pfl", "pfl, two processes", "BlazeFL", "BlazeFL, two threads", "fluke")
FLOWER = "Flower, Ray"
UNSET: dict[str, str] = {}
"""environment without OMP_NUM_THREADS, so that torch takes all cores"""
TO_REACH = {"mlp": (1 / 80, 1 / 2), "cnn": (1 / 14, 1 / 1.5)}
"""of the common job: times of Flower, times of the best of the others"""


def ours(module: str, *words: str) -> tuple[str, ...]:
    """A program of this folder in Motet's own environment."""
    return (sys.executable, "-m", f"{HERE}.{module}", *words)


def common_job(plan: Plan) -> Sequence[Case]:
    """One round of 100 clients, by every framework."""
    data = _data(plan, sites=100)
    cases = []
    for model in ("mlp", "cnn"):
        for private in (False, True):
            rounds = str(5 if plan.quick else ROUNDS)
            words = ("--model", model, "--rounds", rounds, *(("--private",) if private else ()))
            motet = ours("motet_job", data, "--engine", plan.engine, *words)
            programs = (
                Program((PLAIN,), ours("peers.plain", *words)),
                Program(("plain loop, two processes",), ours("peers.plain_two", *words)),
                *_peers(plan, words=words, private=private),
                Program((MOTET,), motet, environment=UNSET),
                Program(("Motet, one core",), motet, cores=1),
            )
            flower, others = TO_REACH[model]
            goals = (
                Goal(contender=MOTET, against=(FLOWER,), times=flower),
                Goal(contender=MOTET, against=ONE_PROCESS, times=others),
            )
            cases.append(Case(f"{model}, {'site-level privacy' if private else 'no privacy'}", programs, goals))
    return cases


def steps(plan: Plan) -> Sequence[Case]:
    """One private step of one site."""
    from simulations.bench.step import MOTET as ENGINES
    from simulations.bench.step import OPACUS, TORCH, contenders

    cases = []
    for model, times in (
        ("cnn", 1.5),
        ("text", 1.5),
        ("audio", 1.5),
        ("lstm", 2.0),
        ("trimodal", 2.0),
        ("head-1536", 1.5),
    ):
        for batch in (64, 256):
            budget = ("--budget-s", "1" if plan.quick else "15")
            programs = (
                Program(contenders(model), ours("step", model, "--batch", str(batch), *budget)),
                Program(("fast-differential-privacy",), (), missing="no package that pip finds"),
            )
            goals = (
                Goal(contender=ENGINES[0], against=(TORCH,), times=times),
                Goal(contender=ENGINES[0], against=tuple(OPACUS), times=1.0),
            )
            cases.append(Case(f"{model}, batch {batch}", programs, goals))
    return cases


def cohorts(plan: Plan) -> Sequence[Case]:
    """A private round of 32 sites."""
    from simulations.bench.cohort import COHORT, CONTENDERS, OPACUS, TORCH

    cases = []
    for model, of_opacus, of_torch in (
        ("head-256", 1 / 10, 1.0),
        ("head-1536", 1 / 10, 1.0),
        ("cnn", 1 / 5, 1.0),
        ("text", 1 / 5, None),
        ("trimodal", None, None),
    ):
        goals = [Goal(contender=COHORT, against=(OPACUS,), times=of_opacus)] if of_opacus else []
        goals += [Goal(contender=COHORT, against=(TORCH,), times=of_torch)] if of_torch else []
        for batch in (8, 32):
            words = (model, "--batch", str(batch), "--budget-s", "1" if plan.quick else "10")
            program = Program(CONTENDERS, ours("cohort", *words), environment=UNSET)
            cases.append(Case(f"{model}, batch {batch}", (program,), tuple(goals)))
    return cases


def scale(plan: Plan) -> Sequence[Case]:
    """More and more sites a round, each number in a process of its own."""
    cases = []
    for sites in (100, 1_000) if plan.quick else (100, 1_000, 10_000):
        command = ours("motet_job", _data(plan, sites=sites), "--engine", plan.engine, "--rounds", "6")
        goals = (Goal(contender=MOTET, seconds=10.0),) if sites == 10_000 else ()
        programs = (Program((MOTET,), command, environment=UNSET, timeout_s=3600.0),)
        cases.append(Case(f"{sites:,} sites", programs, goals))
    return cases


def noise(plan: Plan) -> Sequence[Case]:
    """A hundred million numbers."""
    from simulations.bench.figures import NOISE, NUMBERS, size

    goals = tuple(
        Goal(contender=f"Motet {kind}", against=(f"torch.randn {kind}",), times=1.5) for kind in ("float32", "float64")
    )
    numbers = size(NUMBERS, quick=plan.quick, part=100)
    return [Case(f"{numbers:,} numbers", (Program(NOISE, _figures(plan, "noise")),), goals)]


def ledger(plan: Plan) -> Sequence[Case]:
    """Ten thousand rows."""
    from simulations.bench.figures import LEDGER

    goals = (Goal(contender="Motet PLD, after a new row", seconds=0.01),)
    return [Case("10,000 rows by 20 mechanisms", (Program(LEDGER, _figures(plan, "ledger")),), goals)]


def report(plan: Plan) -> Sequence[Case]:
    """A thousand sites, five hundred rounds."""
    from simulations.bench.figures import REPORT, ROUNDS, SITES, size

    goals = (Goal(contender=REPORT[0], seconds=5.0), Goal(contender=REPORT[-1], seconds=5.0))
    sites, rounds = size(SITES, quick=plan.quick), size(ROUNDS, quick=plan.quick)
    return [Case(f"{sites:,} sites, {rounds:,} rounds", (Program(REPORT, _figures(plan, "report")),), goals)]


def startup(plan: Plan) -> Sequence[Case]:
    """From the command to the first round."""
    from simulations.bench.figures import START

    first = next(iter(START))
    return [
        Case(
            "motet simulate moods",
            (Program(tuple(START), _figures(plan, "startup")),),
            (Goal(contender=first, seconds=3.0),),
        )
    ]


BENCHMARKS = {
    each.name: each
    for each in (
        Benchmark("rounds", "The common job of peers/job.py, 100 clients.", "a round", common_job),
        Benchmark("step", "One site's private step.", "a step", steps, repeats=2),
        Benchmark("cohort", "Record-level DP-SGD at 32 sites, two steps at each.", "a round of all sites", cohorts, 2),
        Benchmark("scale", "Motet alone: sites of 20 records, MLP, all in every round.", "a round", scale, 3),
        Benchmark("noise", "Normal numbers from a cipher's stream.", "all numbers", noise, 1),
        Benchmark("ledger", "The epsilon of all that a ledger holds.", "one answer", ledger, 3),
        Benchmark("report", "The report of a large run.", "one report", report, 3),
        Benchmark("startup", "What lies around the rounds of a simulation.", "each part", startup, 3),
    )
}


def _peers(plan: Plan, *, words: tuple[str, ...], private: bool) -> list[Program]:
    """The frameworks; one that has no environment, or no privacy where it is asked for, is told with that reason."""
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m")
    rows: tuple[tuple[str, str, tuple[str, ...], tuple[str, ...], bool], ...] = (
        ("pfl", "pfl", ("-m", f"{HERE}.peers.pfl_job"), (), True),
        ("pfl, two processes", "pfl", (*torchrun, f"{HERE}.peers.pfl_job"), (), True),
        ("BlazeFL", "blazefl", ("-m", f"{HERE}.peers.blaze_job"), (), False),
        ("BlazeFL, two threads", "blazefl", ("-m", f"{HERE}.peers.blaze_job"), ("--mode", "thread"), False),
        ("fluke", "fluke", ("-m", f"{HERE}.peers.fluke_job"), (), False),
        (FLOWER, "flower", ("-m", f"{HERE}.peers.flower_job"), (), True),
    )
    return [
        Program(
            (name,),
            (str(python_of(plan.peers, environment)), *module, *words, *mode),
            missing="has no central privacy" if private and not is_private else missing(plan.peers, environment),
            most_repeats=3 if name == FLOWER else None,
        )
        for name, environment, module, mode, is_private in rows
    ]


def _data(plan: Plan, *, sites: int) -> str:
    """The common job's data set of so many sites, made once."""
    from simulations.bench.motet_job import write_data_set

    folder = plan.work / f"sites-{sites}"
    if not folder.is_dir():
        write_data_set(folder, sites=sites)
    return str(folder)


def _figures(plan: Plan, kind: str) -> tuple[str, ...]:
    return ours("figures", kind, *(("--quick",) if plan.quick else ()))
