"""Tests of client/cohort_loading.py: data is read side by side and ahead, each site's answer stays its own."""

import threading
from pathlib import Path

import pytest

from client import agent, cohort_loading
from client.cohort import answer_cohort
from client.sample_store import SampleStore
from shared.batch import Samples
from shared.dataset import load_samples
from shared.messages import Refusal, TrainReply
from tests.client.test_cohort import NO_NOISE, add_sites, answered, asked_of

WAIT_S = 30.0


@pytest.fixture
def store(tmp_path: Path) -> SampleStore:
    return SampleStore(tmp_path / "store")


def number_of(folder: Path) -> int:
    return int(folder.parent.name.removeprefix("site-"))


def test_sites_are_read_side_by_side(tmp_path: Path, store: SampleStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each reader waits for the other: one after another they would never end."""
    meeting = threading.Barrier(2, timeout=WAIT_S)

    def load(folder: Path, **named: object) -> Samples:
        meeting.wait()
        return load_samples(folder, **named)  # type: ignore[arg-type]

    monkeypatch.setattr("os.cpu_count", lambda: 2)
    monkeypatch.setattr(agent, "load_samples", load)
    replies = answered(asked_of(add_sites(tmp_path, 2), NO_NOISE), store=store)
    assert all(isinstance(reply, TrainReply) for reply in replies)


def test_the_next_sites_are_read_while_those_before_them_train(
    tmp_path: Path, store: SampleStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first site's answer is made no sooner than the third's data is asked for: it would never be, were it not."""
    third_is_read = threading.Event()

    def load(folder: Path, **named: object) -> Samples:
        if number_of(folder) == 2:
            third_is_read.set()
        return load_samples(folder, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(agent, "load_samples", load)
    monkeypatch.setattr(cohort_loading, "LOADED_AT_ONCE", 1)
    # a chunk of one site, which ends when the second is there
    answers = answer_cohort(asked_of(add_sites(tmp_path, 4), NO_NOISE), store=store, memory_bytes=1)
    assert isinstance(next(answers), TrainReply)
    assert third_is_read.wait(WAIT_S)
    assert all(isinstance(answer, TrainReply) for answer in answers)


@pytest.mark.parametrize("at_once", [1, 2, 32])
def test_each_site_has_its_answer_in_its_place(
    at_once: int, tmp_path: Path, store: SampleStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(folder: Path, **named: object) -> Samples:
        if number_of(folder) % 3 == 0:
            raise RuntimeError("the disk fails here")
        return load_samples(folder, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(agent, "load_samples", load)
    monkeypatch.setattr(cohort_loading, "LOADED_AT_ONCE", at_once)
    replies = answered(asked_of(add_sites(tmp_path, 7), NO_NOISE), store=store)
    assert [isinstance(reply, Refusal) for reply in replies] == [number % 3 == 0 for number in range(7)]


def test_who_asks_for_no_more_answers_waits_for_no_more_data(
    tmp_path: Path, store: SampleStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = list[int]()

    def load(folder: Path, **named: object) -> Samples:
        read.append(number_of(folder))
        return load_samples(folder, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(agent, "load_samples", load)
    monkeypatch.setattr(cohort_loading, "LOADED_AT_ONCE", 1)
    answers = answer_cohort(asked_of(add_sites(tmp_path, 9), NO_NOISE), store=store, memory_bytes=1)
    next(answers)
    answers.close()
    assert len(read) <= 4
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("motet-load")]


def test_nothing_is_read_while_an_owners_part_trains(
    tmp_path: Path, store: SampleStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part may seed the one generator of torch that another part draws from."""
    (tmp_path / "part.py").write_text('"""Registers nothing."""\n', encoding="utf-8")
    paths, read = add_sites(tmp_path, 4), list[int]()
    for path in paths:
        path.write_text('parts = ["../../part.py"]\n' + path.read_text(encoding="utf-8"), encoding="utf-8")

    def load(folder: Path, **named: object) -> Samples:
        read.append(number_of(folder))
        return load_samples(folder, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(agent, "load_samples", load)
    monkeypatch.setattr(cohort_loading, "LOADED_AT_ONCE", 1)
    answers = answer_cohort(asked_of(paths, NO_NOISE), store=store, memory_bytes=1)
    assert isinstance(next(answers), TrainReply)
    # the second, with which the first one's chunk ended, and not the third
    assert read == [0, 1]
    assert all(isinstance(answer, TrainReply) for answer in answers)
