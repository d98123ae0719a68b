"""Many sites: a real server with made-up sites, up to a thousand; what it does with them, in seconds, bytes and memory.

in        a new folder; how many sites, rounds and parameters
out       a table, and a line in results/many_sites.jsonl: set-up, waiting, rounds, `motet status`, metrics, report
relies on crowd.py for the sites: all that the server runs (SuperLink, server app, commands) is the real thing

    python -m simulations.bench.many_sites FOLDER --sites 1000 --rounds 2
    python -m simulations.bench.many_sites --table
"""

import argparse
import json
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

from pydantic import Field

from server.deployment.nodes import is_in_step
from server.deployment.runs import REPORT_FILE
from server.deployment.settings import Deployment, open_deployment
from server.enrolment import enrol
from server.handshake import FILE_NAME as HANDSHAKE_FILE
from server.history import METRICS_FILE, read_rounds
from server.report.html import read_record
from shared.keys import new_key, private_text, public_line
from shared.settings import Settings
from simulations.bench.crowd import HEARTBEAT_S, POLL_S
from simulations.bench.machine import commit, machine
from simulations.bench.process_table import Peaks, cpu_of, growth, processes_of
from simulations.bench.results import RESULTS, Machine
from simulations.bench.soak_site import SoakDeployment, SoakMachine, data_set, free_port, scenario

ROOT = Path(__file__).parents[2]
Told = TypeVar("Told")
Seen = Callable[[], dict[str, object]]
_LOOK_S, _MEMORY_S = 0.5, 2.0
_SETTLE_S = 10.0
_ONLINE_S, _RUN_S = 600.0, 2400.0
_PER_PARAMETER = 9
"""numbers of the model for each one of its embedding's width: 6 inputs, a bias, 2 classes"""


class ManySites(Settings):
    """What a server did with so many."""

    sites: int
    rounds: int
    parameters: int
    work_s: float
    """that a made-up site takes to answer"""
    machine: Machine
    commit: str
    enrol_first_s: float = Field(description="a key enrolled, mean of the first ten; without the start of a command")
    enrol_last_s: float
    registered_s: float = Field(description="from the start of the server until Flower knows all keys")
    look_s: float = Field(description="one look at all keys, as the server takes every so often")
    online_s: float = Field(description="until all sites were connected")
    idle_cpu_s: float = Field(description="of the SuperLink, in a minute in which nothing runs")
    idle_requests: int = Field(description="that were answered in that minute")
    idle_median_s: float
    idle_p99_s: float
    idle_failed: int
    hello_s: float | None = Field(description="from `motet run` until all have introduced themselves")
    accepted: int
    round_s: tuple[float, ...]
    used: tuple[int, ...]
    superlink_cpu_s_round: float
    serverapp_cpu_s_round: float
    requests_round: float
    failed: dict[str, int]
    superlink_rss_bytes: int
    serverapp_rss_bytes: int
    database_bytes: int = Field(description="of the SuperLink, at its largest")
    report_s: float = Field(description="from the last round to the report")
    report_bytes: int
    handshake_bytes: int
    status_s: float
    metrics_s: float
    metrics_bytes: int


class _Watch(threading.Thread):
    """Looks at memory and at the database all through a run."""

    def __init__(self, made: SoakDeployment, deployment: Deployment) -> None:
        super().__init__(name="many-watch", daemon=True)
        self._made, self._deployment = made, deployment
        self.peaks, self.database, self.stopping = Peaks(), 0, threading.Event()

    def run(self) -> None:
        while not self.stopping.wait(_MEMORY_S):
            self.peaks.look(processes_of(self._made))
            name = self._deployment.database.name
            files = self._deployment.database.parent.glob(f"{name}*")
            self.database = max(self.database, sum(file.stat().st_size for file in files))

    def rss(self, kind: str) -> int:
        """Of one process of a kind, at its peak."""
        found = self.peaks.of_one().get(kind)
        return found[1].rss if found else 0


def measure(folder: Path, *, sites: int, rounds: int, width: int, work_s: float, idle_s: float) -> ManySites:
    """Set up, wait, run, look, end.

    Args:
        width: of the model's embedding, which most parameters are of.
        work_s: that each site takes to answer.
        idle_s: how long the sites are watched without a run.
    """
    data = data_set(folder / "data", names=(), seed=0)
    made = SoakDeployment(SoakMachine(folder / "server"), {}, data)
    made.server.folder.mkdir()
    port, monitor = free_port(), free_port()
    made.server.do(
        *("server", "init", str(made.folder), "--host", "localhost", "--port", str(port), "--listen", "127.0.0.1"),
        *("--monitor-port", str(monitor)),
    )
    deployment = open_deployment(made.folder)
    enrol_s = enrolled(folder / "keys", deployment=deployment, sites=sites)
    try:
        made.server.start("server", "server", "start", str(made.folder))
        registered_s = _until(lambda: is_in_step(deployment), within_s=_RUN_S, what="keys to be registered")
        _, look_s = timed(lambda: is_in_step(deployment))
        with _crowd(made, keys=folder / "keys", port=port, work_s=work_s) as seen:
            online_s = _until(lambda: int(str(seen()["online"])) == sites, within_s=_ONLINE_S, what="sites")
            idle = _idle(made, seen=seen, idle_s=idle_s)
            ran = _run(made, deployment=deployment, rounds=rounds, width=width, seen=seen)
            _, status_s = timed(lambda: made.server.do("status", "--json", str(made.folder)))
            metrics, metrics_s = timed(lambda: _page(monitor))
        about = {"sites": sites, "rounds": rounds, "work_s": work_s, "machine": machine(), "commit": commit(ROOT)}
        set_up = {"enrol_first_s": enrol_s[0], "enrol_last_s": enrol_s[1], "registered_s": registered_s}
        looks = {"look_s": look_s, "online_s": online_s, "status_s": status_s, "metrics_s": metrics_s}
        return ManySites.model_validate({**about, **set_up, **looks, "metrics_bytes": len(metrics), **idle, **ran})
    finally:
        made.server.end()


def enrolled(keys: Path, *, deployment: Deployment, sites: int) -> tuple[float, float]:
    """Keys made and enrolled; mean seconds of the first and the last ten enrolments."""
    keys.mkdir()
    took = []
    for number in range(sites):
        name, key = f"site-{number:04d}", new_key()
        (keys / f"{name}.key").write_bytes(private_text(key))
        path = keys / f"{name}.pub"
        path.write_text(public_line(key.public_key(), name=name), encoding="utf-8")
        took.append(timed(partial(enrol, path, folder=deployment.enrolled, days=None))[1])
    few = min(10, sites)
    return sum(took[:few]) / few, sum(took[-few:]) / few


def timed(call: Callable[[], Told]) -> tuple[Told, float]:
    """What a call gives, and its seconds."""
    began = time.monotonic()
    found = call()
    return found, time.monotonic() - began


def _idle(made: SoakDeployment, *, seen: Seen, idle_s: float) -> dict[str, object]:
    time.sleep(_SETTLE_S)
    processes, before = processes_of(made), seen()
    cpu = cpu_of(processes)
    time.sleep(idle_s)
    after = seen()
    failed, used = total(after, "failed") - total(before, "failed"), growth(cpu, cpu_of(processes), per=idle_s / 60)
    return {
        "idle_cpu_s": used["server superlink"],
        "idle_requests": round((total(after, "requests") - total(before, "requests") - failed) * 60 / idle_s),
        "idle_failed": round(failed * 60 / idle_s),
        "idle_median_s": after["median_s"],
        "idle_p99_s": after["p99_s"],
    }


def _run(made: SoakDeployment, *, deployment: Deployment, rounds: int, width: int, seen: Seen) -> dict[str, object]:
    run, watch = made.folder / "runs" / "many", _Watch(made, deployment)
    asked = scenario(made.server.folder / "many.toml", data=made.data, rounds=rounds, epsilon=1.0)
    changes = ("run.privacy=none", f"run.model.embedding_width={width}", "run.federation.round_timeout_s=1200")
    watch.start()
    follower = made.server.start(
        "run", "run", str(asked), "--on", str(made.folder), "--out", str(run),
        *(word for change in changes for word in ("--set", change)),
    )  # fmt: skip

    def ends_with(path: Path, rounds: int = 0) -> Callable[[], bool]:
        return lambda: follower.poll() is not None or (path.is_file() and _num_rounds(run) >= rounds)

    hello_s = _until(ends_with(run / HANDSHAKE_FILE), within_s=_RUN_S, what="introductions")
    cpu, before = cpu_of(processes_of(made)), total(seen(), "requests")
    _until(ends_with(run / METRICS_FILE, rounds), within_s=_RUN_S, what="rounds")
    last, used = time.monotonic(), growth(cpu, cpu_of(processes_of(made)), per=rounds)
    requests = (total(seen(), "requests") - before) / rounds
    _until(ends_with(run / REPORT_FILE), within_s=_RUN_S, what="a report")
    if not (run / REPORT_FILE).is_file():
        said = (made.server.folder / "run.log").read_text(errors="replace")[-2000:]
        sys.exit(f"the run ended without a report: {said}\nthe sites saw, in all: {json.dumps(seen())}")
    report_s = time.monotonic() - last
    follower.wait(timeout=60)
    watch.stopping.set()
    watch.join()
    records, handshake = read_rounds(run / METRICS_FILE), (run / HANDSHAKE_FILE).read_text("utf-8")
    return {
        "parameters": read_record(run).num_parameters,
        "hello_s": hello_s,
        "accepted": sum(each["code"] is None for each in json.loads(handshake)["introductions"]),
        "round_s": tuple(record.seconds for record in records),
        "used": tuple(sum(site.outcome == "used" for site in record.sites) for record in records),
        "superlink_cpu_s_round": used.get("server superlink", 0.0),
        "serverapp_cpu_s_round": used.get("server serverapp", 0.0),
        "requests_round": requests,
        "failed": seen()["failed"],
        "superlink_rss_bytes": watch.rss("server superlink"),
        "serverapp_rss_bytes": watch.rss("server serverapp"),
        "database_bytes": watch.database,
        "report_s": report_s,
        "report_bytes": (run / REPORT_FILE).stat().st_size,
        "handshake_bytes": len(handshake),
    }


@contextmanager
def _crowd(made: SoakDeployment, *, keys: Path, port: int, work_s: float) -> Iterator[Seen]:
    """The sites in a process of their own; what they have seen so far."""
    out, ca = made.server.folder / "crowd.json", made.folder / "certificates" / "ca.crt"
    words = ["--server", f"localhost:{port}", "--ca", str(ca), "--work-s", str(work_s), "--out", str(out)]
    with (made.server.folder / "crowd.log").open("wb") as log:
        process = subprocess.Popen(  # noqa: S603  our own words, no shell
            [sys.executable, "-m", "simulations.bench.crowd", str(keys), *words],
            env=made.server.environment(), cwd=made.server.folder, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
    made.server.started["crowd"] = process

    def seen() -> dict[str, object]:
        if process.poll() is not None:
            raise ChildProcessError((made.server.folder / "crowd.log").read_text(errors="replace")[-2000:])
        found: dict[str, object] = json.loads(out.read_text("utf-8")) if out.is_file() else {"online": 0}
        return found

    yield seen


def total(seen: dict[str, object], name: str) -> int:
    """Sum of counts by path."""
    counts = seen.get(name, {})
    return sum(counts.values()) if isinstance(counts, dict) else 0


def _num_rounds(run: Path) -> int:
    return len(read_rounds(run / METRICS_FILE)) if (run / METRICS_FILE).is_file() else 0


def _page(port: int) -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as page:
        found: bytes = page.read()
    return found


def _until(is_so: Callable[[], bool], *, within_s: float, what: str) -> float:
    """Seconds until something is so; TimeoutError where it takes too long."""
    began = time.monotonic()
    while not is_so():
        if time.monotonic() - began > within_s:
            raise TimeoutError(f"waited {within_s:.0f} s for {what}")
        time.sleep(_LOOK_S)
    return time.monotonic() - began


def rows(found: ManySites) -> dict[str, str]:
    """What is told of one run."""
    mib, asked, rounds = 2**20, asked_a_second(found.sites), zip(found.round_s, found.used, strict=True)
    return {
        "parameters of the model": f"{found.parameters:,}",
        "a key enrolled, first ten / last ten, ms": f"{1e3 * found.enrol_first_s:.0f} / {1e3 * found.enrol_last_s:.0f}",
        "start of the server until Flower knows all keys, s": f"{found.registered_s:.0f}",
        "one look of the server at all keys, s": f"{found.look_s:.2f}",
        "all sites on line, s": f"{found.online_s:.0f}",
        "idle: SuperLink, CPU s a minute": f"{found.idle_cpu_s:.1f}",
        "idle: requests a second, asked / answered": f"{asked:.0f} / {found.idle_requests / 60:.0f}",
        "idle: a request, median / 99th percentile, s": f"{found.idle_median_s:.3f} / {found.idle_p99_s:.2f}",
        "idle: requests that failed, a minute": str(found.idle_failed),
        "introductions, s; accepted": f"{found.hello_s or 0:.0f}; {found.accepted}",
        "rounds, s (updates used)": ", ".join(f"{seconds:.0f} ({used})" for seconds, used in rounds),
        "SuperLink, CPU s a round": f"{found.superlink_cpu_s_round:.0f}",
        "server app, CPU s a round": f"{found.serverapp_cpu_s_round:.0f}",
        "requests a site in a round": f"{found.requests_round / found.sites:.0f}",
        "requests that failed, in all": str(sum(found.failed.values())),
        "SuperLink, MiB (RSS, peak)": f"{found.superlink_rss_bytes / mib:.0f}",
        "server app, MiB (RSS, peak)": f"{found.serverapp_rss_bytes / mib:.0f}",
        "SuperLink's database, MB at most": f"{found.database_bytes / 1e6:.1f}",
        "last round to report, s": f"{found.report_s:.1f}",
        "report.html, MB": f"{found.report_bytes / 1e6:.2f}",
        "handshake.json, kB": f"{found.handshake_bytes / 1e3:.0f}",
        "`motet status`, s": f"{found.status_s:.1f}",
        "/metrics, s; kB": f"{found.metrics_s:.2f}; {found.metrics_bytes / 1e3:.1f}",
    }


def asked_a_second(sites: int) -> float:
    """Requests that sites would make, if each were answered at once: a look every 3 s, a heartbeat every 24."""
    return sites * (1 / POLL_S + 1 / HEARTBEAT_S)


def render(found: Sequence[ManySites]) -> str:
    """For a terminal and for docs/many-sites.md: a column for each run."""
    columns = [rows(each) for each in found]
    head = ["", *(f"{each.sites:,} sites" for each in found)]
    lines = [[name, *(column[name] for column in columns)] for name in (columns[0] if columns else ())]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---", *("---:" for _ in found)], *lines))


def stored(path: Path) -> list[ManySites]:
    """What was measured before."""
    lines = path.read_text("utf-8").splitlines() if path.is_file() else []
    return [ManySites.model_validate_json(line) for line in lines]


def main(words: Sequence[str] | None = None) -> None:
    """From the command line."""
    parser = argparse.ArgumentParser(prog="python -m simulations.bench.many_sites", description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", help="to make")
    parser.add_argument("--sites", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--parameters", type=int, default=1000, help="about so many")
    parser.add_argument("--work-s", type=float, default=5.0, help="that a site takes to answer")
    parser.add_argument("--idle-s", type=float, default=60.0)
    parser.add_argument("--out", type=Path, default=RESULTS / "many_sites.jsonl")
    parser.add_argument("--table", action="store_true", help="run nothing: print what is stored")
    told = parser.parse_args(words)
    if not told.table:
        if told.folder is None:
            parser.error("give a FOLDER to make, or --table")
        # who ends this ends what it started, too
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        told.folder.mkdir(parents=True)
        width = max(1, told.parameters // _PER_PARAMETER)
        found = measure(
            told.folder, sites=told.sites, rounds=told.rounds, width=width, work_s=told.work_s, idle_s=told.idle_s
        )
        with told.out.open("a", encoding="utf-8") as file:
            file.write(found.model_dump_json() + "\n")
    print(render(stored(told.out)))


if __name__ == "__main__":
    main()
