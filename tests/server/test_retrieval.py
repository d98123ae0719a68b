"""Retrieval: every number by brute force, what is one value, ties, intervals."""

import math
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from server.evaluation import evaluate, score
from server.retrieval import Values, distinct_values, item_numbers, num_pairs, retrieval_scores, search, weighted_median
from shared.batch import Samples
from shared.config import RunConfig
from shared.errors import RunError
from shared.model.matching import Matching, matching_of
from shared.model.multimodal import build_model
from tests.tiny import tiny_run


def _run(**data: object) -> RunConfig:
    table = tiny_run(private=False)
    modalities = {name: {"kind": "features", "width": 4} for name in ("left", "right")}
    table["data"] = {"task": "matching", "pair": ["left", "right"], "modalities": modalities, **data}
    table["model"] = {
        "embedding_width": 4,
        "encoders": {"left": {"name": "linear"}, "right": {"name": "linear"}},
        "fusion": {"name": "pair"},
        "matching": {"num_negatives": 3},
    }
    return RunConfig.model_validate(table)


def _samples(items: list[str], *, seed: int = 0, languages: list[str] | None = None) -> Samples:
    draws = torch.Generator().manual_seed(seed)
    rows = len(items)
    return Samples(
        inputs={name: torch.randn(rows, 4, generator=draws) for name in ("left", "right")},
        present=torch.ones(rows, 2, dtype=torch.bool),
        targets=torch.zeros(rows, dtype=torch.int64),
        subjects=tuple(items),
        groups={"language": tuple(languages)} if languages else {},
    )


def _outputs(first: torch.Tensor, second: torch.Tensor, *, present: torch.Tensor | None = None) -> torch.Tensor:
    """What a model gives, without the columns that only its loss reads."""
    there = torch.ones(len(first), 2) if present is None else present.float()
    return torch.cat([first, second, there], dim=1)


def _task(kind: Literal["cosine", "euclidean"] = "euclidean") -> Matching:
    return Matching(
        pair=("left", "right"), num_outputs=2, kind="info-nce", score=kind, temperature=1.0, num_negatives=3
    )


def _by_hand(scores: list[float], relevant: list[bool]) -> dict[str, float]:
    """One query's numbers, an irrelevant candidate before a relevant one of the same score."""
    key = [(-math.inf if math.isnan(score) else score, not good) for score, good in zip(scores, relevant, strict=True)]
    order = sorted(range(len(scores)), key=lambda place: key[place], reverse=True)
    good = [relevant[place] for place in order]
    rank = good.index(True) + 1
    gains = sum(1 / math.log2(place + 2) for place, each in enumerate(good[:10]) if each)
    best = sum(1 / math.log2(place + 2) for place in range(min(10, sum(good))))
    recalls = {f"recall_at_{size}": float(rank <= size) for size in (1, 5, 10)}
    return {**recalls, "rank": float(rank), "mrr": 1 / rank, "ndcg_at_10": gains / best}


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    num_queries=st.integers(1, 7),
    num_candidates=st.integers(1, 15),
    num_items=st.integers(1, 6),
    coarse=st.booleans(),
)
def test_every_number_of_a_direction_is_that_by_brute_force(
    seed: int, num_queries: int, num_candidates: int, num_items: int, coarse: bool
) -> None:
    draws = np.random.default_rng(seed)

    def values(count: int) -> Values:
        places = torch.from_numpy(draws.normal(size=(count, 2))).float()
        return Values(places=places.round() if coarse else places, items=draws.integers(0, num_items, count))

    queries, candidates, task = values(num_queries), values(num_candidates), _task()
    found = search(queries, candidates, task=task)

    table = task.scores(queries.places, candidates.places).double().tolist()
    asked = [row for row in range(num_queries) if queries.items[row] in candidates.items]
    assert found.items.tolist() == queries.items[asked].tolist()
    hand = [_by_hand(table[row], (candidates.items == queries.items[row]).tolist()) for row in asked]
    for name, values_found in found.by_query.items():
        assert values_found.tolist() == pytest.approx([each[name] for each in hand]), name
    if asked:
        metrics = found.metrics()
        assert metrics.pop("median_rank") == np.median([each["rank"] for each in hand])
        for name, value in metrics.items():
            assert value == pytest.approx(np.mean([each[name] for each in hand])), name


def test_a_model_that_says_the_same_of_everything_finds_nothing() -> None:
    run, items = _run(item="subject_id"), [str(row) for row in range(30)]
    outputs = _outputs(torch.ones(30, 4), torch.ones(30, 4))
    for broken in (outputs, outputs * math.nan):
        broken[:, -2:] = 1.0
        overall, directions = retrieval_scores(broken, _samples(items), run=run)
        assert overall.metrics["recall_at_10"].value == 0.0
        assert overall.metrics["median_rank"].value == 30.0
        assert list(directions) == ["left to right", "right to left"]


def test_the_very_same_value_of_an_item_is_asked_and_found_once() -> None:
    run, samples = _run(item="subject_id"), _samples(["a", "a", "b", "b"])
    samples.inputs["left"][1] = samples.inputs["left"][0]
    # the same again, but of another item: another value
    samples.inputs["left"][2] = samples.inputs["left"][0]
    places = torch.arange(16.0).reshape(4, 4)
    first, second = distinct_values(_outputs(places, places), samples, run=run)
    assert first.items.tolist() == [0, 1, 1]
    assert torch.equal(first.places, places[[0, 2, 3]])
    assert second.items.tolist() == [0, 0, 1, 1]


def test_absent_values_are_neither_asked_nor_found() -> None:
    run, samples = _run(), _samples(["x"] * 4)
    present = torch.tensor([[True, True], [True, False], [False, True], [True, True]])
    outputs = _outputs(torch.randn(4, 4), torch.randn(4, 4), present=present)
    first, second = distinct_values(outputs, samples, run=run)
    assert first.items.tolist() == [0, 1, 3]
    assert second.items.tolist() == [0, 2, 3]
    assert num_pairs(outputs, samples, run=run) == 2
    found = search(first, second, task=matching_of(run))
    assert found.items.tolist() == [0, 3]


def test_rows_without_an_item_are_each_their_own() -> None:
    samples = _samples(["p", "q", "p"], languages=["", "fr", ""])
    assert item_numbers(samples, run=_run(item="subject_id")).tolist() == [0, 1, 0]
    assert item_numbers(samples, run=_run()).tolist() == [0, 1, 2]
    assert len(set(item_numbers(samples, run=_run(item="language", groups=["language"])).tolist())) == 3


def test_overall_is_the_mean_of_both_directions_and_pairs_that_lie_together_are_found() -> None:
    run, items = _run(item="subject_id"), [str(row) for row in range(12)]
    places = torch.nn.functional.normalize(torch.randn(12, 4, generator=torch.Generator().manual_seed(1)), dim=1)
    overall, _ = retrieval_scores(_outputs(places, places), _samples(items), run=run, resamples=20)
    assert {name: each.value for name, each in overall.metrics.items()} == dict.fromkeys(
        ("recall_at_1", "recall_at_5", "recall_at_10", "mrr", "ndcg_at_10", "median_rank"), 1.0
    )
    shifted = _outputs(places, places.roll(1, dims=0))
    overall, directions = retrieval_scores(shifted, _samples(items), run=run, resamples=20)
    for name, each in overall.metrics.items():
        assert each.value == pytest.approx(sum(scores.metrics[name].value for scores in directions.values()) / 2)
        assert each.low is not None
        assert each.high is not None
        assert each.low <= each.value <= each.high


def test_intervals_are_of_items_and_as_wide_as_the_draw_of_items() -> None:
    """A share p of n items has a standard error of sqrt(p(1-p)/n); rows of one item do not make it narrower."""
    run, num = _run(item="subject_id"), 40
    right = torch.arange(num) % 2 == 0
    places = torch.nn.functional.normalize(torch.randn(num, 4, generator=torch.Generator().manual_seed(1)), dim=1)
    second = torch.where(right[:, None], places, -places)
    four = [4 * [str(row)] for row in range(num)]
    rows = [row for row in range(num) for _ in range(4)]
    samples = _samples([name for names in four for name in names])
    outputs = _outputs(places[rows], second[rows])
    _, directions = retrieval_scores(outputs, samples, run=run, resamples=500, seed=1)
    estimate = directions["left to right"].metrics["recall_at_1"]
    assert estimate.value == pytest.approx(0.5, abs=0.1)
    width = (estimate.high or 0) - (estimate.low or 0)
    assert width == pytest.approx(2 * 1.96 * math.sqrt(0.25 / num), rel=0.2)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 4)), min_size=1, max_size=9))
def test_the_weighted_median_is_that_of_repeated_values(pairs: list[tuple[int, int]]) -> None:
    repeated = [value for value, count in pairs for _ in range(count)]
    if not repeated:
        return
    values, counts = (np.array(each, dtype=np.float64) for each in zip(*pairs, strict=True))
    assert weighted_median(values, counts) == np.median(repeated)


def test_evaluation_has_both_directions_and_groups_but_not_by_item() -> None:
    run = _run(item="shown", groups=["shown", "language"])
    samples = _samples(["p"] * 6, languages=["fr", "fr", "da", "da", "ru", "fr"])
    samples.groups["shown"] = ("a", "b", "a", "b", "a", "c")
    model = build_model(run)
    result = evaluate(model, samples, run=run, part="test", bootstrap_samples=5, subsets=True, seed=0)
    assert list(result.by_modalities) == ["left to right", "right to left", "left+right"]
    assert list(result.by_group) == ["language"]
    assert list(result.by_group["language"]) == ["da", "fr"]
    assert result.overall.num_samples == 6
    assert score(model, samples, run=run).metrics["mrr"].value == result.overall.metrics["mrr"].value


def test_too_few_items_are_refused() -> None:
    run = _run(item="subject_id")
    with pytest.raises(RunError, match=r"1 items with both left and right; allowed: two or more"):
        retrieval_scores(torch.ones(3, 10), _samples(["a", "a", "a"]), run=run)
