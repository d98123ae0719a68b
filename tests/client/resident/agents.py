"""Agents: a listener in this process, an agent in one of its own, and what is asked of them; used by the tests beside it."""

import contextlib
import multiprocessing
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from multiprocessing.process import BaseProcess
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from flwr.app import RecordDict

from client.resident.carrier import ask
from client.resident.conversion import parts_of
from client.resident.frames import Frame
from client.resident.listener import Limits, Listener
from client.resident.protocol import Kind, Parts
from client.resident.serving import run_agent
from client.run_model import exchanged_shapes, key_of
from shared.config import RunConfig
from shared.messages import PROTOCOL_VERSION, RequestHeader, StatisticsHeader, TrainRequest
from shared.wire import encode_request, encode_statistics_request
from tests.tiny import tiny_config

# full batches, whose exact cost takes no time to compute
RUN = tiny_config(
    private=True,
    training={"optimizer": "sgd", "learning_rate": 0.5, "sample_rate": 1.0, "local_steps": 2},
    statistics={"noise_multiplier": 2.0},
)
# one process imports everything once, and every agent is a copy of it that has not yet done anything
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["tests.client.resident.agents"])
CHECKOUT = Path(__file__).resolve().parents[3]
Broken = Callable[[], AbstractContextManager[object]]

needs_other_users = pytest.mark.skipif(os.geteuid() != 0, reason="only root can run a program as another user")


NOBODY = 65534


def as_nobody(program: str, *arguments: str, before: str = "") -> str:
    """What a Python program prints that runs as another user, without any right of this one.

    Args:
        before: imports, which the other user may not be allowed to read for itself.
    """
    dropped = f"{before}\nimport os\nos.setgroups([])\nos.setgid({NOBODY})\nos.setuid({NOBODY})\nos.chdir('/')\n"
    done = subprocess.run(
        [sys.executable, "-c", dropped + program, *arguments],
        env={"PYTHONPATH": str(CHECKOUT), "LANG": "C.UTF-8"},
        cwd="/", check=False, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@contextlib.contextmanager
def open_folder() -> Iterator[Path]:
    """A folder that every user can pass through, unlike pytest's own."""
    folder = Path(tempfile.mkdtemp(prefix="motet-"))
    folder.chmod(0o711)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@contextlib.contextmanager
def listening(
    path: Path,
    answer: Callable[[Frame], Frame],
    *,
    others: frozenset[int] = frozenset(),
    limits: Limits | None = None,
) -> Iterator[Listener]:
    """A listener in a thread."""
    path.parent.mkdir(mode=0o711, exist_ok=True)
    listener = Listener(path, others=others, limits=limits or Limits(most_body_bytes=1 << 20), answer=answer)
    thread = threading.Thread(target=listener.serve)
    thread.start()
    try:
        yield listener
    finally:
        listener.stop()
        thread.join()


def _run(site_file: Path, broken: Broken | None) -> None:
    # four seconds each, and tests of their own
    with patch("client.preflight.assert_sound", lambda _: None), broken() if broken else contextlib.nullcontext():
        run_agent(site_file)


@contextlib.contextmanager
def agent_process(site_file: Path, *, broken: Broken | None = None) -> Iterator[BaseProcess]:
    """The resident agent in a process of its own, once it answers.

    Args:
        broken: makes what is patched while it runs; must be known by name, as the process imports it.
    """
    process = PROCESSES.Process(target=_run, args=(site_file, broken))
    process.start()
    try:
        wait_for(site_file.parent / "agent" / "socket", process=process)
        yield process
    finally:
        process.terminate()
        process.join(timeout=60)
        assert process.exitcode is not None


def wait_for(path: Path, *, process: BaseProcess | None = None, within_s: float = 60.0) -> None:
    """Until somebody answers at a socket."""
    deadline = time.monotonic() + within_s
    while True:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as trial:
            trial.connect(str(path))
            return
        assert process is None or process.is_alive(), f"the agent ended with {process.exitcode}"
        assert time.monotonic() < deadline, f"nobody answers at {path}"
        time.sleep(0.02)


def train_records(
    run: RunConfig = RUN,
    *,
    number: int = 1,
    attempt: int = 0,
    run_id: str = "r",
    value: float = 0.0,
    modalities: tuple[str, ...] = ("left", "right"),
) -> RecordDict:
    """A round, with all weights the same number."""
    header = RequestHeader(
        protocol_version=PROTOCOL_VERSION, run=run, run_id=run_id, round_number=number, attempt=attempt,
        planned_rounds=run.federation.rounds,
    )  # fmt: skip
    shapes = exchanged_shapes(key_of(run), modalities).sent
    return encode_request(TrainRequest(header, {name: torch.full(shape, value) for name, shape in shapes.items()}))


def counts_records(run: RunConfig = RUN, *, attempt: int = 0, run_id: str = "r") -> RecordDict:
    """A question for counts."""
    header = StatisticsHeader(
        protocol_version=PROTOCOL_VERSION, run=run, run_id=run_id, attempt=attempt, planned_rounds=run.federation.rounds
    )
    return encode_statistics_request(header)


def asked(site_file: Path, records: RecordDict, *, kind: Kind = "train", answer_s: float = 60.0) -> Parts:
    """What the agent of a site says to a message."""
    return ask(kind, parts_of(records), agent=site_file.parent / "agent" / "socket", answer_s=answer_s)


def same(first: Parts, second: Parts) -> bool:
    """Whether two replies are the same to the last bit."""
    ours, theirs = first.read(), second.read()
    if (first.header, first.code) != (second.header, second.code) or ours is None or theirs is None:
        return (first.header, first.code, ours) == (second.header, second.code, theirs)
    return ours.keys() == theirs.keys() and all(np.array_equal(ours[name], theirs[name]) for name in ours)
