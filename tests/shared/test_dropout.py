"""Tests of shared/model/dropout.py: what is dropped of a sample belongs to its key alone."""

import math

import pytest
import torch
from torch import Tensor, nn

from shared.batch import Batch
from shared.errors import ModelError
from shared.model.dropout import SampleDropout
from shared.model.sample_draws import KEYS, draws_keys, with_keys
from shared.privacy.noise import reproducible_source

NUMBERS = 1_000_000
# |share - chance| of so many fair draws passes 4.9 standard deviations once in a million tests
FALSE_ALARM_DEVIATIONS = 4.9


def keys(num: int) -> Tensor:
    return reproducible_source(1, purpose="test of dropout").integers(num)


def dropped_share(chance: float) -> float:
    left = SampleDropout(chance)(torch.ones(1000, NUMBERS // 1000), keys(1000))
    return float((left == 0).double().mean())


def is_share(measured: float, *, chance: float) -> bool:
    return abs(measured - chance) <= FALSE_ALARM_DEVIATIONS * math.sqrt(chance * (1 - chance) / NUMBERS)


@pytest.mark.parametrize("chance", [0.1, 0.5, 0.9])
def test_numbers_are_dropped_with_the_stated_chance(chance: float) -> None:
    measured = dropped_share(chance)

    assert is_share(measured, chance=chance)
    assert not is_share(measured, chance=chance + 0.01)


def test_what_is_left_grows_so_that_the_mean_stays() -> None:
    left = SampleDropout(0.2)(torch.full((4, 50), 2.0), keys(4))

    torch.testing.assert_close(torch.tensor(sorted(set(left.flatten().tolist()))), torch.tensor([0.0, 2.0 / 0.8]))


def test_a_sample_is_dropped_alike_alone_and_in_any_company() -> None:
    values, drawn, dropout = torch.randn(6, 3, 5), keys(6), SampleDropout(0.4)
    together = dropout(values, drawn)

    for row in range(6):
        torch.testing.assert_close(dropout(values[row : row + 1], drawn[row : row + 1])[0], together[row])
    assert len({tuple((row == 0).flatten().tolist()) for row in together}) == 6


def test_the_numbers_are_splitmix64s() -> None:
    """The first outputs for seed 0, as printed with the generators of the Java and Rust libraries."""
    for place, first_bits in enumerate([0xE220A8, 0x6E789E, 0x06C45D]):
        chance = first_bits / 2**24
        zero = torch.zeros(1, dtype=torch.int64)

        assert float(SampleDropout(chance)(torch.ones(1, 3), zero)[0, place]) > 0
        assert float(SampleDropout(chance + 2**-24)(torch.ones(1, 3), zero)[0, place]) == 0


def test_nothing_is_dropped_in_evaluation_or_by_a_chance_of_zero() -> None:
    values = torch.randn(3, 4)

    assert SampleDropout(0.5).eval()(values, None) is values
    assert SampleDropout(0.0)(values, None) is values


def test_training_without_keys_is_refused() -> None:
    with pytest.raises(ModelError, match="with_keys"):
        SampleDropout(0.5)(torch.ones(2, 3), None)


def test_keys_are_drawn_for_models_that_drop() -> None:
    assert draws_keys(nn.Sequential(nn.Linear(2, 2), SampleDropout(0.1)))
    assert not draws_keys(nn.Sequential(nn.Linear(2, 2), SampleDropout(0.0)))


def test_each_row_of_a_batch_has_a_key_of_its_own() -> None:
    batch = Batch(inputs={"x": torch.ones(5, 2)}, present=torch.ones(5, 1, dtype=torch.bool), targets=torch.zeros(5))

    keyed = with_keys(batch, source=reproducible_source(1, purpose="test of dropout"))

    assert len(set(keyed.inputs[KEYS].tolist())) == 5
    assert torch.equal(keyed.take(torch.tensor([3, 1])).inputs[KEYS], keyed.inputs[KEYS][[3, 1]])
