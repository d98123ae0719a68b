"""Agent overhead: what the resident agent adds to a round, beside the same round answered in the process.

in        nothing: a site of generated vectors, and a model of a size that is asked for
out       a table: medians in seconds, of the carrier's own process, its conversions, the socket and the agent
relies on rounds of both ways being asked in alternation, each of its own run, with noise and ledger as in earnest;
          both get the round in the form in which it crosses a network, and give their answer in it

    python -m simulations.bench.agent_overhead --width 256 --rounds 20
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from flwr.app import RecordDict

from client.answering import answer_training
from client.resident.answers import KeptAnswers
from client.resident.carrier import ask
from client.resident.conversion import parts_of, records_of
from client.resident.journal import Journal
from client.resident.listener import Listener
from client.resident.protocol import Parts
from client.resident.serving import Agent, limits_of
from client.run_model import exchanged_shapes, key_of, num_parameters
from client.site import read_site
from shared.config import RunConfig
from shared.messages import PROTOCOL_VERSION, RequestHeader, TrainRequest
from shared.wire import encode_request, packed

_ROWS = 200
Clock = Callable[[], float]
_START, _FLOWER = "import client.app", "import flwr.clientapp, flwr.app"
_CARD = """title = "Generated"
generated = true
licence = "CC0 1.0"
citation = "none"
source = "generated"
[content]
task = "single-label"
labels = ["a", "b"]
[content.modalities.vector]
kind = "features"
width = FEATURES
"""


def site_at(folder: Path, *, features: int) -> Path:
    """A site of generated vectors in a folder."""
    draws, lines = np.random.default_rng(0), []
    (folder / "data").mkdir(parents=True)
    for row in range(_ROWS):
        np.save(folder / "data" / f"{row}.npy", draws.normal(size=features).astype(np.float32))
        lines.append(json.dumps({"label": "ab"[row % 2], "vector_file_name": f"{row}.npy"}))
    (folder / "data" / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "dataset.toml").write_text(_CARD.replace("FEATURES", str(features)), encoding="utf-8")
    (folder / "agent").mkdir()
    (folder / "site.toml").write_text(
        f'name = "bench"\ndata = "data"\ndata_set = "bench"\nnominal_size = {_ROWS}\nmodalities = ["vector"]\n'
        'ledger = "ledger.sqlite"\ncache = "cache"\n[privacy]\nepsilon = 1000.0\ndelta = 1e-5\n',
        encoding="utf-8",
    )
    return folder / "site.toml"


def run_of(*, width: int, features: int, rounds: int, steps: int = 4) -> RunConfig:
    """A private run whose model has about (features + width) x width parameters."""
    return RunConfig.model_validate(
        {
            "name": "bench",
            "seed": 0,
            "data": {
                "task": "single-label",
                "labels": ["a", "b"],
                "modalities": {"vector": {"kind": "features", "width": features}},
            },
            "model": {
                "embedding_width": width,
                "encoders": {"vector": {"name": "linear"}},
                "fusion": {"name": "concat"},
            },
            "training": {"optimizer": "sgd", "learning_rate": 0.1, "sample_rate": 0.25, "local_steps": steps},
            "privacy": {"unit": "record", "trust": "nobody", "epsilon": 8.0, "delta": 1e-5, "clip_norm": 1.0},
            "federation": {"rounds": rounds},
        }
    )


def request(run: RunConfig, *, number: int) -> RecordDict:
    """The round as a message."""
    header = RequestHeader(
        protocol_version=PROTOCOL_VERSION, run=run, run_id="bench", round_number=number,
        planned_rounds=run.federation.rounds,
    )  # fmt: skip
    shapes = exchanged_shapes(key_of(run), run.modalities).sent
    return packed(encode_request(TrainRequest(header, {name: torch.zeros(shape) for name, shape in shapes.items()})))


def cpu_seconds() -> float:
    """Of this process and of those it has waited for: on a busy machine what a round costs, and not what it waits."""
    used = [resource.getrusage(whose) for whose in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def timed(action: Callable[[], object], *, clock: Clock) -> tuple[float, object]:
    """Seconds, and what it gave."""
    began = clock()
    made = action()
    return clock() - began, made


def measure(
    folder: Path, *, width: int, features: int, rounds: int, steps: int, clock: Clock
) -> dict[str, list[float]]:
    """Seconds of each part, round by round; the first round of each way, which builds the model, is left out."""
    here, there = site_at(folder / "here", features=features), site_at(folder / "there", features=features)
    run, site = run_of(width=width, features=features, rounds=rounds + 1, steps=steps), read_site(there)
    answers = KeptAnswers(site.agent.answers, most_runs=4, most_rounds=2)
    journal = Journal(site.agent.journal, most_bytes=site.agent.journal_bytes)
    agent = Agent(there, answers=answers, journal=journal)
    listener = Listener(site.agent.socket, others=frozenset(), limits=limits_of(site), answer=agent.answer)
    thread = threading.Thread(target=listener.serve)
    thread.start()
    found: dict[str, list[float]] = {name: [] for name in ("in process", "through the agent", "conversion", "socket")}
    try:
        for number in range(1, rounds + 2):
            records = request(run, number=number)
            alone, _ = timed(lambda asked=records: packed(answer_training(asked, site_file=here)), clock=clock)  # type: ignore[misc]
            began = clock()
            parts = parts_of(records)
            asked = clock()
            reply = ask("train", parts, agent=site.agent.socket)
            came = clock()
            records_of(reply)
            ended = clock()
            silent, _ = timed(lambda: ask("health", Parts(), agent=site.agent.socket), clock=clock)
            if reply.code is not None:
                raise SystemExit(f"the agent refused: {reply.code}")
            if number > 1:
                for name, seconds in zip(
                    found, (alone, ended - began, (asked - began) + (ended - came), silent), strict=True
                ):
                    found[name].append(seconds)
    finally:
        listener.stop()
        thread.join()
        journal.close()
        answers.close()
    return found


def start_seconds(program: str, *, clock: Clock, times: int = 5) -> list[float]:
    """Seconds of a Python process that does this and ends."""
    command = [sys.executable, "-c", program]
    return [timed(lambda: subprocess.run(command, check=True), clock=clock)[0] for _ in range(times)]  # noqa: S603  our own


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=256, help="of the model's embedding")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--features", type=int, default=64, help="of a row")
    parser.add_argument("--steps", type=int, default=4, help="of a round: fewer, and its training hides less")
    parser.add_argument("--cpu", action="store_true", help="seconds of processor time, not of the clock on the wall")
    asked = parser.parse_args()
    clock = cpu_seconds if asked.cpu else time.perf_counter
    # what a run is tried out with before its first round is no part of any later one
    with tempfile.TemporaryDirectory() as folder, patch("client.preflight.assert_sound", lambda _: None):
        found = measure(
            Path(folder),
            width=asked.width,
            features=asked.features,
            rounds=asked.rounds,
            steps=asked.steps,
            clock=clock,
        )
    added = [after - before for after, before in zip(found["through the agent"], found["in process"], strict=True)]
    rows = {
        "a round answered in the process": found["in process"],
        "the same through the agent, from the carrier": found["through the agent"],
        "so the agent adds": added,
        "  of that, records to parts and back": found["conversion"],
        "  an empty request over the socket": found["socket"],
        "start of the carrier's process (import client.app)": start_seconds(_START, clock=clock),
        "  of that, Flower's own": start_seconds(_FLOWER, clock=clock),
        "start with torch, as without an agent (import client.answering)": start_seconds(
            "import client.answering", clock=clock, times=3
        ),
    }
    size = num_parameters(key_of(run_of(width=asked.width, features=asked.features, rounds=asked.rounds)))
    print(f"a model of {size:,} parameters, {4 * size / 1e6:.1f} MB each way")
    for name, seconds in rows.items():
        middle, least, most = statistics.median(seconds), min(seconds), max(seconds)
        print(f"{name:64} {middle:8.4f} s   ({least:.4f} to {most:.4f})")


if __name__ == "__main__":
    main()
