"""Tests of client/sampling.py: Poisson batches, and generators that no seed gives back."""

import math

import torch
from scipy import stats

from client.sampling import poisson_batch, reproducible_generator, secret_generator

FALSE_ALARM = 1e-6


def inclusions(draw: object, *, rows: int, rate: float, batches: int) -> torch.Tensor:
    """[batches, rows] of 0 and 1."""
    generator = reproducible_generator(5, purpose="test")
    table = torch.zeros(batches, rows)
    for batch in range(batches):
        chosen = (
            poisson_batch(rows, sample_rate=rate, generator=generator)
            if draw == "poisson"
            else torch.randperm(rows, generator=generator)[: round(rate * rows)]
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
    generator = reproducible_generator(6, purpose="test")
    sizes = [len(poisson_batch(12, sample_rate=0.25, generator=generator)) for _ in range(5000)]
    counts = torch.bincount(torch.tensor(sizes), minlength=13)
    expected = torch.tensor([stats.binom.pmf(size, 12, 0.25) for size in range(13)]) * 5000
    kept = expected > 5
    observed = [*counts[kept].tolist(), int(counts[~kept].sum())]
    wanted = [*expected[kept].tolist(), float(expected[~kept].sum())]

    assert stats.chisquare(observed, wanted, sum_check=False).pvalue > FALSE_ALARM


def test_rate_one_takes_all_rows_in_order_and_no_records_give_an_empty_batch() -> None:
    generator = secret_generator()

    assert poisson_batch(7, sample_rate=1.0, generator=generator).tolist() == list(range(7))
    assert poisson_batch(0, sample_rate=0.5, generator=generator).tolist() == []


def test_secret_generators_differ_beyond_their_seed() -> None:
    first, second = secret_generator(), secret_generator()

    assert first.initial_seed() == second.initial_seed()  # the seed says nothing of the state
    assert not torch.equal(torch.randn(100, generator=first), torch.randn(100, generator=second))
    words = [generator.get_state().numpy().tobytes() for generator in (secret_generator(), secret_generator())]
    same = sum(a == b for a, b in zip(*(word[24 : 24 + 8 * 624] for word in words), strict=True))
    assert same < 624 * 4 + 624 * 4 * 0.02  # of each word's 8 bytes, 4 are always zero, and others by chance


def test_a_torch_seed_would_have_been_32_bits() -> None:
    """Why secret_generator fills the state: should torch ever keep all 64 bits, this says so."""
    first, second = torch.Generator().manual_seed(7), torch.Generator().manual_seed(7 + (1 << 32))

    assert torch.equal(torch.randn(100, generator=first), torch.randn(100, generator=second))


def test_secret_noise_is_normal_and_coins_are_uniform() -> None:
    """A wrong state layout would give patterns; fails by chance twice in a million."""
    generator = secret_generator()

    assert stats.kstest(torch.randn(50_000, generator=generator).double().numpy(), "norm").pvalue > FALSE_ALARM
    assert stats.kstest(torch.rand(50_000, generator=generator).double().numpy(), "uniform").pvalue > FALSE_ALARM


def test_reproducible_generators_follow_seed_and_purpose() -> None:
    def draw(seed: int, purpose: str) -> torch.Tensor:
        return torch.randn(10, generator=reproducible_generator(seed, purpose=purpose))

    assert torch.equal(draw(1, "noise"), draw(1, "noise"))
    assert not torch.equal(draw(1, "noise"), draw(1, "sampling"))
    assert not torch.equal(draw(1, "noise"), draw(2, "noise"))


def test_no_generator_touches_the_global_one() -> None:
    before = torch.random.get_rng_state()
    poisson_batch(100, sample_rate=0.5, generator=secret_generator())
    reproducible_generator(3, purpose="test")

    assert torch.equal(before, torch.random.get_rng_state())
