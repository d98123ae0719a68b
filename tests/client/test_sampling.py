"""Tests of client/sampling.py: Poisson batches, and generators that no seed gives back."""

import math

import torch
from scipy import stats

from client.sampling import poisson_batch
from shared.privacy.noise import reproducible_source, secret_source

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
