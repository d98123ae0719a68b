"""Sampling: which units enter a step, each by a coin of its own, and which of a unit's records.

in        the samples at hand, the public sampling rate, a source of random numbers
out       row numbers, unit by unit, read by private_training.py
relies on shared/privacy/noise.py: who can foretell the source knows who was sampled
"""

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from shared.batch import Samples
from shared.config import Unit
from shared.errors import PrivacyError
from shared.privacy.noise import RandomSource


def poisson_batch(num_units: int, *, sample_rate: float, source: RandomSource) -> Int[Tensor, "B"]:
    """Units of one step: each of `num_units` independently with probability `sample_rate`; often none.

    Source: Mironov et al. 2019, arXiv:1908.10530, section 3: the sampling that the accountant assumes. Shuffled
    batches of a fixed size would be another mechanism with another, larger epsilon.
    """
    # PRIVACY: one coin a unit, in float64 so that its chance is the stated one to 1e-16.
    # test_every_record_enters_by_a_coin_of_its_own
    # numpy's calls take half the time of torch's, which is most of what a small site pays for a draw
    return torch.from_numpy((source.uniform(num_units).numpy() < sample_rate).nonzero()[0])


def draw_coins(num_units: int, *, steps: int, sample_rate: float, source: RandomSource) -> Bool[Tensor, "S N"]:
    """Of several steps at once, which units enter each: what `poisson_batch` would draw step by step from the stream.

    Only where nothing else is drawn from `source` between the steps.
    """
    # PRIVACY: a coin of its own for every unit and step. test_coins_drawn_together_are_those_of_single_steps
    return torch.from_numpy((source.uniform(steps * num_units).numpy() < sample_rate).reshape(steps, num_units))


def draw_rows(
    samples: Samples, *, unit: Unit, sample_rate: float, records_per_unit: int, source: RandomSource
) -> Int[Tensor, "R"]:
    """Rows of one step, unit by unit: a Poisson sample of the units, and `records_per_unit` records of each.

    A subject with at least that many records gives different ones; with fewer, all of them in a random order, again
    and again until there are enough.

    Args:
        unit: "record" or "subject".
        records_per_unit: 1 where records are protected.

    Raises:
        PrivacyError: several records of a unit that is one record, or a unit that no site samples.
    """
    if unit == "record" and records_per_unit == 1:
        return poisson_batch(len(samples), sample_rate=sample_rate, source=source)
    if unit != "subject":
        raise PrivacyError(f'{records_per_unit} records of each {unit}; allowed: 1 with "record", any with "subject"')
    rows = samples.rows_of_subjects
    # PRIVACY: a subject has one coin, however many rows. test_every_subject_enters_by_a_coin_of_its_own
    chosen = [rows[number] for number in poisson_batch(len(rows), sample_rate=sample_rate, source=source).tolist()]
    return _some_of_each(chosen, num=records_per_unit, source=source)


def _some_of_each(rows: list[Tensor], *, num: int, source: RandomSource) -> Int[Tensor, "R"]:
    """`num` rows of each subject, in the order of the subjects."""
    if not rows:
        return torch.empty(0, dtype=torch.int64)
    sizes = torch.tensor([len(each) for each in rows])
    keys, owner = source.uniform(int(sizes.sum())), torch.repeat_interleave(sizes)
    by_key = keys.argsort()
    shuffled = torch.cat(rows)[by_key[owner[by_key].argsort(stable=True)]]
    starts = sizes.cumsum(0) - sizes
    return shuffled[(starts[:, None] + torch.arange(num) % sizes[:, None]).flatten()]
