"""A ledger that was removed or set back while nobody looked grants nothing, until its owner says that it shall."""

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pydantic import ValidationError

from client import agent
from client.ledger import budget_of
from client.resident.answers import KeptAnswers
from client.resident.ledger_mark import read_mark
from shared.errors import LedgerError
from shared.messages import Refusal, TrainReply
from shared.privacy.ledger import Ledger
from tests.client.asking import DATA_SET, rows_of, site_file, used
from tests.client.resident.agents import agent_process, asked, train_records
from tests.client.resident.test_answers import cut_off, train

REFUSED = Refusal("ledger-invalid")


@pytest.fixture(autouse=True)
def _cold(monkeypatch: pytest.MonkeyPatch) -> None:
    agent._loaded_samples.cache_clear()
    agent.ledger_at.cache_clear()
    monkeypatch.setattr("client.preflight.assert_sound", lambda _: None)


@contextmanager
def started(folder: Path, *, name: str = "answers") -> Iterator[KeptAnswers]:
    """What an agent remembers that has just been started."""
    agent.ledger_at.cache_clear()
    answers = KeptAnswers(folder / name, most_runs=2, most_rounds=2)
    try:
        yield answers
    finally:
        answers.close()


def remove(folder: Path) -> None:
    for path in folder.glob("ledger.sqlite*"):
        path.unlink()


def set_back(folder: Path) -> None:
    shutil.copy(folder / "copy.sqlite", folder / "ledger.sqlite")


def copy(folder: Path) -> None:
    shutil.copy(folder / "ledger.sqlite", folder / "copy.sqlite")


def test_a_ledger_that_was_removed_is_not_begun_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = site_file(tmp_path)
    with started(tmp_path) as answers:
        used(train(path, answers))
    remove(tmp_path)
    with started(tmp_path) as answers:
        assert train(path, answers) == REFUSED
        assert train(path, answers, number=2) == REFUSED
        assert train(path, answers, run_id="another") == REFUSED
    assert not (tmp_path / "ledger.sqlite").exists()
    (said,) = {record.getMessage() for record in caplog.records}
    assert str(tmp_path / "ledger.sqlite") in said
    assert "held reservations up to 1 (of 'north-2026', round 1 of run r)" in said
    assert f"move {tmp_path / 'answers'} away" in said


@pytest.mark.parametrize("is_started_again", [True, False])
def test_a_ledger_restored_from_a_copy_grants_nothing(
    is_started_again: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = site_file(tmp_path)
    with started(tmp_path) as answers:
        used(train(path, answers))
        copy(tmp_path)
        used(train(path, answers, number=2))
        newest = (tmp_path / "ledger.sqlite").read_bytes()
        used(train(path, answers, number=3))
        set_back(tmp_path)
        if not is_started_again:
            assert train(path, answers, number=3) == REFUSED
    with started(tmp_path) as answers:
        assert train(path, answers, number=3) == REFUSED
        assert "reservations 2 to 3 are missing (of 'north-2026', round 3 of run r)" in caplog.records[-1].getMessage()
        # one that is less old lacks something too
        (tmp_path / "ledger.sqlite").write_bytes(newest)
        assert train(path, answers, number=3) == REFUSED
        assert "reservations 3 to 3 are missing" in caplog.records[-1].getMessage()
    assert [row.round_number for row in rows_of(tmp_path)] == [1, 2]


def test_the_newest_ledger_put_back_is_taken_at_once(tmp_path: Path) -> None:
    path = site_file(tmp_path)
    with started(tmp_path) as answers:
        used(train(path, answers))
        copy(tmp_path)
        remove(tmp_path)
        assert train(path, answers, number=2) == REFUSED
        set_back(tmp_path)
        used(train(path, answers, number=2))
    assert [row.state for row in rows_of(tmp_path)] == ["released"] * 2


def test_what_was_granted_is_remembered_longer_than_any_answer(tmp_path: Path) -> None:
    path = site_file(tmp_path)
    with started(tmp_path) as answers:
        used(train(path, answers))
        copy(tmp_path)
        used(train(path, answers, number=2))
    shutil.rmtree(tmp_path / "answers" / "r")
    set_back(tmp_path)
    with started(tmp_path) as answers:
        assert train(path, answers, run_id="later") == REFUSED


def test_a_round_that_failed_is_remembered_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its note is taken away, because who asked was told; what it cost is not."""
    path = site_file(tmp_path)
    with started(tmp_path) as answers:
        used(train(path, answers))
        copy(tmp_path)
        with monkeypatch.context() as patched:
            patched.setattr(agent, "train_round", lambda *_, **__: 1 / 0)
            assert train(path, answers, number=2) == Refusal("internal")
    set_back(tmp_path)
    with started(tmp_path) as answers:
        assert train(path, answers, number=2) == REFUSED


def test_it_is_remembered_before_data_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = site_file(tmp_path)
    with started(tmp_path) as answers, monkeypatch.context() as patched:
        cut_off(patched, "_load")
        with pytest.raises(KeyboardInterrupt):
            train(path, answers)
    mark = read_mark(tmp_path / "answers", data_set=DATA_SET)
    assert mark is not None
    assert (mark.reservation, mark.run_id, mark.round_number) == (1, "r", 1)


def test_the_notes_of_an_agent_that_kept_no_mark_are_compared(tmp_path: Path) -> None:
    path = site_file(tmp_path)
    with started(tmp_path) as answers:
        used(train(path, answers))
        copy(tmp_path)
        used(train(path, answers, number=2))
    (mark,) = (tmp_path / "answers").glob("*.mark")
    mark.unlink()
    set_back(tmp_path)
    with started(tmp_path) as answers:
        assert train(path, answers, number=2) == REFUSED


def test_another_ledger_that_has_gone_as_far_is_not_taken_for_the_same(tmp_path: Path) -> None:
    path = site_file(tmp_path, epsilon=50.0)
    with started(tmp_path) as answers:
        used(train(path, answers))
    remove(tmp_path)
    with started(tmp_path, name="others") as others:
        for number in (1, 2):
            used(train(path, others, run_id="stranger", number=number))
    with started(tmp_path) as answers:
        assert train(path, answers, number=2) == REFUSED


@pytest.mark.parametrize("spoil", [b"", b"0" * 64 + b"{}"])
def test_a_mark_that_is_damaged_lets_nothing_pass(spoil: bytes, tmp_path: Path) -> None:
    path = site_file(tmp_path)
    with started(tmp_path) as answers:
        used(train(path, answers))
    (mark,) = (tmp_path / "answers").glob("*.mark")
    mark.write_bytes(spoil)
    with started(tmp_path) as answers:
        assert train(path, answers, number=2) == REFUSED


def test_what_was_given_back_stays_a_row_and_holds_nobody_up(tmp_path: Path) -> None:
    path, manifest = site_file(tmp_path), tmp_path / "data" / "metadata.jsonl"
    sound = manifest.read_text(encoding="utf-8")
    manifest.write_text('{"label": "joy"}\n', encoding="utf-8")
    with started(tmp_path) as answers:
        assert train(path, answers) == Refusal("manifest-invalid")
    manifest.write_text(sound, encoding="utf-8")
    with started(tmp_path) as answers:
        used(train(path, answers, attempt=1))


def test_each_data_set_is_remembered_by_itself(tmp_path: Path) -> None:
    """A site that goes on with other people and another ledger has nothing to explain."""
    path = site_file(tmp_path)
    with started(tmp_path) as answers:
        used(train(path, answers))
    text = path.read_text(encoding="utf-8")
    path.write_text(
        text.replace(DATA_SET, "south-2027").replace("ledger.sqlite", "ledger-south.sqlite"), encoding="utf-8"
    )
    with started(tmp_path) as answers:
        used(train(path, answers, run_id="s"))
        path.write_text(text.replace(DATA_SET, "south-2027"), encoding="utf-8")
        assert train(path, answers, run_id="s", number=2) == REFUSED


def test_an_owner_who_knows_moves_the_answers_away(tmp_path: Path) -> None:
    path = site_file(tmp_path, epsilon=50.0)
    with started(tmp_path) as answers:
        used(train(path, answers))
        copy(tmp_path)
        used(train(path, answers, number=2))
    set_back(tmp_path)
    (tmp_path / "answers").rename(tmp_path / "answers-of-before")
    with started(tmp_path) as answers:
        assert isinstance(train(path, answers, run_id="next"), TrainReply)


def test_the_budget_of_a_ledger_that_forgot_is_not_shown_as_if_it_were_all(tmp_path: Path) -> None:
    path = site_file(tmp_path)
    answers = KeptAnswers(tmp_path / "agent" / "answers", most_runs=1, most_rounds=1)
    used(train(path, answers))
    answers.close()
    assert budget_of(path, plan=None).is_begun
    remove(tmp_path)
    with pytest.raises(LedgerError, match="up to 1"):
        budget_of(path, plan=None)


def test_an_agent_whose_ledger_was_removed_tells_its_owner_and_answers_nothing(tmp_path: Path) -> None:
    """Processes; and an empty ledger in its place is no better than none."""
    path = site_file(tmp_path)
    with agent_process(path):
        assert asked(path, train_records()).code is None
    remove(tmp_path)
    journal = tmp_path / "agent" / "journal.jsonl"
    with agent_process(path):
        # before anybody has asked
        assert "held reservations up to 1" in journal.read_text(encoding="utf-8")
        assert asked(path, train_records(number=2)).code == "ledger-invalid"
        Ledger(tmp_path / "ledger.sqlite")
        assert asked(path, train_records(number=2)).code == "ledger-invalid"
    assert "'Restore a ledger' in docs/deployment.md" in journal.read_text(encoding="utf-8")
    assert rows_of(tmp_path) == ()


def test_a_round_that_is_trained_again_does_not_set_the_mark_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its reservation is older than that of another run, which a copy made in between has forgotten."""
    path = site_file(tmp_path, epsilon=100.0)
    with started(tmp_path) as answers:
        with monkeypatch.context() as patched:
            cut_off(patched)
            with pytest.raises(KeyboardInterrupt):
                train(path, answers, run_id="first")
        copy(tmp_path)
        used(train(path, answers, run_id="second"))
        used(train(path, answers, run_id="first"))
        mark = read_mark(answers.folder, data_set=DATA_SET)
        assert mark is not None
        assert (mark.reservation, mark.run_id) == (2, "second")
        set_back(tmp_path)
        assert train(path, answers, run_id="third") == REFUSED


def test_no_run_can_take_the_marks_place(tmp_path: Path) -> None:
    """A folder of that name, or of the one under which it is written, would be a charge without an answer for ever."""
    path, name = site_file(tmp_path, epsilon=100.0), f"ledger-{hashlib.sha256(DATA_SET.encode()).hexdigest()[:16]}.mark"
    with started(tmp_path) as answers:
        for run_id in (name, f"{name}.new"):
            train(path, answers, run_id=run_id)
        used(train(path, answers, run_id="another"))
        (mark,) = answers.folder.glob(".*")
    with pytest.raises(ValidationError):
        train(path, answers, run_id=mark.name)
