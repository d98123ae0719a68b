"""Noisy counts: what one unit can move, the scale of the noise, what they cost, and that nothing is read unpaid."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from client import agent
from client.statistics import exact_counts, noisy_counts
from shared.batch import Samples
from shared.config import NoiseKind, RunConfig, Unit
from shared.messages import Refusal, StatisticsReply
from shared.privacy.accountant import MechanismUse, spent_epsilon
from shared.privacy.noise import reproducible_source, secret_source
from shared.schema import DataSchema
from shared.targets import count_names, most_counts_of_a_row
from tests.client.asking import ask, ask_counts, rewrite_subjects, rows_of, site_file, used
from tests.tiny import PRIVACY, tiny_config

CLASSES = 3
ROWS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, CLASSES - 1)), max_size=30)
NAN = math.nan
MANY: dict[str, object] = {"task": "multi-label", "labels": ("war", "love")}
SEVERAL: dict[str, object] = {
    "task": "several",
    "tasks": {
        "mood": {"kind": "single-label", "labels": ("a", "b", "c")},
        "topics": {"kind": "multi-label", "labels": ("war", "love")},
        "valence": {"kind": "rating", "rating_range": (-1, 1)},
    },
}
UNITS: list[Unit] = ["record", "subject"]


@pytest.fixture(autouse=True)
def _cold(monkeypatch: pytest.MonkeyPatch) -> None:
    agent._loaded_samples.cache_clear()
    monkeypatch.setattr("client.preflight.assert_sound", lambda _: None)


def samples_of(rows: Sequence[tuple[int, int]]) -> Samples:
    """Rows of (subject, class)."""
    return Samples(
        inputs={},
        present=torch.ones(len(rows), 1, dtype=torch.bool),
        targets=torch.tensor([label for _, label in rows], dtype=torch.int64),
        subjects=tuple(str(subject) for subject, _ in rows),
        groups={},
    )


def schema_of(num_classes: int = CLASSES) -> DataSchema:
    """Of so many labels; one of them: a rating."""
    if num_classes == 1:
        return asking({"task": "rating", "rating_range": (0, CLASSES)})
    return asking({"task": "single-label", "labels": tuple(f"label {number}" for number in range(num_classes))})


def asking(task: Mapping[str, object]) -> DataSchema:
    return DataSchema.model_validate({**task, "modalities": {"text": {"kind": "text"}}})


def answering(rows: Sequence[tuple[int, Sequence[float]]]) -> Samples:
    """Rows of (subject, numbers of their answers)."""
    plain = samples_of([(subject, 0) for subject, _ in rows])
    return dataclasses.replace(plain, targets=torch.tensor([list(answers) for _, answers in rows]))


def counting(private_run: bool = True, *, noise_multiplier: float = 2.0, **changes: object) -> RunConfig:
    return tiny_config(private=private_run, statistics={"noise_multiplier": noise_multiplier}, **changes)


def answered(reply: StatisticsReply | Refusal) -> StatisticsReply:
    assert isinstance(reply, StatisticsReply), reply
    return reply


@given(rows=ROWS, subject=st.integers(0, 4), grid=st.none() | st.just(2.0**-20))
def test_one_unit_moves_the_counts_by_at_most_one(
    rows: list[tuple[int, int]], subject: int, grid: float | None
) -> None:
    """Whatever the classes of the others and its own are; all rows of a subject, or one record."""
    for num_classes in (CLASSES, 1):
        assert_bounded(
            samples_of(rows),
            samples_of([row for row in rows if row[0] != subject]),
            samples_of(rows[1:]),
            schema=schema_of(num_classes),
            grid=grid,
        )


ANSWERS = st.tuples(
    st.sampled_from([0.0, 1.0, 2.0, NAN]),
    st.sampled_from([(0.0, 0.0), (0.0, 1.0), (1.0, 1.0), (NAN, NAN)]),
    st.sampled_from([-1.0, 0.25, NAN]),
)


@given(
    rows=st.lists(st.tuples(st.integers(0, 3), ANSWERS), min_size=1, max_size=20),
    subject=st.integers(0, 3),
    grid=st.none() | st.just(2.0**-20),
)
def test_one_unit_moves_the_counts_of_many_answers_by_at_most_one(
    rows: list[tuple[int, tuple[float, tuple[float, float], float]]], subject: int, grid: float | None
) -> None:
    """Of several tasks, one of them with many labels; and of that one alone, whose labels a row may all have."""
    for schema, columns in (
        (asking(SEVERAL), slice(None)),
        (asking(MANY), slice(1, 3)),
    ):
        told = [(who, [first, *many, last][columns]) for who, (first, many, last) in rows]
        told = [(who, numbers) for who, numbers in told if schema.task == "several" or not math.isnan(numbers[0])]
        others = [row for row in told if row[0] != subject]
        if others and len(told) > 1:
            assert_bounded(answering(told), answering(others), answering(told[1:]), schema=schema, grid=grid)


def assert_bounded(
    whole: Samples, without_subject: Samples, without_record: Samples, *, schema: DataSchema, grid: float | None
) -> None:
    most = 1 + (math.sqrt(len(count_names(schema))) / 2 * grid if grid else 1e-12)
    for unit, fewer in zip(UNITS, (without_record, without_subject), strict=True):
        counts = [exact_counts(each, unit=unit, schema=schema, grid=grid) for each in (whole, fewer)]
        assert (counts[0] - counts[1]).norm() <= most


def test_a_record_with_every_answer_moves_the_counts_by_exactly_one() -> None:
    """So the noise hides no less than it is paid for, and no more."""
    for schema, answers in (
        (asking(MANY), [1.0, 1.0]),
        (asking(SEVERAL), [2.0, 1.0, 1.0, 0.5]),
    ):
        counts = exact_counts(answering([(0, answers)]), unit="record", schema=schema)
        assert float(counts.norm()) == pytest.approx(1)


def test_counts_are_of_records_or_of_subjects() -> None:
    rows = [(0, 0), (0, 0), (0, 1), (0, 1), (1, 2), (1, 2), (2, 2)]
    three, one = schema_of(), schema_of(1)
    assert exact_counts(samples_of(rows), unit="record", schema=three).tolist() == [2, 2, 3]
    assert exact_counts(samples_of(rows), unit="subject", schema=three).tolist() == [0.5, 0.5, 2]
    assert exact_counts(samples_of(rows), unit="record", schema=one).tolist() == [7]
    assert exact_counts(samples_of(rows), unit="subject", schema=one).tolist() == [3]
    assert exact_counts(samples_of([]), unit="subject", schema=three).tolist() == [0, 0, 0]


def test_counts_of_many_answers_are_of_labels_and_of_given_ratings() -> None:
    """Times the root of how many of them a row can be in, which is what the report shows."""
    schema = asking(SEVERAL)
    assert count_names(schema) == ("mood.a", "mood.b", "mood.c", "topics.war", "topics.love", "valence")
    rows = [(0, [0, 1, 1, 0.5]), (0, [2, NAN, NAN, -0.5]), (1, [NAN, 0, 1, NAN]), (2, [2, 0, 0, NAN])]
    samples, root = answering(rows), math.sqrt(most_counts_of_a_row(schema))
    assert root == 2
    assert (exact_counts(samples, unit="record", schema=schema) * root).tolist() == [1, 0, 2, 1, 2, 2]
    assert (exact_counts(samples, unit="subject", schema=schema) * root).tolist() == [0.5, 0, 1.5, 0.5, 1.5, 1]


@pytest.mark.parametrize("kind", ["float64", "float32", "discrete"])
@pytest.mark.parametrize("unit", UNITS)
def test_noise_of_the_counts_has_the_promised_scale(kind: NoiseKind, unit: Unit) -> None:
    """Chi-square on 20,000 counts, two-sided; a false alarm once in a million, a scale 5 % off never passes."""
    num, std, source = 20_000, 1.7, reproducible_source(7, purpose=f"{kind}/{unit}")
    samples = samples_of([(0, 0), (0, 1), (1, 1)])
    schema = schema_of(num)
    counts = noisy_counts(samples, unit=unit, schema=schema, noise_multiplier=std, kind=kind, source=source)
    noise = torch.tensor(counts, dtype=torch.float64) - exact_counts(samples, unit=unit, schema=schema)

    def is_plausible(scale: float) -> bool:
        low, high = stats.chi2.ppf([5e-7, 1 - 5e-7], df=num)
        return bool(low <= float(noise.square().sum()) / scale**2 <= high)

    # whole numbers are widened by their rounding: by 70 of 2^20 grid widths, for 20,000 counts
    assert is_plausible(std)
    assert not is_plausible(std * 1.05)
    assert not is_plausible(std / 1.05)
    assert abs(float(noise.mean())) < 5 * std / math.sqrt(num)


def test_whole_numbers_stay_on_their_grid() -> None:
    samples = samples_of([(0, 0), (0, 1), (0, 1), (1, 2)])
    counts = noisy_counts(
        samples, unit="subject", schema=schema_of(), noise_multiplier=1.3, kind="discrete", source=secret_source()
    )
    assert all((count * 2**20).is_integer() for count in counts)


def test_two_answers_have_different_noise(tmp_path: Path) -> None:
    replies = []
    for which in ("first", "second"):
        (tmp_path / which).mkdir()
        replies.append(answered(ask_counts(site_file(tmp_path / which), counting())).counts)
    assert all(first != second for first, second in zip(*replies, strict=True))


def test_counts_are_paid_for_before_data_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, seen = site_file(tmp_path), []

    def load(*_: object, **__: object) -> None:
        seen.append(rows_of(tmp_path))
        raise RuntimeError("the disk fails here")

    monkeypatch.setattr(agent, "load_samples", load)
    assert ask_counts(path, counting()) == Refusal("internal")
    ((row,),) = seen
    assert (row.round_number, row.mechanism, row.state, row.use) == (0, "counts", "reserved", MechanismUse(2.0, 1.0, 1))
    assert [row.state for row in rows_of(tmp_path)] == ["reserved"]


def test_the_answer_says_what_it_cost(tmp_path: Path) -> None:
    reply = answered(ask_counts(site_file(tmp_path, epsilon=9.0), counting()))
    said = reply.privacy
    assert len(reply.counts) == 3
    assert (said.clip_norm, said.noise_multiplier, said.sample_rate, said.steps_per_round) == (1.0, 2.0, 1.0, 1)
    assert said.epsilon == spent_epsilon([MechanismUse(2.0, 1.0, 1)], delta=1e-3, accountant="pld")
    assert (said.cap_epsilon, said.epsilon_before, said.unit) == (9.0, 0.0, "record")
    assert [row.state for row in rows_of(tmp_path)] == ["released"]


def test_counts_and_rounds_together_cost_what_the_run_asked(tmp_path: Path) -> None:
    path, run = site_file(tmp_path), counting()
    answered(ask_counts(path, run))
    replies = [used(ask(path, run, number=number)).header.privacy for number in (1, 2, 3)]
    last = replies[-1]
    assert last is not None
    rounds = MechanismUse(last.noise_multiplier, last.sample_rate, 3 * last.steps_per_round)
    assert last.epsilon == spent_epsilon([MechanismUse(2.0, 1.0, 1), rounds], delta=1e-3, accountant="pld")
    assert 7.9 < last.epsilon <= 8
    # whether or not a site was asked, its rounds are calibrated alike
    (tmp_path / "other").mkdir()
    unasked = used(ask(site_file(tmp_path / "other"), run)).header.privacy
    assert unasked is not None
    assert unasked.noise_multiplier == last.noise_multiplier


def test_counts_asked_twice_are_paid_twice_or_refused(tmp_path: Path) -> None:
    path, run = site_file(tmp_path, epsilon=50.0), counting()
    answered(ask_counts(path, run))
    assert ask_counts(path, run) == Refusal("refused")
    answered(ask_counts(path, run, attempt=1))
    replies = [used(ask(path, run, number=number)).header.privacy for number in (1, 2, 3)]
    # both are within the run's epsilon, not only within the owner's
    assert all(reply is not None and reply.epsilon <= 8 for reply in replies)
    dear = counting(noise_multiplier=0.5)
    answered(ask_counts(path, dear, run_id="s"))
    assert ask_counts(path, dear, run_id="s", attempt=1) == Refusal("refused")
    assert len(rows_of(tmp_path)) == 6


def test_counts_are_refused_once_rounds_have_begun(tmp_path: Path) -> None:
    path, run = site_file(tmp_path, epsilon=50.0), counting()
    used(ask(path, run))
    assert ask_counts(path, run) == Refusal("refused")
    assert len(rows_of(tmp_path)) == 1


def test_cheap_words_after_dear_counts_do_not_refill_the_run(tmp_path: Path) -> None:
    """What the counts cost is what the ledger says, not what the run says of them later."""
    path = site_file(tmp_path, epsilon=50.0)
    answered(ask_counts(path, counting(noise_multiplier=1.0)))
    last = [used(ask(path, counting(noise_multiplier=1e5), number=number)).header.privacy for number in (1, 2, 3)][-1]
    assert last is not None
    assert 7.9 < last.epsilon <= 8


@pytest.mark.parametrize(
    "run",
    [
        tiny_config(private=True),
        counting(privacy={**PRIVACY, "unit": "subject"}),
        counting(noise_multiplier=0.3, privacy={**PRIVACY, "epsilon": 1.0}),
    ],
    ids=["no statistics in the run", "a unit that the owner does not count", "no budget"],
)
def test_nothing_is_read_or_charged_for_counts_that_are_refused(
    run: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = site_file(tmp_path)
    monkeypatch.setattr(agent, "load_samples", lambda *_, **__: pytest.fail("data was read"))
    assert ask_counts(path, run) == Refusal("refused")
    assert not (tmp_path / "ledger.sqlite").exists() or rows_of(tmp_path) == ()


def test_the_owners_floor_raises_the_noise_of_counts(tmp_path: Path) -> None:
    said = answered(ask_counts(site_file(tmp_path, least_noise_multiplier=3.5), counting())).privacy
    assert said.noise_multiplier == 3.5
    assert rows_of(tmp_path)[0].use == MechanismUse(3.5, 1.0, 1)


def test_a_site_that_protects_subjects_counts_subjects(tmp_path: Path) -> None:
    """Forty rows about eight people: noise of 0.3 hides no difference between 40 and 8."""
    path = site_file(tmp_path, epsilon=500.0, delta=1e-3, unit="subject", nominal_subjects=8, reproducible_noise=True)
    rewrite_subjects(tmp_path, num=8)
    run = counting(noise_multiplier=0.3, privacy={**PRIVACY, "epsilon": 500.0})
    reply = answered(ask_counts(path, run))
    assert 4 < sum(reply.counts) < 12
    assert (reply.privacy.unit, rows_of(tmp_path)[0].unit) == ("subject", "subject")
