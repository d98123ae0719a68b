"""Tests of client/sampling.py: Poisson batches of records and of subjects, and which records a subject gives."""

import math
from dataclasses import replace

import pytest
import torch
from scipy import stats

from client.sampling import draw_coins, draw_rows, poisson_batch
from shared.batch import Samples
from shared.config import Unit
from shared.errors import PrivacyError
from shared.privacy.noise import reproducible_source, secret_source
from tests.client.toy import toy_samples

FALSE_ALARM = 1e-6


def inclusions(draw: object, *, rows: int, rate: float, batches: int) -> torch.Tensor:
    """[batches, rows] of 0 and 1."""
    source = reproducible_source(5, purpose="test")
    table = torch.zeros(batches, rows)
    for batch in range(batches):
        chosen = (
            poisson_batch(rows, sample_rate=rate, source=source)
            if draw == "poisson"
            else source.uniform(rows).argsort()[: round(rate * rows)]
        )
        table[batch, chosen] = 1.0
    return table


def is_poisson(table: torch.Tensor, *, rate: float) -> bool:
    """Inclusion rates, batch sizes and pairs are as independent coins of this chance would have them."""
    batches, rows = table.shape
    deviation = math.sqrt(rate * (1 - rate))
    rates = (table.mean(dim=0) - rate) * math.sqrt(batches) / deviation
    rates_fit = stats.chi2.sf(float(rates.square().sum()), rows) > FALSE_ALARM
    sizes = (table.sum(dim=1) - rate * rows) / (deviation * math.sqrt(rows))
    spread = float(sizes.square().sum())
    sizes_fit = FALSE_ALARM / 2 < stats.chi2.cdf(spread, batches) < 1 - FALSE_ALARM / 2
    centred = (table - rate) / deviation
    pairs = (centred.T @ centred / math.sqrt(batches))[torch.triu_indices(rows, rows, offset=1).unbind()]
    pairs_fit = stats.chi2.sf(float(pairs.square().sum()), len(pairs)) > FALSE_ALARM
    return bool(rates_fit and sizes_fit and pairs_fit)


def test_every_record_enters_by_a_coin_of_its_own() -> None:
    """Fails by chance three times in a million; rejects shuffled fixed-size batches and a rate 5 % off."""
    table = inclusions("poisson", rows=40, rate=0.3, batches=4000)

    assert is_poisson(table, rate=0.3)
    assert not is_poisson(table, rate=0.3 * 1.05)
    assert not is_poisson(table, rate=0.3 / 1.05)
    assert not is_poisson(inclusions("shuffled", rows=40, rate=0.3, batches=4000), rate=0.3)


def test_batch_sizes_are_binomial() -> None:
    """Goodness of fit over the whole distribution; fails by chance once in a million."""
    source = reproducible_source(6, purpose="test")
    sizes = [len(poisson_batch(12, sample_rate=0.25, source=source)) for _ in range(5000)]
    counts = torch.bincount(torch.tensor(sizes), minlength=13)
    expected = torch.tensor([stats.binom.pmf(size, 12, 0.25) for size in range(13)]) * 5000
    kept = expected > 5
    observed = [*counts[kept].tolist(), int(counts[~kept].sum())]
    wanted = [*expected[kept].tolist(), float(expected[~kept].sum())]

    assert stats.chisquare(observed, wanted, sum_check=False).pvalue > FALSE_ALARM


def test_rate_one_takes_all_rows_in_order_and_no_records_give_an_empty_batch() -> None:
    source = secret_source()

    assert poisson_batch(7, sample_rate=1.0, source=source).tolist() == list(range(7))
    assert poisson_batch(0, sample_rate=0.5, source=source).tolist() == []


@pytest.mark.parametrize(("units", "steps"), [(20, 5), (3, 1), (0, 4), (7, 0)])
def test_coins_drawn_together_are_those_of_single_steps(units: int, steps: int) -> None:
    """And the stream goes on from the same place."""
    together, apart = (reproducible_source(7, purpose="coins") for _ in range(2))
    coins = draw_coins(units, steps=steps, sample_rate=0.4, source=together)

    assert coins.shape == (steps, units)
    for step in coins:
        assert torch.equal(step.nonzero().flatten(), poisson_batch(units, sample_rate=0.4, source=apart))
    assert torch.equal(together.uniform(3), apart.uniform(3))


def samples_of(sizes: list[int]) -> Samples:
    """Subjects with so many rows each, the rows of all of them mixed."""
    subjects = [str(number) for number, size in enumerate(sizes) for _ in range(size)]
    order = torch.randperm(len(subjects), generator=torch.Generator().manual_seed(8)).tolist()
    return replace(toy_samples(len(subjects)), subjects=tuple(subjects[row] for row in order))


def subject_inclusions(draw: str, samples: Samples, *, rate: float, batches: int) -> torch.Tensor:
    """[batches, subjects] of 0 and 1."""
    source = reproducible_source(9, purpose="test")
    numbers = {subject: number for number, subject in enumerate(sorted(set(samples.subjects)))}
    of_row = torch.tensor([numbers[subject] for subject in samples.subjects])
    table = torch.zeros(batches, len(numbers))
    for batch in range(batches):
        if draw == "shuffled":
            table[batch, source.uniform(len(numbers)).argsort()[: round(rate * len(numbers))]] = 1.0
        elif draw == "by-record":  # as if each record had a coin
            table[batch, of_row[poisson_batch(len(of_row), sample_rate=rate, source=source)]] = 1.0
        else:
            rows = draw_rows(samples, unit="subject", sample_rate=rate, records_per_unit=1, source=source)
            assert len(set(of_row[rows].tolist())) == len(rows)
            table[batch, of_row[rows]] = 1.0
    return table


def test_every_subject_enters_by_a_coin_of_its_own() -> None:
    """Whatever its number of rows. Would fail for three keys in a million; rejects shuffled and record-weighted draws."""
    samples, rate = samples_of([1] * 10 + [2] * 10 + [20] * 5), 0.3
    table = subject_inclusions("subjects", samples, rate=rate, batches=3000)

    assert is_poisson(table, rate=rate)
    assert not is_poisson(table, rate=rate * 1.05)
    assert not is_poisson(table, rate=rate / 1.05)
    assert not is_poisson(subject_inclusions("shuffled", samples, rate=rate, batches=3000), rate=rate)
    assert not is_poisson(subject_inclusions("by-record", samples, rate=rate, batches=3000), rate=rate)


def drawn_of_one(size: int, *, num: int, batches: int) -> torch.Tensor:
    """[batches, num] places among the rows of a subject that has `size` of them, between two other subjects."""
    samples, source = samples_of([3, size, 4]), reproducible_source(10, purpose="test")
    places = {row: place for place, row in enumerate(r for r, s in enumerate(samples.subjects) if s == "1")}
    drawn = []
    for _ in range(batches):
        rows = draw_rows(samples, unit="subject", sample_rate=1.0, records_per_unit=num, source=source)
        drawn.append([places[row] for row in rows.tolist() if row in places])
    return torch.tensor(drawn)


def is_uniform(values: torch.Tensor, *, choices: int) -> bool:
    counts = torch.bincount(values.flatten(), minlength=choices)
    return bool(stats.chisquare(counts.tolist()).pvalue > FALSE_ALARM)


def test_the_record_of_a_subject_is_uniform_among_its_rows() -> None:
    """Would fail for one key in a million; rejects a first row drawn a third more often."""
    drawn = drawn_of_one(6, num=1, batches=4000)

    assert drawn.shape == (4000, 1)
    assert is_uniform(drawn, choices=6)
    assert not is_uniform(torch.cat([drawn.flatten(), torch.zeros(200, dtype=torch.int64)]), choices=6)


def test_several_records_of_a_subject_are_different_ones_and_every_choice_is_equally_likely() -> None:
    """Would fail for one key in a million."""
    drawn = drawn_of_one(5, num=2, batches=3000)

    assert (drawn[:, 0] != drawn[:, 1]).all()
    pairs = drawn[:, 0] * 4 + drawn[:, 1] - (drawn[:, 1] > drawn[:, 0]).long()
    assert is_uniform(pairs, choices=20)


def test_a_subject_with_too_few_records_gives_them_again_and_again() -> None:
    """Five of two: three of one and two of the other, either way equally often; one in a million keys would fail."""
    drawn = drawn_of_one(2, num=5, batches=1500)
    times = (drawn == 0).sum(dim=1)

    assert set(times.tolist()) == {2, 3}
    assert is_uniform(times - 2, choices=2)


def test_rows_come_unit_by_unit() -> None:
    samples, source = samples_of([3, 1, 7, 2]), reproducible_source(11, purpose="test")
    for _ in range(20):
        rows = draw_rows(samples, unit="subject", sample_rate=0.6, records_per_unit=4, source=source).reshape(-1, 4)
        owners = [{samples.subjects[row] for row in unit} for unit in rows.tolist()]

        assert all(len(owner) == 1 for owner in owners)
        assert len({next(iter(owner)) for owner in owners}) == len(owners)


def test_records_are_drawn_as_a_poisson_batch_is() -> None:
    samples = samples_of([3, 1, 7, 2])
    rows = draw_rows(
        samples, unit="record", sample_rate=0.5, records_per_unit=1, source=reproducible_source(1, purpose="x")
    )

    assert torch.equal(rows, poisson_batch(13, sample_rate=0.5, source=reproducible_source(1, purpose="x")))


def test_no_subjects_give_an_empty_batch() -> None:
    for sizes, rate in (([], 1.0), ([2, 3], 1e-12)):
        rows = draw_rows(
            samples_of(sizes), unit="subject", sample_rate=rate, records_per_unit=2, source=secret_source()
        )

        assert rows.tolist() == []
        assert rows.dtype == torch.int64


@pytest.mark.parametrize(("unit", "num"), [("record", 2), ("site", 1)])
def test_a_unit_that_cannot_be_drawn_is_refused(unit: Unit, num: int) -> None:
    with pytest.raises(PrivacyError, match="allowed"):
        draw_rows(samples_of([2]), unit=unit, sample_rate=0.5, records_per_unit=num, source=secret_source())


def test_drawing_leaves_torchs_generator_alone() -> None:
    before = torch.random.get_rng_state()
    draw_rows(samples_of([2, 5]), unit="subject", sample_rate=0.5, records_per_unit=3, source=secret_source())

    assert torch.equal(before, torch.random.get_rng_state())
