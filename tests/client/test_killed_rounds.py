"""Rounds whose process is killed (SIGKILL) between reserve and reply: the ledger never understates; a run can go on."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from unittest.mock import patch

import pytest

from client import agent
from shared.errors import ManifestError
from shared.messages import Refusal, StatisticsReply, TrainReply
from shared.privacy.accountant import spent_epsilon
from shared.privacy.ledger import Ledger, uses_of_rows
from shared.privacy.noise import RandomSource
from tests.client.asking import ask, ask_counts, rows_of, site_file
from tests.tiny import tiny_config

# full batches, whose exact cost takes no time to compute
RUN = tiny_config(
    private=True,
    training={"optimizer": "sgd", "learning_rate": 0.5, "sample_rate": 1.0, "local_steps": 2},
    statistics={"noise_multiplier": 2.0},
)
# one process imports everything once, and every process that asks is a copy of it that has not yet done anything
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["tests.client.test_killed_rounds"])

Point = Callable[[], AbstractContextManager[object]]


def die(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fail(*_: object, **__: object) -> None:
    raise ManifestError(folder="data", manifest="metadata.jsonl", num_rows=0, faults=())


def before(name: str, owner: object = agent) -> Point:
    """The process dies where this is called."""
    return lambda: patch.object(owner, name, die)


def after(name: str, owner: object = agent) -> Point:
    """The process dies when this has returned."""
    real: Callable[..., object] = getattr(owner, name)

    def then_die(*given: object, **named: object) -> None:
        real(*given, **named)
        die()

    return lambda: patch.object(owner, name, then_die)


def unreadable(point: Point) -> Point:
    """The data cannot be loaded, so that the agent gives the reservation back."""

    @contextmanager
    def both() -> Iterator[None]:
        with patch.object(agent, "load_samples", fail), point():
            yield

    return both


@contextmanager
def in_the_second_step() -> Iterator[None]:
    """The process dies where the second step draws its noise."""
    real, drawn = RandomSource.normal, []

    def counting(self: RandomSource, *given: object, **named: object) -> object:
        drawn.append(given)
        if len(drawn) == 2:
            die()
        return real(self, *given, **named)  # type: ignore[arg-type]

    with patch.object(RandomSource, "normal", counting):
        yield


ROUND: dict[str, tuple[Point, list[str]]] = {
    "before anything is charged": (before("reserve", Ledger), []),
    "after the reservation": (after("reserve", Ledger), ["reserved"]),
    "in loading": (before("load_samples"), ["reserved"]),
    "after loading": (after("load_samples"), ["reserved"]),
    "before training": (before("train_round"), ["reserved"]),
    "in the middle of a step": (in_the_second_step, ["reserved"]),
    "after training": (after("train_round"), ["reserved"]),
    "before the release": (before("release", Ledger), ["reserved"]),
    "after the release": (after("release", Ledger), ["released"]),
    "before it is given back": (unreadable(before("void", Ledger)), ["reserved"]),
    "after it is given back": (unreadable(after("void", Ledger)), ["void"]),
}
COUNTS: dict[str, tuple[Point, list[str]]] = {
    "after the reservation": (after("reserve", Ledger), ["reserved"]),
    "before the noise": (before("noisy_counts"), ["reserved"]),
    "after the noise": (after("noisy_counts"), ["reserved"]),
    "after the release": (after("release", Ledger), ["released"]),
}


def asked_to_die(path: Path, point: str) -> None:
    with patch.object(agent, "_preflight"), ROUND[point][0]():
        ask(path, RUN)


def counting_to_die(path: Path, point: str) -> None:
    with COUNTS[point][0]():
        ask_counts(path, RUN)


def going_on(path: Path, answers: Path) -> None:
    """A restarted process: the same attempt again, then higher ones for as long as the site answers."""
    with patch.object(agent, "_preflight"):
        replies = [ask(path, RUN)]
        replies += [ask(path, RUN, number=number, attempt=1) for number in (1, 2, 3)]
    lines = [reply.code if isinstance(reply, Refusal) else str(epsilon_of(reply)) for reply in replies]
    answers.write_text("\n".join(lines), encoding="utf-8")


def epsilon_of(reply: TrainReply) -> float:
    assert reply.header.privacy is not None
    return reply.header.privacy.epsilon


def run_in_a_process(target: Callable[[Path, str], None] | Callable[[Path, Path], None], *given: object) -> int | None:
    """The exit code; minus nine for one that was killed."""
    process = PROCESSES.Process(target=target, args=given)
    process.start()
    process.join(timeout=120)
    return process.exitcode


@pytest.mark.parametrize("point", ROUND)
def test_a_killed_round_is_in_the_ledger_and_the_run_goes_on(point: str, tmp_path: Path) -> None:
    path, states = site_file(tmp_path), ROUND[point][1]
    assert run_in_a_process(asked_to_die, path, point) == -signal.SIGKILL
    assert [row.state for row in rows_of(tmp_path)] == states

    assert run_in_a_process(going_on, path, tmp_path / "answers") == 0
    first, *later = (tmp_path / "answers").read_text(encoding="utf-8").splitlines()
    rows = rows_of(tmp_path)
    if states:
        # what was charged is never run a second time for the same payment
        assert first == "refused"
    granted = [float(each) for each in later if each != "refused"]
    # a killed attempt that may have let something out was one of the three rounds that the run has
    paid = [row for row in rows if row.state != "void"]
    assert len(paid) == 3
    assert len(granted) == (3 if states == ["void"] else 2)
    # and what the last reply says is what all of them cost together
    assert granted[-1] == spent_epsilon(uses_of_rows(rows, unit="record"), delta=1e-3, accountant="pld")
    assert granted[-1] <= 8


@pytest.mark.parametrize("point", COUNTS)
def test_killed_counts_are_in_the_ledger(point: str, tmp_path: Path) -> None:
    path = site_file(tmp_path)
    assert run_in_a_process(counting_to_die, path, point) == -signal.SIGKILL
    assert [(row.round_number, row.mechanism, row.state) for row in rows_of(tmp_path)] == [
        (0, "counts", *COUNTS[point][1])
    ]
    assert ask_counts(path, RUN) == Refusal("refused")
    assert isinstance(ask_counts(path, RUN, attempt=1), StatisticsReply)
    assert [row.mechanism for row in rows_of(tmp_path)] == ["counts", "counts"]
