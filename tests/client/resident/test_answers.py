"""Kept answers: one charge for identical requests, never two answers for one charge, nothing for what is damaged."""

import stat
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from client import agent
from client.agent import answer_statistics, answer_train
from client.resident.answers import MOST_TRIES, KeptAnswers
from shared.config import RunConfig
from shared.errors import ConfigError
from shared.messages import (
    PROTOCOL_VERSION,
    Refusal,
    RequestHeader,
    StatisticsHeader,
    StatisticsReply,
    TrainReply,
)
from shared.privacy.ledger import Ledger, Reservation
from tests.client.asking import DATA_SET, rows_of, site_file, used
from tests.client.resident.agents import RUN


@pytest.fixture(autouse=True)
def _cold(monkeypatch: pytest.MonkeyPatch) -> None:
    agent._loaded_samples.cache_clear()
    monkeypatch.setattr("client.preflight.assert_sound", lambda _: None)


@pytest.fixture
def answers(tmp_path: Path) -> Iterator[KeptAnswers]:
    kept = KeptAnswers(tmp_path / "answers", most_runs=2, most_rounds=2)
    yield kept
    kept.close()


def train(
    path: Path,
    answers: KeptAnswers,
    *,
    number: int = 1,
    attempt: int = 0,
    value: float = 0.0,
    run: RunConfig = RUN,
    run_id: str = "r",
) -> TrainReply | Refusal:
    header = RequestHeader(
        protocol_version=PROTOCOL_VERSION, run=run, run_id=run_id, round_number=number, attempt=attempt,
        planned_rounds=run.federation.rounds,
    )  # fmt: skip
    return answer_train(
        header,
        lambda shapes: {name: torch.full(shape, value) for name, shape in shapes.items()},
        site_file=path,
        answers=answers,
    )


def states(folder: Path) -> list[str]:
    return [row.state for row in rows_of(folder)]


def equal(first: TrainReply | Refusal, second: TrainReply | Refusal) -> bool:
    one, two = used(first), used(second)
    return one.header == two.header and all(torch.equal(one.update[name], two.update[name]) for name in one.update)


def cut_off(monkeypatch: pytest.MonkeyPatch, name: str = "train_alone") -> None:
    """As if the process ended there: nothing is caught that is no Exception."""

    def end(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(agent, name, end)


def test_an_identical_request_is_charged_once_and_gets_the_same_answer(tmp_path: Path, answers: KeptAnswers) -> None:
    path = site_file(tmp_path)
    first = train(path, answers)
    assert equal(first, train(path, answers))
    assert equal(first, train(path, answers, attempt=3))
    assert states(tmp_path) == ["released"]
    assert answers.num_sent_again == 2
    # and the run goes on as if it had been asked once
    assert all(isinstance(train(path, answers, number=number, attempt=3), TrainReply) for number in (2, 3))
    assert states(tmp_path) == ["released"] * 3


def test_identical_questions_for_counts_are_charged_once(tmp_path: Path, answers: KeptAnswers) -> None:
    path = site_file(tmp_path)

    def counted(attempt: int) -> StatisticsReply | Refusal:
        header = StatisticsHeader(
            protocol_version=PROTOCOL_VERSION, run=RUN, run_id="r", attempt=attempt, planned_rounds=3
        )
        return answer_statistics(header, site_file=path, answers=answers)

    first = counted(0)
    assert isinstance(first, StatisticsReply)
    assert first == counted(0) == counted(1)
    assert states(tmp_path) == ["released"]


def test_counts_that_were_cut_off_are_made_under_the_same_payment(
    tmp_path: Path, answers: KeptAnswers, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = site_file(tmp_path)
    header = StatisticsHeader(protocol_version=PROTOCOL_VERSION, run=RUN, run_id="r", planned_rounds=3)
    with monkeypatch.context() as patched:
        cut_off(patched, "noisy_counts")
        with pytest.raises(KeyboardInterrupt):
            answer_statistics(header, site_file=path, answers=answers)
    said = answer_statistics(header, site_file=path, answers=answers)
    assert isinstance(said, StatisticsReply)
    (row,) = rows_of(tmp_path)
    assert (row.state, row.use.noise_multiplier) == ("released", said.privacy.noise_multiplier)


@pytest.mark.parametrize(
    ("number", "attempt", "value"),
    [
        pytest.param(2, 1, 0.5, id="other weights"),
        pytest.param(2, 2, 0.5, id="other weights, a higher attempt"),
        pytest.param(1, 1, 0.5, id="a lower round, other weights"),
        pytest.param(1, 7, 0.5, id="a lower round, a higher attempt"),
        pytest.param(3, 0, 0.5, id="a lower attempt"),
    ],
)
def test_another_request_for_a_round_that_is_over_is_refused_by_name(
    number: int, attempt: int, value: float, tmp_path: Path, answers: KeptAnswers
) -> None:
    path = site_file(tmp_path)
    used(train(path, answers))
    used(train(path, answers, number=2, attempt=1))
    assert train(path, answers, number=number, attempt=attempt, value=value) == Refusal("replayed")
    assert states(tmp_path) == ["released"] * 2
    # what was answered is still said again, and the run goes on
    used(train(path, answers, attempt=1))
    used(train(path, answers, number=3, attempt=1))


def test_a_round_that_was_cut_off_is_trained_again_under_the_same_payment(
    tmp_path: Path, answers: KeptAnswers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the run's last round too, which the ledger counts already."""
    path = site_file(tmp_path)
    for number in (1, 2, 3):
        with monkeypatch.context() as patched:
            cut_off(patched)
            with pytest.raises(KeyboardInterrupt):
                train(path, answers, number=number)
        assert states(tmp_path) == ["released"] * (number - 1) + ["reserved"]
        said = used(train(path, answers, number=number)).header.privacy
        assert said is not None
        rows = rows_of(tmp_path)
        assert [row.state for row in rows] == ["released"] * number
        assert said.epsilon == Ledger(tmp_path / "ledger.sqlite").spent(
            DATA_SET, unit="record", delta=said.delta, accountant="pld"
        )


def test_a_round_is_begun_a_bounded_number_of_times_for_one_payment(
    tmp_path: Path, answers: KeptAnswers, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = site_file(tmp_path)
    with monkeypatch.context() as patched:
        cut_off(patched)
        for _ in range(MOST_TRIES):
            with pytest.raises(KeyboardInterrupt):
                train(path, answers)
    assert train(path, answers) == Refusal("refused")
    assert states(tmp_path) == ["reserved"]
    used(train(path, answers, attempt=1))
    assert states(tmp_path) == ["reserved", "released"]


def flip(path: Path) -> None:
    held = bytearray(path.read_bytes())
    held[-3] ^= 1
    path.write_bytes(held)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def empty(path: Path) -> None:
    path.write_bytes(b"")


HARM: list[Callable[[Path], None]] = [flip, cut, empty, Path.unlink]


@pytest.mark.parametrize("kind", ["answer", "note"])
@pytest.mark.parametrize("harm", HARM)
def test_what_was_released_is_never_trained_again_for_the_same_payment(
    harm: Callable[[Path], None], kind: str, tmp_path: Path, answers: KeptAnswers
) -> None:
    path = site_file(tmp_path)
    first = train(path, answers)
    harm(tmp_path / "answers" / "r" / f"000001.{kind}")
    assert train(path, answers) == Refusal("refused")
    assert states(tmp_path) == ["released"]
    # knowingly asked again it is another answer, paid for like the first
    second = train(path, answers, attempt=1)
    assert not equal(first, second)
    assert states(tmp_path) == ["released"] * 2
    assert equal(second, train(path, answers, attempt=2))


def test_a_row_that_was_given_back_pays_for_nothing(
    tmp_path: Path, answers: KeptAnswers, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = site_file(tmp_path)
    with monkeypatch.context() as patched:
        cut_off(patched)
        with pytest.raises(KeyboardInterrupt):
            train(path, answers)
    ledger = Ledger(tmp_path / "ledger.sqlite")
    assert (answers.folder / "r" / "000001.note").is_file()
    (row,) = ledger.rows(DATA_SET)
    ledger.void(Reservation(row.id, DATA_SET, "r", 1, 0, row.use, 0.0))
    assert train(path, answers) == Refusal("refused")
    assert states(tmp_path) == ["void"]


def test_an_answer_whose_payment_was_given_back_is_not_sent(
    tmp_path: Path, answers: KeptAnswers, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = site_file(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(Ledger, "release", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train(path, answers)
    assert (answers.folder / "r" / "000001.answer").is_file()
    ledger = Ledger(tmp_path / "ledger.sqlite")
    (row,) = ledger.rows(DATA_SET)
    ledger.void(Reservation(row.id, DATA_SET, "r", 1, 0, row.use, 0.0))
    assert train(path, answers) == Refusal("refused")
    assert states(tmp_path) == ["void"]


def test_another_request_is_not_trained_under_the_payment_of_one_that_was_cut_off(
    tmp_path: Path, answers: KeptAnswers, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = site_file(tmp_path)
    with monkeypatch.context() as patched:
        cut_off(patched)
        with pytest.raises(KeyboardInterrupt):
            train(path, answers)
    assert train(path, answers, value=1.0) == Refusal("refused")
    assert isinstance(train(path, answers, value=1.0, attempt=1), TrainReply)
    assert states(tmp_path) == ["reserved", "released"]


def test_a_reservation_pays_for_nothing_but_what_it_was_made_for(
    tmp_path: Path, answers: KeptAnswers, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = site_file(tmp_path)
    with monkeypatch.context() as patched:
        cut_off(patched)
        with pytest.raises(KeyboardInterrupt):
            train(path, answers)
    real = agent.plan_of

    def noisier(*given: object, **named: object) -> object:
        plan = real(*given, **named)  # type: ignore[arg-type]
        return replace(plan, noise_multiplier=plan.noise_multiplier / 2)

    monkeypatch.setattr(agent, "plan_of", noisier)
    assert train(path, answers) == Refusal("refused")
    assert states(tmp_path) == ["reserved"]


def test_a_round_that_failed_is_not_trained_again_for_the_same_payment(
    tmp_path: Path, answers: KeptAnswers, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = site_file(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(agent, "train_round", lambda *_, **__: 1 / 0)
        assert train(path, answers) == Refusal("internal")
    assert train(path, answers) == Refusal("refused")
    assert states(tmp_path) == ["reserved"]
    used(train(path, answers, attempt=1))
    assert states(tmp_path) == ["reserved", "released"]


def test_what_was_given_back_leaves_no_note(tmp_path: Path, answers: KeptAnswers) -> None:
    """Forgotten before it is given back, so that a crash between the two pays for nothing."""
    path, manifest = site_file(tmp_path), tmp_path / "data" / "metadata.jsonl"
    sound = manifest.read_text(encoding="utf-8")
    manifest.write_text('{"label": "joy"}\n', encoding="utf-8")
    assert train(path, answers) == Refusal("manifest-invalid")
    assert states(tmp_path) == ["void"]
    assert [each.name for each in (tmp_path / "answers" / "r").iterdir()] == []
    manifest.write_text(sound, encoding="utf-8")
    used(train(path, answers, attempt=1))
    assert states(tmp_path) == ["void", "released"]


def test_an_answer_that_cannot_be_kept_is_not_sent(
    tmp_path: Path, answers: KeptAnswers, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A full disk: the owner makes room, and the same request is answered under the payment it has."""
    path = site_file(tmp_path)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("client.resident.answers.as_file", full)
        assert train(path, answers) == Refusal("ledger-invalid")
    assert f"{tmp_path / 'answers'}: cannot be written: No space left on device" in caplog.text
    assert states(tmp_path) == ["reserved"]
    used(train(path, answers))
    assert states(tmp_path) == ["released"]


def test_what_is_kept_is_the_owners_alone_to_read(tmp_path: Path, answers: KeptAnswers) -> None:
    """Whatever the umask is: in unit "site" an update is clipped and not noised."""
    train(site_file(tmp_path), answers)
    kept = [answers.folder, *answers.folder.rglob("*")]
    assert {each.name for each in kept} >= {"answers", "r", "000001.note", "000001.answer"}
    for each in kept:
        if each.name != "lock":
            assert stat.S_IMODE(each.stat().st_mode) & 0o077 == 0, each


def test_the_last_rounds_of_the_last_runs_are_kept(tmp_path: Path, answers: KeptAnswers) -> None:
    path = site_file(tmp_path, epsilon=50.0)
    for run_id in ("a", "b", "c"):
        for number in (1, 2, 3):
            used(train(path, answers, number=number, run_id=run_id))
    held = {str(each.relative_to(answers.folder)) for each in answers.folder.glob("*/*")}
    assert held == {f"{run}/00000{number}.{kind}" for run in "bc" for number in (2, 3) for kind in ("note", "answer")}
    assert answers.num_bytes() > 0


def test_two_agents_cannot_keep_answers_in_one_folder(tmp_path: Path, answers: KeptAnswers) -> None:
    with pytest.raises(ConfigError, match="another agent uses"):
        KeptAnswers(tmp_path / "answers", most_runs=1, most_rounds=1)
