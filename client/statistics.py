"""Statistics: noisy counts of a site's records or subjects, the only counts that ever leave it.

in        the site's Samples, once agent.py has paid for the answer in the ledger
out       a noisy count for each name of count_names: of each label, one for a rating
relies on shared/privacy/noise.py; the cost is what plan.py's counts_use says
"""

import math

import torch
from jaxtyping import Float64
from torch import Tensor

from shared.batch import Samples
from shared.config import NoiseKind, Unit
from shared.privacy.mechanism import GRIDS_PER_NORM, whole_number_sensitivity
from shared.privacy.noise import RandomSource
from shared.schema import DataSchema
from shared.targets import count_names, counts_of_rows, most_counts_of_a_row

GRID = 1 / GRIDS_PER_NORM
"""noise on whole numbers: counts are whole numbers of these"""


def noisy_counts(
    samples: Samples,
    *,
    unit: Unit,
    schema: DataSchema,
    noise_multiplier: float,
    kind: NoiseKind,
    source: RandomSource,
) -> tuple[float, ...]:
    """How many records, or subjects, have each answer, with noise; below zero or between whole numbers too.

    Promise: one unit more or less moves the exact counts by at most 1 in L2 norm, and each has independent Gaussian
    noise of standard deviation `noise_multiplier`: MechanismUse(noise_multiplier, 1.0, 1).
    Void if: the ledger was not charged before, or `source` can be guessed.

    Args:
        unit: a record counts as exact_counts says; a subject counts as the mean of its records.
        schema: of the run; the counts are in the order of `count_names`.
        kind: "discrete": exact whole numbers of 2^-20 with discrete Gaussian noise, scaled back.
    """
    num = len(count_names(schema))
    if kind == "discrete":
        sensitivity = whole_number_sensitivity(clip_norm=1.0, grid=GRID, num_parameters=num)
        noise = source.discrete_normal((num,), std=noise_multiplier * sensitivity).to(torch.float64)
        noisy = (exact_counts(samples, unit=unit, schema=schema, grid=GRID) / GRID).round() + noise
        return tuple((noisy * GRID).tolist())
    # PRIVACY: noise of the scale the accountant was told. test_noise_of_the_counts_has_the_promised_scale
    noise = source.normal((num,), std=noise_multiplier, kind=kind).to(torch.float64)
    return tuple((exact_counts(samples, unit=unit, schema=schema) + noise).tolist())


def exact_counts(
    samples: Samples, *, unit: Unit, schema: DataSchema, grid: float | None = None
) -> Float64[Tensor, "K"]:
    """The counts before noise, for noisy_counts alone.

    A record is in one count of each task, and of a multi-label task in that of every label it has: in M at most. In
    each of them it counts 1 / sqrt(M), which is 1 where there is one task of one answer.

    Args:
        unit: "record" or "subject".
        grid: each unit's part in each count is rounded to a multiple of it.
    """
    num = len(count_names(schema))
    rows, places = counts_of_rows(samples.targets, schema=schema)
    owners = torch.arange(len(samples))
    if unit == "subject":
        for number, members in enumerate(samples.rows_of_subjects):
            owners[members] = number
    pairs, amounts = torch.unique(owners[rows] * num + places, return_counts=True)
    # PRIVACY: M parts of 1 / sqrt(M) have an L2 norm of 1, and so has their mean over a subject's records, at most.
    # test_one_unit_moves_the_counts_by_at_most_one
    shares = amounts.double() / torch.bincount(owners)[pairs // num] / math.sqrt(most_counts_of_a_row(schema))
    if grid is not None:
        shares = (shares / grid).round() * grid
    return torch.zeros(num, dtype=torch.float64).index_add_(0, pairs % num, shares)
