"""Contributions: what each modality brings to the number by which a run is judged.

in        that number for the held-out part when its samples show only some of their modalities, and in resamples of it,
          from evaluation.py
out       Contributions, for records.py
relies on shapley.py; every subset is measured on the same samples, or the parts would not add up, and in resamples of
          the same people, or a difference of two of them would move more than it does

Two answers, because they differ where modalities say the same. Drop-one: how much worse the model is without this one
while it has all others; 0 for both of two that say the same. Shapley: what this one adds, averaged over all orders in
which modalities could come in; two that say the same share what they bring.

Every subset is measured on all samples of the part. A sample with none of the subset's modalities, and every sample for
the empty subset, gets what the model says when nothing is present: always the same answer. So a modality that few
samples have brings little, and the parts add up to the model's number less that of its constant answer.

Source: Shapley 1953; of the modalities of a model: Hu et al. 2022, arXiv:2205.00302, section 3.
"""

from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray

from server.bootstrap import Interval, interval_of
from server.records import Contribution, Contributions
from server.shapley import sampled_shapley_values, shapley_values

MOST_FOR_ALL_SUBSETS = 8
"""modalities up to which every subset is measured: 256 of eight"""
ORDERS = 64
"""drawn where there are more"""


def contributions_to(
    metric: str,
    *,
    measure: Callable[[tuple[str, ...]], NDArray[np.float64] | None],
    modalities: tuple[str, ...],
    is_error: bool,
    seed: int,
) -> Contributions | None:
    """What each modality brings to a metric; above 0 where it helps, whichever way the metric runs.

    Intervals are those of bootstrap.py: the middle 95 % of what the same model brings in resamples of the samples.

    Args:
        metric: its name.
        measure: the metric when samples show these modalities alone, and behind it the metric in each resample, NaN
            where it has none; None where it is not defined. No resamples: no intervals.
        modalities: all of the model's.
        is_error: lower is better.
        seed: of the orders, where they are drawn.

    Returns:
        None where there is one modality, or a subset for which the metric is not defined, as of a model that diverged.
    """
    num, sign = len(modalities), -1.0 if is_error else 1.0
    if num < 2:
        return None
    whole = 2**num - 1

    @cache
    def score(subset: int) -> NDArray[np.float64]:
        values = measure(tuple(name for place, name in enumerate(modalities) if subset >> place & 1))
        if values is None:
            raise _NotDefinedError
        return sign * values

    try:
        errors: list[float | None] = [None] * num
        if num <= MOST_FOR_ALL_SUBSETS:
            scores = torch.from_numpy(np.stack([score(subset) for subset in range(2**num)]))
            values: NDArray[np.float64] = shapley_values(scores, num_players=num).numpy()
        else:
            values, spread = sampled_shapley_values(score, num_players=num, orders=ORDERS, seed=seed)
            errors = spread[:, 0].tolist()
        missed = [score(whole) - score(whole & ~(1 << place)) for place in range(num)]
        brought = map(_contribution, values, missed, errors)
        return Contributions(
            metric=metric,
            everything=sign * float(score(whole)[0]),
            nothing=sign * float(score(0)[0]),
            orders=None if num <= MOST_FOR_ALL_SUBSETS else ORDERS,
            by_modality=dict(zip(modalities, brought, strict=True)),
        )
    except _NotDefinedError:
        return None


def _contribution(
    shapley: Float[np.ndarray, "R"], drop_one: Float[np.ndarray, "R"], standard_error: float | None
) -> Contribution:
    """What one modality brings, from its values and those of its resamples."""
    return Contribution(
        shapley=float(shapley[0]),
        standard_error=standard_error,
        drop_one=float(drop_one[0]),
        shapley_interval=_interval(shapley),
        drop_one_interval=_interval(drop_one),
    )


def _interval(values: Float[np.ndarray, "R"]) -> Interval | None:
    """Of a value and its resamples; it holds the value itself."""
    found = interval_of(values[1:]) if len(values) > 1 else None
    return None if found is None else (min(found[0], float(values[0])), max(found[1], float(values[0])))


class _NotDefinedError(Exception):
    """The metric is not defined for some subset."""
