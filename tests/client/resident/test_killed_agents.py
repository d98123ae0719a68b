"""Agents killed (SIGKILL) around a round, then started again: the ledger never understates; one charge, one answer."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import pytest

from client import agent
from client.resident import listener
from client.resident.answers import KeptCase
from shared.errors import WireError
from shared.privacy.accountant import spent_epsilon
from shared.privacy.ledger import Ledger, uses_of_rows
from shared.privacy.noise import RandomSource
from tests.client.asking import rows_of, site_file
from tests.client.resident.agents import RUN, Broken, agent_process, asked, counts_records, same, train_records
from tests.tiny import tiny_config, tiny_run


def die(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def before_reserve() -> Iterator[None]:
    with patch.object(Ledger, "reserve", die):
        yield


@contextmanager
def after_reserve() -> Iterator[None]:
    with patch.object(KeptCase, "note", die):
        yield


@contextmanager
def after_the_note() -> Iterator[None]:
    with patch.object(agent, "_load", die):
        yield


@contextmanager
def during_training() -> Iterator[None]:
    real, drawn = RandomSource.normal, []

    def counting(self: RandomSource, *given: object, **named: object) -> object:
        drawn.append(given)
        if len(drawn) == 2:
            die()
        return real(self, *given, **named)  # type: ignore[arg-type]

    with patch.object(RandomSource, "normal", counting):
        yield


@contextmanager
def before_it_is_stored() -> Iterator[None]:
    with patch.object(KeptCase, "keep", die):
        yield


@contextmanager
def after_it_is_stored() -> Iterator[None]:
    with patch.object(Ledger, "release", die):
        yield


@contextmanager
def before_it_is_sent() -> Iterator[None]:
    with patch.object(listener, "send_frame", die):
        yield


@contextmanager
def at_the_noise_of_counts() -> Iterator[None]:
    with patch.object(agent, "noisy_counts", die):
        yield


POINTS: dict[str, tuple[Broken, list[str]]] = {
    "before reserve": (before_reserve, []),
    "after reserve": (after_reserve, ["reserved"]),
    "after the note": (after_the_note, ["reserved"]),
    "during training": (during_training, ["reserved"]),
    "before it is stored": (before_it_is_stored, ["reserved"]),
    "after it is stored": (after_it_is_stored, ["reserved"]),
    "before it is sent": (before_it_is_sent, ["released"]),
}
UNKNOWN_REQUEST = {"after reserve"}
"""where the reservation's request is not on the disk: charged, and charged again if it is asked again"""


SLOW = {"before reserve", "after the note", "before it is stored"}


@pytest.mark.parametrize(
    "point", [pytest.param(point, marks=pytest.mark.slow) if point in SLOW else point for point in POINTS]
)
def test_a_killed_agent_charges_an_identical_request_once(point: str, tmp_path: Path) -> None:
    path, (broken, states) = site_file(tmp_path), POINTS[point]
    with agent_process(path, broken=broken) as process:
        with pytest.raises((WireError, OSError)):
            asked(path, train_records())
        process.join(timeout=60)
        assert process.exitcode == -signal.SIGKILL
    assert [row.state for row in rows_of(tmp_path)] == states

    stored = tmp_path / "agent" / "answers" / "r" / "000001.answer"
    held = stored.read_bytes() if stored.exists() else None
    with agent_process(path):
        first = asked(path, train_records())
        if point in UNKNOWN_REQUEST:
            assert first.code == "refused"
            first = asked(path, train_records(attempt=1))
        # the same once more, as a server that was started again asks it
        assert first.code is None
        assert same(first, asked(path, train_records(attempt=1)))
        assert same(first, asked(path, train_records(attempt=2)))
        # and nothing else about this round
        assert asked(path, train_records(value=0.5, attempt=9)).code == "replayed"
        later = asked(path, train_records(number=2, attempt=2))
        assert later.code is None
    assert held is None or stored.read_bytes() == held
    rows = rows_of(tmp_path)
    expected = ["reserved", "released"] if point in UNKNOWN_REQUEST else ["released"]
    assert [row.state for row in rows] == [*expected, "released"]
    # what the last reply says is what all of it costs together
    told = spent_epsilon(uses_of_rows(rows, unit="record"), delta=1e-3, accountant="pld")
    assert f'"epsilon":{told}' in (later.header or "")


def test_killed_counts_are_charged_once(tmp_path: Path) -> None:
    path = site_file(tmp_path)
    with agent_process(path, broken=at_the_noise_of_counts), pytest.raises((WireError, OSError)):
        asked(path, counts_records(), kind="query")
    with agent_process(path):
        first = asked(path, counts_records(attempt=1), kind="query")
        assert first.code is None
        assert same(first, asked(path, counts_records(attempt=2), kind="query"))
    assert [(row.mechanism, row.state) for row in rows_of(tmp_path)] == [("counts", "released")]


def test_an_agent_killed_between_its_own_weights_and_its_answer_trains_the_round_as_it_would_have(
    tmp_path: Path,
) -> None:
    table = tiny_run(private=False)["model"]
    assert isinstance(table, dict)
    run = tiny_config(private=False, model={**table, "personal": ("head.*",)}, training=RUN.training.model_dump())
    replies = {}
    for name in ("killed", "left alone"):
        (tmp_path / name).mkdir()
        path = site_file(tmp_path / name, allow_non_private=True, reproducible_noise=True)
        with agent_process(path):
            assert asked(path, train_records(run)).code is None
        if name == "killed":
            with agent_process(path, broken=before_it_is_stored), pytest.raises((WireError, OSError)):
                asked(path, train_records(run, number=2))
            assert (tmp_path / name / "ledger.sqlite-personal" / "north" / "r" / "000002.safetensors").exists()
        with agent_process(path):
            replies[name] = [asked(path, train_records(run, number=number)) for number in (2, 3)]
    assert replies["killed"][0].code is None
    assert all(same(first, second) for first, second in zip(*replies.values(), strict=True))


def test_an_agent_that_is_told_to_end_finishes_the_round(tmp_path: Path) -> None:
    path = site_file(tmp_path)
    with agent_process(path) as process:
        reply = asked(path, train_records())
        process.terminate()
        process.join(timeout=60)
        assert process.exitcode == 0
    assert reply.code is None
    assert not (tmp_path / "agent" / "socket").exists()
