"""Statistics: noisy counts of a site's records or subjects, the only counts that ever leave it.

in        the site's Samples, once agent.py has paid for the answer in the ledger
out       one noisy count for each class, or one for a rating task
relies on shared/privacy/noise.py; the cost is what plan.py's counts_use says
"""

import torch
from jaxtyping import Float64
from torch import Tensor

from shared.batch import Samples
from shared.config import NoiseKind, Unit
from shared.privacy.mechanism import GRIDS_PER_NORM, whole_number_sensitivity
from shared.privacy.noise import RandomSource

GRID = 1 / GRIDS_PER_NORM
"""noise on whole numbers: counts are whole numbers of these"""


def noisy_counts(
    samples: Samples,
    *,
    unit: Unit,
    num_classes: int,
    noise_multiplier: float,
    kind: NoiseKind,
    source: RandomSource,
) -> tuple[float, ...]:
    """How many records, or subjects, there are of each class, with noise; below zero or between whole numbers too.

    Promise: one unit more or less moves the exact counts by at most 1 in L2 norm, and each has independent Gaussian
    noise of standard deviation `noise_multiplier`: MechanismUse(noise_multiplier, 1.0, 1).
    Void if: the ledger was not charged before, or `source` can be guessed.

    Args:
        unit: a record counts 1 in its class; a subject's records share 1 between them.
        num_classes: 1 for a rating task, whose classes are one.
        kind: "discrete": exact whole numbers of 2^-20 with discrete Gaussian noise, scaled back.
    """
    if kind == "discrete":
        sensitivity = whole_number_sensitivity(clip_norm=1.0, grid=GRID, num_parameters=num_classes)
        noise = source.discrete_normal((num_classes,), std=noise_multiplier * sensitivity).to(torch.float64)
        noisy = (exact_counts(samples, unit=unit, num_classes=num_classes, grid=GRID) / GRID).round() + noise
        return tuple((noisy * GRID).tolist())
    # PRIVACY: noise of the scale the accountant was told. test_noise_of_the_counts_has_the_promised_scale
    noise = source.normal((num_classes,), std=noise_multiplier, kind=kind).to(torch.float64)
    return tuple((exact_counts(samples, unit=unit, num_classes=num_classes) + noise).tolist())


def exact_counts(samples: Samples, *, unit: Unit, num_classes: int, grid: float | None = None) -> Float64[Tensor, "K"]:
    """The counts before noise, for noisy_counts alone.

    Args:
        unit: "record" or "subject".
        num_classes: 1 puts all rows into one class.
        grid: each unit's share of each class is rounded to a multiple of it.
    """
    classes = samples.targets if num_classes > 1 else torch.zeros(len(samples), dtype=torch.int64)
    owners = torch.arange(len(samples))
    if unit == "subject":
        for number, rows in enumerate(samples.rows_of_subjects):
            owners[rows] = number
    pairs, amounts = torch.unique(owners * num_classes + classes, return_counts=True)
    # PRIVACY: a subject's classes share 1 between them, so that its part has an L2 norm of at most 1.
    # test_one_unit_moves_the_counts_by_at_most_one
    shares = amounts.double() / torch.bincount(owners)[pairs // num_classes]
    if grid is not None:
        shares = (shares / grid).round() * grid
    return torch.zeros(num_classes, dtype=torch.float64).index_add_(0, pairs % num_classes, shares)
