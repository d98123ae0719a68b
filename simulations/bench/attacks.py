"""Attacks: F1 where a tenth to three tenths of the sites are hostile, by attack and by aggregation, as a table.

in        scenarios with their data sets; --from har=PATH for that one
out       a line for each run in results/attacks.jsonl, kept as soon as the run ends, and a table of them
relies on `motet simulate` for the runs; a run whose line is stored is not run again

    python -m simulations.bench.attacks --data moods --shares 0 0.3
    python -m simulations.bench.attacks --table
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from pydantic import Field

from server.compare import result_lines
from server.report.html import read_record
from shared.aggregation_settings import Rule
from shared.settings import Settings
from simulations.attacks.plan import read_attack
from simulations.attacks.settings import Kind
from simulations.bench.machine import commit
from simulations.bench.results import RESULTS
from simulations.bench.stored_runs import run_missing, simulate_words, sources_of, stored_runs

SHARES = (0.0, 0.1, 0.2, 0.3)
ROOT = Path(__file__).parents[2]
Privacy = Literal["none", "epsilon 8"]
Harm = Literal["none", Kind]


@dataclass(frozen=True)
class Case:
    """A data set and settings of the runs over it."""

    scenario: str
    num_sites: int
    changes: tuple[str, ...]
    """to every run"""
    without_privacy: tuple[str, ...]
    """to runs that are not private, beside run.privacy=none"""

    @property
    def hostile(self) -> int:
        """Sites at the largest share, which every run's aggregation reckons with: nobody knows how many there are."""
        return round(max(SHARES) * self.num_sites)


_FEWER_MEASUREMENTS = ("run.evaluation.bootstrap_samples=200", "run.evaluation.modality_subsets=false")
CASES: Mapping[str, Case] = {
    # ten sites: eight, as the scenario has, would make 2 of a fifth as well as of three tenths
    "moods": Case(
        "moods",
        10,
        ("source.options.sites=10", *_FEWER_MEASUREMENTS),
        (
            "run.training.optimizer=adam",
            "run.training.learning_rate=0.01",
            "run.training.sample_rate=0.1",
            "run.training.local_steps=10",
            "run.federation.rounds=20",
            "run.federation.server_optimizer.name=fedavg",
        ),
    ),
    # uniform, as robust rules count sites alike
    "har": Case("har", 105, ("run.federation.weighting=uniform", *_FEWER_MEASUREMENTS), ("run.federation.rounds=60",)),
}
RULES: Mapping[Rule, tuple[str, ...]] = {
    "mean": (),
    "median": (),
    "trimmed-mean": ("run.federation.trim_share=0.3",),
    "norm-bound": (),
    "krum": ("run.federation.byzantine_sites={hostile}", "run.federation.min_sites={fewest}"),
    "multi-krum": ("run.federation.byzantine_sites={hostile}", "run.federation.min_sites={fewest}"),
}
FACTORS: Mapping[Kind, float] = {"scaled": 30.0, "sign-flipped": 3.0, "constant": 3.0}
"""what an attack multiplies with; of the others nothing"""


class Job(Settings):
    """One run of the grid."""

    data: str
    privacy: Privacy
    rule: Rule
    attack: Harm
    share: float
    seed: int
    factor: float | None = Field(default=None, description="None: FACTORS', where the attack has one")


class Outcome(Settings):
    """What one run gave."""

    job: Job
    macro_f1: tuple[float, float, float] | None = Field(
        description="on the test part: value and 95 % interval; None: the run was refused or stopped"
    )
    last_macro_f1: float | None = Field(description="on the validation part after the last round, whichever was kept")
    chosen_round: int
    hostile_sites: tuple[str, ...]
    rejected: dict[str, int] = Field(description="hostile sites' replies that no check let pass, by code")
    set_aside: tuple[float, float] = Field(description="share of usable updates left out: of hostile, of other sites")
    epsilon: float | None
    settings: str
    """digest of the run's settings"""
    commit: str


def grid(
    *,
    data: Sequence[str],
    privacy: Sequence[Privacy],
    rules: Sequence[Rule],
    attacks: Sequence[Harm],
    shares: Sequence[float],
    seeds: Sequence[int],
    factor: float | None = None,
) -> Iterator[Job]:
    """All runs, those without a hostile site once and first; `factor` in the place of FACTORS'."""
    for seed in seeds:
        for name in data:
            for kept in privacy:
                if 0 in shares:
                    for rule in rules:
                        yield Job(data=name, privacy=kept, rule=rule, attack="none", share=0.0, seed=seed)
                for attack in attacks:
                    for share in shares:
                        for rule in rules:
                            if share and attack != "none":
                                own = factor if attack in FACTORS else None
                                yield Job(
                                    data=name,
                                    privacy=kept,
                                    rule=rule,
                                    attack=attack,
                                    share=share,
                                    seed=seed,
                                    factor=own,
                                )


def words_of(job: Job, *, source: Path | None, out: Path) -> list[str]:
    """The words of `motet simulate` that a run is started with."""
    case = CASES[job.data]
    changes = [*case.changes, f"run.seed={job.seed}", f"run.federation.aggregation={job.rule}"]
    changes += [each.format(hostile=case.hostile, fewest=2 * case.hostile + 3) for each in RULES[job.rule]]
    if job.attack != "none":
        changes += [f"attack.kind={job.attack}", f"attack.share={job.share}", f"attack.seed={job.seed}"]
        changes += [f"attack.factor={job.factor or FACTORS[job.attack]}"] if job.attack in FACTORS else []
    changes += ["run.privacy=none", *case.without_privacy] if job.privacy == "none" else []
    return simulate_words(case.scenario, source=source, out=out, changes=changes)


def run(job: Job, *, source: Path | None) -> Outcome:
    """Run it in a process of its own and read its record.

    Raises:
        CalledProcessError: a run failed that no attack stops; what it said is on the terminal.
    """
    with tempfile.TemporaryDirectory(prefix="motet-attacks-") as work:
        folder = Path(work) / "run"
        command = [sys.executable, "-m", "motet", *words_of(job, source=source, out=folder)]
        ended = subprocess.run(command, check=False, cwd=ROOT, stdout=subprocess.DEVNULL)  # noqa: S603
        attack = read_attack(folder) if folder.is_dir() else None
        hostile = attack.sites if attack else ()
        if job.attack != "other-name":
            ended.check_returncode()
        if ended.returncode:
            return _stopped(job, hostile=hostile)
        return _read(job, folder, hostile=hostile)


def _stopped(job: Job, *, hostile: tuple[str, ...]) -> Outcome:
    return Outcome(
        job=job,
        macro_f1=None,
        last_macro_f1=None,
        chosen_round=0,
        hostile_sites=hostile,
        rejected={},
        set_aside=(0.0, 0.0),
        epsilon=None,
        settings="",
        commit=commit(ROOT),
    )


def _read(job: Job, folder: Path, *, hostile: tuple[str, ...]) -> Outcome:
    (line,) = result_lines([folder])
    found, record = json.loads(line), read_record(folder)
    rejected, usable, aside = Counter[str](), Counter[bool](), Counter[bool]()
    for each in record.rounds:
        for entry in each.sites:
            usable[entry.site in hostile] += entry.outcome == "used"
            if entry.site in hostile and entry.code is not None:
                rejected[entry.code] += 1
        for site in each.aggregated.set_aside if each.aggregated else ():
            aside[site in hostile] += 1
    scores = [each.validation for each in record.rounds if each.validation is not None]
    return Outcome(
        job=job,
        macro_f1=tuple(found["test"]["macro_f1"]),
        last_macro_f1=scores[-1].metrics["macro_f1"].value if scores else None,
        chosen_round=record.chosen_round,
        hostile_sites=hostile,
        rejected=dict(rejected),
        set_aside=(aside[True] / max(1, usable[True]), aside[False] / max(1, usable[False])),
        epsilon=found["epsilon"],
        settings=found["settings"],
        commit=commit(ROOT),
    )


def stored(path: Path) -> list[Outcome]:
    """The runs that a results file holds."""
    return stored_runs(path, kind=Outcome)


def table(outcomes: Sequence[Outcome]) -> list[str]:
    """A line for each attack and share there is a run of, a column for each rule: the kept model's, then the last's."""
    lines = ["| macro-F1 | | attack | hostile | " + " | ".join(f"`{rule}`" for rule in RULES) + " |"]
    lines.append("| --- | --- | --- | ---: |" + " ---: |" * len(RULES))
    cells: dict[tuple[str, str, str, float, float], dict[str, list[Outcome]]] = {}
    for each in outcomes:
        job = each.job
        row = cells.setdefault((job.data, job.privacy, job.attack, job.share, job.factor or 0.0), {})
        row.setdefault(job.rule, []).append(each)
    order = [list(CASES), list(get_args(Privacy)), ["none", *get_args(Kind)]]
    for key in sorted(cells, key=lambda k: (*(names.index(k[i]) for i, names in enumerate(order)), *k[3:])):
        data, privacy, attack, share, factor = key
        shown = " | ".join(_cell(cells[key].get(rule, [])) for rule in RULES)
        lines.append(f"| `{data}` | {privacy} | {attack}{_times(factor)} | {share:.0%} | {shown} |")
    return lines


def _times(factor: float | None) -> str:
    return f", factor {factor:g}" if factor else ""


def _cell(found: Sequence[Outcome]) -> str:
    """ "kept (last)", means over the seeds there are."""
    if not found:
        return ""
    kept = [each.macro_f1[0] for each in found if each.macro_f1 is not None]
    last = [each.last_macro_f1 for each in found if each.last_macro_f1 is not None]
    if len(kept) < len(found):
        return "stopped"
    seeds = f" ×{len(found)}" if len(found) > 1 else ""
    return f"{_number(statistics.mean(kept))} ({_number(statistics.mean(last))}){seeds}"


def _number(value: float) -> str:
    return f"{value:.3f}".removeprefix("0")


def main(words: Sequence[str] | None = None) -> None:
    """Run what is not stored yet, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m simulations.bench.attacks", description=__doc__)
    parser.add_argument("--from", dest="sources", action="append", default=[], metavar="DATA=PATH")
    parser.add_argument("--data", nargs="*", choices=tuple(CASES), default=list(CASES))
    parser.add_argument("--privacy", nargs="*", choices=get_args(Privacy), default=list(get_args(Privacy)))
    parser.add_argument("--rules", nargs="*", choices=tuple(RULES), default=list(RULES))
    parser.add_argument("--attacks", nargs="*", choices=get_args(Kind), default=list(get_args(Kind)))
    parser.add_argument("--shares", nargs="*", type=float, choices=SHARES, default=list(SHARES))
    parser.add_argument("--factor", type=float, help="what the attack multiplies with, in the place of its usual one")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--out", type=Path, default=RESULTS / "attacks.jsonl")
    parser.add_argument("--table", action="store_true", help="run nothing")
    options = parser.parse_args(words)
    sources = sources_of(options.sources)
    jobs = grid(
        data=options.data,
        privacy=options.privacy,
        rules=options.rules,
        attacks=options.attacks,
        shares=options.shares,
        seeds=options.seeds,
        factor=options.factor,
    )
    found = run_missing(
        () if options.table else jobs,
        done=stored(options.out),
        run=lambda job: run(job, source=sources.get(job.data)),
        path=options.out,
        told=_told,
    )
    print("\n".join(table(found)))


def _told(outcome: Outcome) -> str:
    job = outcome.job
    return f"{job.data} {job.privacy} {job.attack}{_times(job.factor)} {job.share:.0%} {job.rule}: {_cell([outcome])}"


if __name__ == "__main__":
    main()
