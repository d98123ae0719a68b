"""Contributions: what each modality brings to the number by which a run is judged.

in        that number for the held-out part when its samples show only some of their modalities, from evaluation.py
out       Contributions, for records.py
relies on shapley.py; every subset is measured on the same samples, or the parts would not add up

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

import torch

from server.records import Contribution, Contributions
from server.shapley import sampled_shapley_values, shapley_values

MOST_FOR_ALL_SUBSETS = 8
"""modalities up to which every subset is measured: 256 of eight"""
ORDERS = 64
"""drawn where there are more"""


def contributions_to(
    metric: str,
    *,
    measure: Callable[[tuple[str, ...]], float | None],
    modalities: tuple[str, ...],
    is_error: bool,
    seed: int,
) -> Contributions | None:
    """What each modality brings to a metric; above 0 where it helps, whichever way the metric runs.

    Args:
        metric: its name.
        measure: the metric when samples show these modalities alone; None where it is not defined.
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
    def score(subset: int) -> float:
        value = measure(tuple(name for place, name in enumerate(modalities) if subset >> place & 1))
        if value is None:
            raise _NotDefinedError
        return sign * value

    try:
        errors: list[float | None] = [None] * num
        if num <= MOST_FOR_ALL_SUBSETS:
            scores = torch.tensor([[score(subset)] for subset in range(2**num)], dtype=torch.float64)
            values: list[float] = shapley_values(scores, num_players=num)[:, 0].tolist()
        else:
            found, spread = sampled_shapley_values(score, num_players=num, orders=ORDERS, seed=seed)
            values, errors = found.tolist(), spread.tolist()
        return Contributions(
            metric=metric,
            everything=sign * score(whole),
            nothing=sign * score(0),
            orders=None if num <= MOST_FOR_ALL_SUBSETS else ORDERS,
            by_modality={
                name: Contribution(
                    shapley=values[place],
                    standard_error=errors[place],
                    drop_one=score(whole) - score(whole & ~(1 << place)),
                )
                for place, name in enumerate(modalities)
            },
        )
    except _NotDefinedError:
        return None


class _NotDefinedError(Exception):
    """The metric is not defined for some subset."""
