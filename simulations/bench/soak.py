"""Soak: many rounds on real processes over TLS, some of which are killed at random; what it cost, and what memory did.

in        a new folder; how many sites and rounds, how often something is killed
out       a table and FOLDER/soak.json: rounds lost, updates lost, spend overstated (never under), memory over time
relies on soak_site.py for the processes, on the ledgers and metrics.jsonl for what happened

    python -m simulations.bench.soak FOLDER --sites 8 --rounds 200 --mean-s 30
"""

import argparse
import json
import math
import random
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

from client.site import read_site
from server.deployment.runs import REPORT_FILE
from server.history import METRICS_FILE, read_rounds
from server.records import RoundRecord
from server.report.html import read_record
from server.settings import read_settings
from shared.privacy.accountant import spent_epsilon
from shared.privacy.ledger import Ledger, LedgerRow, uses_of_rows
from shared.settings import Settings
from simulations.bench.soak_site import SoakDeployment, kill, resident_bytes, scenario, soak_deployment, wait_s

_VICTIMS = {"agent": 4, "supernode": 3, "superlink": 1, "serverapp": 1}
"""what is killed, and how often beside the others"""
_LOOK_S = 10.0
_AGENT_AWAY_S = 2.0
"""before an agent is started again, as by systemd"""
_DELTA = 1e-3
Samples = list[tuple[float, dict[str, int]]]


class SiteSpend(Settings):
    """One site's ledger beside what the server used."""

    site: str
    used: int
    """rounds with an update of this site's in the model"""
    paid: int
    """rounds that its ledger counts"""
    understated: int
    """rounds that were used and are not in the ledger: must be 0"""
    epsilon_ledger: float
    epsilon_report: float | None


class Soaked(Settings):
    """What a soak found."""

    sites: int
    rounds: int
    rounds_done: int
    """fewer where the time was over first; then a ledger may hold the open round as well"""
    seconds: float
    kills: dict[str, int]
    resumed: int
    """times that `motet run --resume` was needed"""
    rounds_recorded_twice: int
    rounds_lost: int
    """rounds without any usable update"""
    updates_asked: int
    updates_lost: int
    spend: tuple[SiteSpend, ...]
    memory_mib: dict[str, tuple[float, ...]]
    """kind of process -> median of one such process in each tenth of the run"""


class _Killer(threading.Thread):
    """Kills something now and then; starts agents again, which nothing here supervises."""

    def __init__(self, deployment: SoakDeployment, *, mean_s: float, seed: int) -> None:
        super().__init__(name="soak-killer", daemon=True)
        self._deployment, self._mean_s, self._draws = deployment, mean_s, random.Random(seed)  # noqa: S311  no secret
        self.kills: Counter[str] = Counter()
        self.stopping = threading.Event()

    def run(self) -> None:
        while not self.stopping.wait(wait_s(self._draws, mean_s=self._mean_s)):
            victim = self._draws.choices(list(_VICTIMS), weights=list(_VICTIMS.values()))[0]
            site = self._draws.choice(list(self._deployment.sites))
            machine = self._deployment.sites[site] if victim in ("agent", "supernode") else self._deployment.server
            ids = [pid for pid, kind in machine.processes().items() if kind == victim]
            if not ids:
                continue
            kill(ids)
            self.kills[victim] += 1
            if victim == "agent":
                machine.started["agent"].wait()
                time.sleep(_AGENT_AWAY_S)
                self._deployment.start_agent(site)


def soak(folder: Path, *, num_sites: int, rounds: int, mean_s: float, seed: int, most_s: float = math.inf) -> Soaked:
    """Run it to its end, or for as long as it may: what is found then is about the rounds that were done."""
    folder.mkdir(parents=True)
    with soak_deployment(folder, num_sites=num_sites, seed=seed) as made:
        asked = scenario(made.server.folder / "soak.toml", data=made.data, rounds=rounds, epsilon=100.0)
        run, began, resumed, samples = made.folder / "runs" / "soak", time.monotonic(), 0, Samples()
        follower = made.server.start("run", "run", str(asked), "--on", str(made.folder), "--out", str(run))
        killer = _Killer(made, mean_s=mean_s, seed=seed)
        while not (run / METRICS_FILE).is_file() and follower.poll() is None:
            time.sleep(1.0)
        killer.start()
        while not (has_ended := (run / REPORT_FILE).is_file()) and time.monotonic() - began < most_s:
            samples.append((time.monotonic() - began, _memory(made)))
            if follower.poll() is not None:
                # as an operator would: by hand, or by a timer
                resumed += 1
                follower = made.server.start("run", "run", "--resume", str(run), "--on", str(made.folder))
            _wait(follower, _LOOK_S)
        killer.stopping.set()
        killer.join()
        seconds = time.monotonic() - began
        records = read_rounds(run / METRICS_FILE)
        told = {plan.site: plan.epsilon for plan in read_record(run).privacy} if has_ended else {}
        return Soaked(
            sites=num_sites,
            rounds=rounds,
            rounds_done=len({record.round for record in records}),
            seconds=seconds,
            kills=dict(killer.kills),
            resumed=resumed,
            rounds_recorded_twice=len(records) - len({record.round for record in records}),
            rounds_lost=sum(not _used(record) for record in records),
            updates_asked=sum(len(record.sites) for record in records),
            updates_lost=sum(len(record.sites) - len(_used(record)) for record in records),
            spend=tuple(
                spend_of(name, rows=_rows(made.site(name), run=run), records=records, told=told.get(name))
                for name in made.sites
            ),
            memory_mib=over_time(samples),
        )


def spend_of(name: str, *, rows: Sequence[LedgerRow], records: Sequence[RoundRecord], told: float | None) -> SiteSpend:
    """A site's ledger beside the rounds in which it was used.

    Args:
        rows: of this run.
        told: epsilon in the report.
    """
    paid = [row for row in rows if row.state != "void"]
    used = {record.round for record in records if name in _used(record)}
    return SiteSpend(
        site=name,
        used=len(used),
        paid=len(paid),
        understated=len(used - {row.round_number for row in paid}),
        epsilon_ledger=spent_epsilon(uses_of_rows(rows, unit="record"), delta=_DELTA, accountant="pld"),
        epsilon_report=told,
    )


def over_time(samples: Samples, *, parts: int = 10) -> dict[str, tuple[float, ...]]:
    """Kind -> its median MiB in each part of the time; parts without a sample are left out."""
    found = dict[str, tuple[float, ...]]()
    end = samples[-1][0] if samples else 0.0
    for kind in sorted({kind for _, each in samples for kind in each}):
        groups = defaultdict[int, list[int]](list)
        for at, each in samples:
            if kind in each:
                groups[min(parts - 1, int(parts * at / end)) if end else 0].append(each[kind])
        found[kind] = tuple(round(median(groups[part]) / 2**20, 1) for part in sorted(groups))
    return found


def render(found: Soaked) -> str:
    """For a terminal and for docs/faults.md."""
    lines = [
        f"{found.rounds_done} of {found.rounds} rounds, {found.sites} sites, {found.seconds:.0f} s, "
        f"{sum(found.kills.values())} kills ({_counted(found.kills)}), resumed {found.resumed} times",
        f"rounds recorded twice: {found.rounds_recorded_twice}; rounds lost: {found.rounds_lost}; "
        f"updates lost: {found.updates_lost} of {found.updates_asked}",
    ]
    for each in found.spend:
        told = "no report" if each.epsilon_report is None else f"{each.epsilon_report:.2f}"
        lines.append(
            f"{each.site}: used {each.used}, paid {each.paid} (overstated by {each.paid - each.used}, understated "
            f"{each.understated}); epsilon in the ledger {each.epsilon_ledger:.2f}, in the report {told}"
        )
    lines += [
        f"memory of one {kind}, MiB over time: {', '.join(f'{each:.0f}' for each in values)}"
        for kind, values in found.memory_mib.items()
    ]
    return "\n".join(lines)


def _counted(kills: Mapping[str, int]) -> str:
    return ", ".join(f"{kind} {number}" for kind, number in sorted(kills.items())) or "none"


def _used(record: RoundRecord) -> set[str]:
    return {site.site for site in record.sites if site.outcome == "used"}


def _rows(site: Path, *, run: Path) -> tuple[LedgerRow, ...]:
    settings = read_site(site / "site.toml")
    return Ledger(settings.ledger).rows(settings.data_set, run_id=read_settings(run).run_id)


def _memory(made: SoakDeployment) -> dict[str, int]:
    """Kind -> resident bytes of one such process: the median of those that are there."""
    held = defaultdict[str, list[int]](list)
    for machine in made.machines():
        for pid, kind in machine.processes().items():
            held[kind].append(resident_bytes(pid))
    return {kind: int(median(each)) for kind, each in held.items()}


def _wait(process: subprocess.Popen[bytes], seconds: float) -> None:
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        return


def main() -> None:
    """From the command line."""
    parser = argparse.ArgumentParser(prog="python -m simulations.bench.soak", description=__doc__)
    parser.add_argument("folder", type=Path, help="to make")
    parser.add_argument("--sites", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--mean-s", type=float, default=30.0, help="between two kills, on average")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--most-s", type=float, default=math.inf, help="after which it ends with what it has")
    told = parser.parse_args()
    found = soak(
        told.folder,
        num_sites=told.sites,
        rounds=told.rounds,
        mean_s=told.mean_s,
        seed=told.seed,
        most_s=told.most_s,
    )
    (told.folder / "soak.json").write_text(json.dumps(found.model_dump(mode="json"), indent=2), encoding="utf-8")
    print(render(found))
    if any(each.understated for each in found.spend) or found.rounds_recorded_twice:
        sys.exit("a ledger understates, or a round was counted twice")


if __name__ == "__main__":
    main()
