"""Retrieval: whether each value finds those that belong with it among all others, in both directions.

in        places in the joint space of held-out rows, and which item each row shows
out       recall, ranks and gains by direction, each with a bootstrap interval over items; Scores for evaluation.py
relies on shared/model/matching.py for how values score against each other

- A query is one value, and so is a candidate. Where rows of one item have the very same value (one drawing in nine
  languages), it is one query and one candidate, not nine.
- What shares a query's item is relevant; there may be several. The first of them is at rank 1 where nothing else scores
  as high: between equal scores the irrelevant one comes first, so that a model which says the same of everything finds
  nothing. A score that is not a number is the lowest of all.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from server.bootstrap import resample_counts
from server.records import Estimate, Scores
from shared.batch import Samples
from shared.config import RunConfig
from shared.errors import RunError
from shared.model.matching import Matching, matching_of

SIZES = (1, 5, 10)
GAINS_AT = 10
QUERIES_AT_ONCE = 256
Interval = tuple[float, float]


@dataclass(frozen=True)
class Values:
    """Distinct values of one modality: where they lie, and which item each shows."""

    places: Float[Tensor, "N D"]
    items: Int[np.ndarray, "N"]


@dataclass(frozen=True)
class Found:
    """How each query of one direction fared."""

    items: Int[np.ndarray, "Q"]
    by_query: dict[str, NDArray[np.float64]]
    """rank (of the first relevant one), recall_at_1, _5, _10, mrr and ndcg_at_10 of each query"""

    def metrics(self, weights: Float[np.ndarray, "Q"] | None = None) -> dict[str, float]:
        """Over all queries, or over a resample in which each is so many times."""
        if weights is None:
            weights = np.ones(len(self.items))
        total = weights.sum()
        found = {name: float(values @ weights / total) for name, values in self.by_query.items() if name != "rank"}
        return {**found, "median_rank": weighted_median(self.by_query["rank"], weights)}


def retrieval_scores(
    outputs: Float[Tensor, "N K"], samples: Samples, *, run: RunConfig, resamples: int = 0, seed: int = 0
) -> tuple[Scores, dict[str, Scores]]:
    """Scores of both directions together, each the mean of the two, and of each by itself: "image to text".

    Args:
        outputs: of a model for matching.
        samples: the rows, in the same order.
        run: says which values belong together.
        resamples: for the 95 % intervals; 0 leaves them out.
        seed: of the resamples.

    Raises:
        RunError: no two of the rows' items have both values, so that nothing could be mistaken.
    """
    task = matching_of(run)
    first, second = distinct_values(outputs, samples, run=run)
    num_shared = len(np.intersect1d(first.items, second.items))
    if num_shared < 2:
        raise RunError(
            f"held-out data: {num_shared} items with both {task.pair[0]} and {task.pair[1]}; allowed: two or more, so "
            "that one could be taken for another"
        )
    found = {
        f"{task.pair[0]} to {task.pair[1]}": search(first, second, task=task),
        f"{task.pair[1]} to {task.pair[0]}": search(second, first, task=task),
    }
    values = {name: each.metrics() for name, each in found.items()}
    values["both"] = _mean(list(values.values()))
    drawn = _resampled(found, resamples=resamples, seed=seed)
    scores = {
        name: Scores(
            num_samples=len(found[name].items) if name in found else len(samples),
            metrics={metric: _estimate(value, drawn.get((name, metric))) for metric, value in metrics.items()},
        )
        for name, metrics in values.items()
    }
    return scores.pop("both"), scores


def num_pairs(outputs: Float[Tensor, "N K"], samples: Samples, *, run: RunConfig) -> int:
    """How many items have a value of either modality."""
    first, second = distinct_values(outputs, samples, run=run)
    return len(np.intersect1d(first.items, second.items))


def search(queries: Values, candidates: Values, *, task: Matching) -> Found:
    """Every query that has something relevant among the candidates, against all of them.

    Recall at k is the share of queries with a relevant candidate among the first k (Karpathy and Fei-Fei 2015,
    arXiv:1412.2306, section 4.2); gains are 1 for what is relevant, discounted by rank and over the most there could be
    (Jarvelin and Kekalainen 2002, ACM TOIS 20(4), section 2.3).
    """
    asked = np.isin(queries.items, candidates.items)
    places, items = queries.places[torch.from_numpy(asked)], queries.items[asked]
    pieces = []
    for start in range(0, len(items), QUERIES_AT_ONCE):
        end = start + QUERIES_AT_ONCE
        scores = task.scores(places[start:end], candidates.places).double().numpy()
        pieces.append(_judged(scores, items[start:end, None] == candidates.items[None]))
    merged = {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]} if pieces else {}
    return Found(items=items, by_query=merged)


def distinct_values(outputs: Float[Tensor, "N K"], samples: Samples, *, run: RunConfig) -> tuple[Values, Values]:
    """The places of both modalities' values, each value of an item once."""
    *both, there = matching_of(run).places_of(outputs)
    numbers, rows = item_numbers(samples, run=run), distinct_rows(samples, there > 0, run=run)
    first, second = (
        Values(places=both[side][torch.from_numpy(rows[side])], items=numbers[rows[side]]) for side in (0, 1)
    )
    return first, second


def distinct_rows(
    samples: Samples, there: Bool[Tensor, "N 2"], *, run: RunConfig
) -> tuple[Int[np.ndarray, "A"], Int[np.ndarray, "B"]]:
    """For either modality of the pair the first row of each value of each item.

    Args:
        samples: the rows.
        there: which of the pair each row has.
        run: says what is an item.
    """
    task, numbers, made = matching_of(run), item_numbers(samples, run=run), []
    for side, name in enumerate(task.pair):
        seen: dict[tuple[int, bytes], int] = {}
        for row in there[:, side].nonzero()[:, 0].tolist():
            # by what went in: what comes out of two batches may differ in its last bit
            seen.setdefault((int(numbers[row]), samples.inputs[name][row].numpy().tobytes()), row)
        made.append(np.array(list(seen.values()), dtype=np.int64))
    return made[0], made[1]


def item_numbers(samples: Samples, *, run: RunConfig) -> Int[np.ndarray, "N"]:
    """A number for each row, the same for rows that show the same item; a row without an item is one of its own."""
    column = run.data.item
    if column is None:
        return np.arange(len(samples))
    named: Sequence[str] = samples.subjects if column == "subject_id" else samples.groups[column]
    known: dict[str, int] = {}
    return np.array(
        [known.setdefault(name or f"\0{row}", len(known)) for row, name in enumerate(named)], dtype=np.int64
    )


def weighted_median(values: Float[np.ndarray, "Q"], weights: Float[np.ndarray, "Q"]) -> float:
    """The median of values of which each is there so many times; between two middle ones their mean."""
    order = np.argsort(values, kind="stable")
    ordered, upto = values[order], weights[order].cumsum()
    half = upto[-1] / 2
    low = ordered[np.searchsorted(upto, half, side="left")]
    high = ordered[min(np.searchsorted(upto, half, side="right"), len(ordered) - 1)]
    return float((low + high) / 2)


def _judged(scores: Float[np.ndarray, "C N"], relevant: Bool[np.ndarray, "C N"]) -> dict[str, NDArray[np.float64]]:
    """Each query's numbers from its scores against all candidates."""
    lowest = np.where(np.isnan(scores), -np.inf, scores)
    # by score from the highest; of equal ones the irrelevant first
    order = np.lexsort((relevant, -lowest), axis=1)
    hits = np.take_along_axis(relevant, order, axis=1)
    rank = hits.argmax(axis=1) + 1.0
    discounts = 1 / np.log2(np.arange(2, min(GAINS_AT, hits.shape[1]) + 2))
    gains = hits[:, : len(discounts)] @ discounts
    best = np.cumsum(discounts)[np.minimum(hits.sum(axis=1), len(discounts)) - 1]
    found = {f"recall_at_{size}": (rank <= size).astype(np.float64) for size in SIZES}
    return {**found, "rank": rank, "mrr": 1 / rank, f"ndcg_at_{GAINS_AT}": gains / best}


def _resampled(found: Mapping[str, Found], *, resamples: int, seed: int) -> dict[tuple[str, str], Interval]:
    """(direction, or "both", and metric) -> the middle 95 % over resamples of the items, the same for both directions.

    What queries are searched among stays as it is.
    """
    names = np.unique(np.concatenate([each.items for each in found.values()]))
    if not resamples or len(names) < 2:
        return {}
    place = {name: np.searchsorted(names, each.items) for name, each in found.items()}
    drawn: dict[tuple[str, str], list[float]] = {}
    for counts in resample_counts(tuple(map(str, names)), resamples=resamples, seed=seed):
        for row in counts.astype(np.float64):
            weights = {name: row[place[name]] for name in found}
            if not all(each.sum() for each in weights.values()):
                continue
            values = {name: each.metrics(weights[name]) for name, each in found.items()}
            values["both"] = _mean(list(values.values()))
            for name, metrics in values.items():
                for metric, value in metrics.items():
                    drawn.setdefault((name, metric), []).append(value)
    return {key: (float(np.quantile(each, 0.025)), float(np.quantile(each, 0.975))) for key, each in drawn.items()}


def _mean(metrics: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: sum(each[name] for each in metrics) / len(metrics) for name in metrics[0]}


def _estimate(value: float, interval: Interval | None) -> Estimate:
    if interval is None:
        return Estimate(value=value)
    return Estimate(value=value, low=min(interval[0], value), high=max(interval[1], value))
