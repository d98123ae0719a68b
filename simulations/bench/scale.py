"""Scale: a real deployment of many sites on this machine; what each costs in memory, CPU and bytes, in a run and idle.

in        a new folder; how many sites and rounds
out       tables, and a JSON file: seconds a round, memory and CPU by kind of process, bytes and connections
relies on soak_site.py for the processes, process_table.py for what they hold, relay.py for what they send

    python -m simulations.bench.scale FOLDER --sites 20 --rounds 5
"""

import argparse
import json
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

from client.site import read_site
from server.deployment.runs import REPORT_FILE
from server.history import METRICS_FILE, read_rounds
from shared.settings import Settings
from simulations.bench.machine import commit, machine, versions
from simulations.bench.process_table import Peaks, available_bytes, cpu_of, growth, processes_of
from simulations.bench.relay import Relay, relayed
from simulations.bench.results import RESULTS, Machine
from simulations.bench.soak_site import SoakDeployment, free_port, scenario, soak_deployment

ROOT = Path(__file__).parents[2]
SITE_BYTES, SERVER_BYTES = 700 * 2**20, 1500 * 2**20
"""refused below this: what a site (with a client app at work) and a server were seen to need, rounded up"""
_LOOK_S, _SETTLE_S, _RUN_S = 0.5, 20.0, 3600.0
_MEMORY_S = 3.0
"""between two looks at memory: the kernel adds up all pages of each process"""


class KindUse(Settings):
    """One kind of process."""

    kind: str
    most: int
    """at once"""
    pss_bytes: int
    """of one such process at its peak, the median of all"""
    rss_bytes: int
    cpu_s_round: float
    """of all of them together"""
    cpu_s_idle_minute: float


class Sent(Settings):
    """What went through the server's port, TLS and all."""

    to_server: int
    from_server: int
    connections_opened: int


class Scaled(Settings):
    """What a deployment of this size took."""

    sites: int
    rounds: int
    machine: Machine
    versions: dict[str, str]
    commit: str
    set_up_s: float
    first_round_s: float
    """from `motet run` to the end of round 1: start of the server app, introductions, imports at each site"""
    round_s: tuple[float, ...]
    """of the rounds after the first"""
    training_s: float
    """of a site in a round, the median: request at the agent to its answer"""
    updates_used: int
    updates_asked: int
    kinds: tuple[KindUse, ...]
    most_processes: int
    most_pss_bytes: int
    idle_pss_bytes: int
    idle_processes: int
    most_connections: int
    idle_connections: int
    round_sent: Sent
    """mean of the rounds after the first, all sites together"""
    idle_sent: Sent
    """in the minute"""


class _Watch(threading.Thread):
    """Looks at memory and connections all through a run."""

    def __init__(self, made: SoakDeployment, relay: Relay) -> None:
        super().__init__(name="scale-watch", daemon=True)
        self._made, self._relay = made, relay
        self.peaks, self.most_connections, self.stopping = Peaks(), 0, threading.Event()

    def run(self) -> None:
        looked = 0.0
        while not self.stopping.wait(_LOOK_S):
            self.most_connections = max(self.most_connections, self._relay.num_open)
            if time.monotonic() - looked >= _MEMORY_S:
                self.peaks.look(processes_of(self._made))
                looked = time.monotonic()


def refuse_what_does_not_fit(num_sites: int, *, available: int) -> None:
    """Ends the program before anything is started that this machine's memory would not hold.

    Args:
        available: bytes.
    """
    needed = SERVER_BYTES + num_sites * SITE_BYTES
    if needed > available:
        fits = max(0, (available - SERVER_BYTES) // SITE_BYTES)
        sys.exit(
            f"{num_sites} sites and a server need about {needed / 2**30:.1f} GiB, {available / 2**30:.1f} GiB are "
            f"available; allowed here now: at most {fits} sites (--sites {fits})"
        )


def measure(folder: Path, *, num_sites: int, rounds: int, idle_s: float) -> Scaled:
    """Set up, run, look, end.

    Args:
        rounds: at least 2; the first has the introductions and imports in it, and is told by itself.
        idle_s: how long the deployment is watched without a run.
    """
    began, port, through = time.monotonic(), free_port(), free_port()
    with (
        relayed(through, to=port) as relay,
        soak_deployment(folder, num_sites=num_sites, seed=0, port=port, through=through) as made,
    ):
        # every SuperNode connected before the clock starts
        _wait_for_nodes(made)
        set_up_s = time.monotonic() - began
        watch = _Watch(made, relay)
        watch.start()
        ran, cpu_round = _run(made, relay, rounds=rounds)
        watch.stopping.set()
        watch.join()
        idle, cpu_idle = _idle(made, relay, idle_s=idle_s)
        kinds = tuple(
            KindUse(
                kind=kind,
                most=most,
                pss_bytes=held.pss,
                rss_bytes=held.rss,
                cpu_s_round=round(cpu_round.get(kind, 0.0), 3),
                cpu_s_idle_minute=round(cpu_idle.get(kind, 0.0), 3),
            )
            for kind, (most, held) in watch.peaks.of_one().items()
        )
        about = {"sites": num_sites, "rounds": rounds, "machine": machine(), "versions": versions()}
        peaks = {
            "most_processes": watch.peaks.most_processes,
            "most_pss_bytes": watch.peaks.most_pss,
            "most_connections": watch.most_connections,
        }
        return Scaled.model_validate(
            {**about, "commit": commit(ROOT), "set_up_s": set_up_s, "kinds": kinds, **ran, **idle, **peaks}
        )


def _run(made: SoakDeployment, relay: Relay, *, rounds: int) -> tuple[dict[str, object], dict[str, float]]:
    """A run to its report: what is told of it, and CPU seconds a round by kind of process."""
    run, began = made.folder / "runs" / "scale", time.monotonic()
    asked = scenario(made.server.folder / "scale.toml", data=made.data, rounds=rounds, epsilon=20.0)
    made.server.start("run", "run", str(asked), "--on", str(made.folder), "--out", str(run))
    _wait_for_round(1, run=run, made=made)
    first_s, cpu, sent = time.monotonic() - began, cpu_of(processes_of(made)), _now(relay)
    _wait_for_round(rounds, run=run, made=made)
    cpu_round = growth(cpu, cpu_of(processes_of(made)), per=rounds - 1)
    round_sent = _since(sent, relay, per=rounds - 1)
    _wait_for_report(run, made=made)
    records = read_rounds(run / METRICS_FILE)
    journals = [read_site(made.site(name) / "site.toml").agent.journal for name in made.sites]
    told: dict[str, object] = {
        "first_round_s": first_s,
        "round_s": tuple(record.seconds for record in records[1:]),
        "training_s": training_seconds([line for each in journals for line in each.read_text("utf-8").splitlines()]),
        "updates_used": sum(site.outcome == "used" for record in records for site in record.sites),
        "updates_asked": sum(len(record.sites) for record in records),
        "round_sent": round_sent,
    }
    return told, cpu_round


def _idle(made: SoakDeployment, relay: Relay, *, idle_s: float) -> tuple[dict[str, object], dict[str, float]]:
    """A while without a run: what is told of it, and CPU seconds a minute by kind of process."""
    time.sleep(_SETTLE_S)
    before, sent, idle = processes_of(made), _now(relay), Peaks()
    cpu = cpu_of(before)
    idle.look(before)
    time.sleep(idle_s)
    used = growth(cpu, cpu_of(before), per=idle_s / 60)
    told: dict[str, object] = {
        "idle_pss_bytes": idle.most_pss,
        "idle_processes": idle.most_processes,
        "idle_connections": relay.num_open,
        "idle_sent": _since(sent, relay, per=idle_s / 60),
    }
    return told, used


def training_seconds(journal: Sequence[str]) -> float:
    """The median time in which an agent answered a request to train.

    Args:
        journal: lines of one or more agents' journals.
    """
    told = [json.loads(line) for line in journal]
    found = sorted(float(each["seconds"]) for each in told if each.get("kind") == "train")
    return median(found) if found else 0.0


def render(found: Scaled) -> str:
    """Tables for a terminal and for docs/many-sites.md."""
    sites, mib = found.sites, 2**20
    lines = [
        f"{sites} sites, {found.rounds} rounds, {found.machine.cores} cores ({found.machine.processor}); set up in "
        f"{found.set_up_s:.0f} s",
        f"first round, with the start of the run: {found.first_round_s:.1f} s; a round after that: "
        f"{median(found.round_s):.1f} s ({min(found.round_s):.1f} to {max(found.round_s):.1f}), of which a site's "
        f"agent is at work for {found.training_s:.2f} s; updates used: {found.updates_used} of {found.updates_asked}",
        "",
        "| process | at most | PSS of one, MiB | RSS of one, MiB | CPU s a round, all | CPU s an idle minute, all |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {use.kind} | {use.most} | {use.pss_bytes / mib:.0f} | {use.rss_bytes / mib:.0f} | {use.cpu_s_round:.2f} | "
        f"{use.cpu_s_idle_minute:.2f} |"
        for use in found.kinds
    ]
    waiting = sum(use.pss_bytes for use in found.kinds if use.kind.startswith("site ") and use.kind != "site clientapp")
    lines += [
        "",
        f"a site that waits: {waiting / mib:.0f} MiB (PSS); all processes: {found.idle_pss_bytes / mib:.0f} MiB in "
        f"{found.idle_processes} idle, {found.most_pss_bytes / mib:.0f} MiB in {found.most_processes} at most",
        f"a round, one site: {found.round_sent.to_server / sites / 1e3:.1f} kB to the server, "
        f"{found.round_sent.from_server / sites / 1e3:.1f} kB from it, "
        f"{found.round_sent.connections_opened / sites:.1f} connections; "
        f"an idle minute, one site: {found.idle_sent.to_server / sites / 1e3:.1f} kB and "
        f"{found.idle_sent.from_server / sites / 1e3:.1f} kB, "
        f"{found.idle_sent.connections_opened / sites:.1f} connections",
        f"connections open at the server: {found.most_connections} at most, {found.idle_connections} idle",
    ]
    return "\n".join(lines)


def _wait_for_nodes(made: SoakDeployment) -> None:
    deadline = time.monotonic() + _RUN_S
    while True:
        told = json.loads(made.server.do("status", "--json", str(made.folder)))
        if all(site["state"] == "online" for site in told["sites"]):
            return
        if time.monotonic() > deadline:
            raise TimeoutError(f"{made.folder}: not all sites are on line: {told['sites']}")
        time.sleep(1.0)


def _wait_for_round(number: int, *, run: Path, made: SoakDeployment) -> None:
    def is_over() -> bool:
        return (run / METRICS_FILE).is_file() and len(read_rounds(run / METRICS_FILE)) >= number

    _wait(is_over, made=made)


def _wait_for_report(run: Path, *, made: SoakDeployment) -> None:
    _wait((run / REPORT_FILE).is_file, made=made)
    made.server.started["run"].wait(timeout=60)


def _wait(is_over: Callable[[], bool], *, made: SoakDeployment) -> None:
    """Raises TimeoutError, with what the follower of the run said, where it has ended without or takes too long."""
    follower, deadline = made.server.started["run"], time.monotonic() + _RUN_S
    while not is_over():
        if (follower.poll() is not None and not is_over()) or time.monotonic() > deadline:
            said = (made.server.folder / "run.log").read_text(errors="replace")[-2000:]
            raise TimeoutError(f"the run came to no end: {said}")
        time.sleep(0.2)


def _now(relay: Relay) -> Sent:
    return Sent(to_server=relay.to_server, from_server=relay.from_server, connections_opened=relay.num_opened)


def _since(before: Sent, relay: Relay, *, per: float) -> Sent:
    now = _now(relay)
    return Sent(**{name: round((getattr(now, name) - getattr(before, name)) / per) for name in Sent.model_fields})


def main(words: Sequence[str] | None = None) -> None:
    """From the command line."""
    parser = argparse.ArgumentParser(prog="python -m simulations.bench.scale", description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", help="to make")
    parser.add_argument("--sites", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--idle-s", type=float, default=60.0)
    parser.add_argument("--out", type=Path, default=RESULTS / "deployment.json")
    parser.add_argument("--table", action="store_true", help="run nothing: print what is stored")
    told = parser.parse_args(words)
    if told.table:
        print(render(Scaled.model_validate_json(told.out.read_text("utf-8"))))
        return
    if told.folder is None or told.rounds < 2 or told.sites < 1:
        parser.error("give a FOLDER to make, at least 1 site and at least 2 rounds")
    refuse_what_does_not_fit(told.sites, available=available_bytes())
    # who ends this ends what it started, too
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    told.folder.mkdir(parents=True)
    found = measure(told.folder, num_sites=told.sites, rounds=told.rounds, idle_s=told.idle_s)
    told.out.write_text(json.dumps(found.model_dump(mode="json"), indent=2) + "\n", encoding="utf-8")
    print(render(found))


if __name__ == "__main__":
    main()
