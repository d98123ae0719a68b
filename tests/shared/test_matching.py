"""Matching: losses by hand, a bound on what a pair adds, and why negatives of the batch would break it."""

import math
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, nn

from client.cohort_training import why_apart
from client.gradient import choose_engine
from client.gradient.engine import sample_losses
from client.gradient.plain import PlainEngine
from shared.batch import Batch
from shared.config import RunConfig
from shared.errors import ModelError
from shared.model.fusion.pair import PairFusion
from shared.model.matching import Matching
from shared.model.multimodal import MultimodalModel, build_model
from shared.model.parameters import given_names, trainable_names
from shared.privacy.mechanism import Clip
from tests.tiny import PRIVACY, tiny_run

KINDS = ("info-nce", "sigmoid", "binary")
SCORES = ("cosine", "euclidean")
Kind = Literal["info-nce", "sigmoid", "binary"]
Score = Literal["cosine", "euclidean"]


def _run(
    *,
    privacy: object = "none",
    model: dict[str, object] | None = None,
    modality: str = "right",
    matching: dict[str, object] | None = None,
) -> RunConfig:
    table = tiny_run(private=False)
    modalities = {name: {"kind": "features", "width": 4} for name in ("left", "right", "other")}
    table["data"] = {"task": "matching", "pair": ["left", "right"], "modalities": modalities}
    table["model"] = {
        "embedding_width": 4,
        "encoders": {"left": {"name": "linear"}, modality: {"name": "linear"}},
        "fusion": {"name": "pair"},
        "matching": {"num_negatives": 5, **(matching or {})},
        **(model or {}),
    }
    table["privacy"] = privacy
    return RunConfig.model_validate(table)


def _batch(rows: int, *, seed: int = 0, absent: tuple[int, ...] = ()) -> Batch:
    draws = torch.Generator().manual_seed(seed)
    present = torch.ones(rows, 2, dtype=torch.bool)
    present[list(absent), 1] = False
    inputs = {name: torch.randn(rows, 4, generator=draws) for name in ("left", "right")}
    return Batch(inputs=inputs, present=present, targets=torch.zeros(rows, dtype=torch.int64))


def _model(**matching: object) -> MultimodalModel:
    return build_model(_run(matching=matching))


def _fusion(model: MultimodalModel) -> PairFusion:
    assert isinstance(model.fusion, PairFusion)
    return model.fusion


def _heads(model: MultimodalModel, batch: Batch) -> list[Tensor]:
    """What each modality's head gives."""
    return [
        model.get_submodule(f"head.{name}")(model.get_submodule(f"encoders.{name}")(batch.inputs[name]))
        for name in ("left", "right")
    ]


def _task(kind: Kind, score: Score, *, negatives: int, width: int = 3) -> Matching:
    return Matching(
        pair=("left", "right"), num_outputs=width, kind=kind, score=score, temperature=0.5, num_negatives=negatives
    )


def _by_hand(kind: str, score: float, negatives: list[float]) -> float:
    """One direction of one pair, from scores that are over the temperature already."""
    softplus = [math.log1p(math.exp(other)) for other in negatives]
    if kind == "info-nce":
        return math.log(1 + sum(math.exp(other - score) for other in negatives))
    if kind == "sigmoid":
        bias = -math.log(len(negatives))
        wrong = sum(math.log1p(math.exp(other + bias)) for other in negatives)
        return math.log1p(math.exp(-(score + bias))) + wrong
    return (math.log1p(math.exp(-score)) + sum(softplus) / len(softplus)) / 2


def _score(first: Tensor, second: Tensor, *, kind: str) -> float:
    first, second = first.detach(), second.detach()
    if kind == "cosine":
        return float(nn.functional.cosine_similarity(first, second, dim=0))
    return 1 - float((first - second).norm()) ** 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("score", SCORES)
def test_the_loss_of_a_pair_against_public_values_is_that_by_hand(kind: Kind, score: Score) -> None:
    model = _model(loss=kind, score=score, temperature=0.5)
    _fusion(model).centers.copy_(torch.randn(2, 4, generator=torch.Generator().manual_seed(5)))
    batch = _batch(3, absent=(1,))
    losses = sample_losses(model, batch).detach()
    heads = [values - center for values, center in zip(_heads(model, batch), _fusion(model).centers, strict=True)]
    bank = _fusion(model).negatives
    for row in (0, 2):
        left, right = heads[0][row], heads[1][row]
        own = _score(left, right, kind=score) / 0.5
        there = _by_hand(kind, own, [_score(left, other, kind=score) / 0.5 for other in bank[1]])
        back = _by_hand(kind, own, [_score(right, other, kind=score) / 0.5 for other in bank[0]])
        assert float(losses[row]) == pytest.approx((there + back) / 2, rel=1e-4, abs=1e-5)
    assert float(losses[1]) == 0.0


@pytest.mark.parametrize("kind", KINDS)
def test_in_batch_losses_are_those_against_the_other_pairs(kind: Kind) -> None:
    model = _model(loss=kind, score="cosine", temperature=0.5, negatives="in-batch")
    batch = _batch(4, absent=(3,))
    losses = sample_losses(model, batch).detach()
    left, right = _heads(model, batch)
    table = [[_score(a, b, kind="cosine") / 0.5 for b in right] for a in left]
    for row in range(3):
        others = [other for other in range(3) if other != row]
        there = _by_hand(kind, table[row][row], [table[row][other] for other in others])
        # the one without a pair is nobody's negative; the bias counts who could be one
        back = _by_hand(kind, table[row][row], [table[other][row] for other in others])
        assert float(losses[row]) == pytest.approx((there + back) / 2, rel=1e-4, abs=1e-5)
    assert float(losses[3]) == 0.0


def _sum(model: MultimodalModel, batch: Batch, *, clip: Clip) -> Tensor:
    names = trainable_names(model, model.modalities)
    result = choose_engine("auto", model).clipped_sum(model, batch, names=names, clip=clip)
    return torch.cat([result.sums[name].reshape(-1).double() for name in names])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("score", SCORES)
@settings(max_examples=8, deadline=None)
@given(
    rows=st.integers(0, 5),
    norm=st.sampled_from([1e-3, 0.1, 1.0]),
    size=st.sampled_from([0.0, 1.0, 1e4, math.inf, math.nan]),
    seed=st.integers(0, 1000),
)
def test_one_pair_more_moves_the_clipped_sum_by_at_most_the_clip_norm(
    kind: Kind, score: Score, rows: int, norm: float, size: float, seed: int
) -> None:
    model = _model(loss=kind, score=score)
    batch = _batch(rows + 1, seed=seed)
    batch.inputs["left"][-1] *= size
    fewer = batch.take(torch.arange(rows))

    moved = _sum(model, batch, clip=Clip(norm)) - _sum(model, fewer, clip=Clip(norm))

    assert float(moved.norm()) <= norm * (1 + 1e-4)


def test_with_negatives_of_the_batch_one_pair_would_move_it_by_more() -> None:
    """Why they are refused: clipped one by one, the gradients of all pairs turn when one more is there."""
    model, norm, rows = _model(negatives="in-batch", temperature=0.05), 0.01, 12
    names = trainable_names(model, model.modalities)

    def clipped_each(batch: Batch) -> Tensor:
        losses, total = sample_losses(model, batch), torch.zeros(())
        for loss in losses:
            found = torch.autograd.grad(loss, [model.get_parameter(name) for name in names], retain_graph=True)
            row = torch.cat([each.reshape(-1) for each in found])
            total = total + row * min(1.0, norm / float(row.norm().clamp(min=1e-12)))
        return total

    batch = _batch(rows)
    moved = clipped_each(batch) - clipped_each(batch.take(torch.arange(rows - 1)))

    assert float(moved.norm()) > 1.5 * norm


@pytest.mark.parametrize("kind", KINDS)
def test_no_gradient_flows_into_what_is_public(kind: Kind) -> None:
    model = _model(loss=kind)
    assert given_names(model, model.modalities) == ("fusion.negatives", "fusion.centers")
    assert not {"fusion.negatives", "fusion.centers"} & set(dict(model.named_parameters()))
    assert not _fusion(model).negatives.requires_grad
    assert not _fusion(model).centers.requires_grad
    before = sample_losses(model, _batch(3)).detach()
    _fusion(model).negatives.copy_(_fusion(model).negatives.flip(1) * 0.5)
    assert not torch.equal(before, sample_losses(model, _batch(3)).detach())


@pytest.mark.parametrize("score", SCORES)
def test_scores_are_cosines_or_one_minus_squared_distances(score: Score) -> None:
    task = _task("info-nce", score, negatives=2)
    draws = torch.Generator().manual_seed(0)
    first, second = torch.randn(4, 3, generator=draws), torch.randn(5, 3, generator=draws)
    placed, others = task.placed(first), task.placed(second)
    table = task.scores(placed, others)
    for row in range(4):
        for column in range(5):
            assert float(table[row, column]) == pytest.approx(_score(first[row], second[column], kind=score), abs=1e-5)
    assert torch.allclose(task.own_scores(placed, others[:4]), table.diagonal(), atol=1e-6)


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("kind", KINDS)
def test_values_of_zero_have_finite_losses_and_gradients(kind: Kind, score: Score) -> None:
    model = _model(loss=kind, score=score)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    batch = _batch(2, absent=(1,))
    losses = sample_losses(model, batch)
    losses.sum().backward()  # type: ignore[no-untyped-call]
    assert bool(losses.isfinite().all())
    assert all(bool(each.grad is None or each.grad.isfinite().all()) for each in model.parameters())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("negatives", ["public", "in-batch"])
def test_training_brings_pairs_together(kind: Kind, negatives: str) -> None:
    model = _model(loss=kind, negatives=negatives, num_negatives=24)
    rows, public = _batch(6, seed=1), _batch(24, seed=2)
    for batch in (rows, public):
        batch.inputs["right"].copy_(batch.inputs["left"].roll(1, dims=1))
    names, task = trainable_names(model, model.modalities), model.task
    assert isinstance(task, Matching)
    for step in range(80):
        if negatives == "public" and step % 5 == 0:
            first, second, _ = task.places_of(model(public.inputs, public.present).detach())
            _fusion(model).negatives.copy_(torch.stack([first, second]))
        sums = PlainEngine().clipped_sum(model, rows, names=names, clip=Clip(math.inf)).sums
        with torch.no_grad():
            for name in names:
                model.get_parameter(name).sub_(0.03 * sums[name])
    first, second, _ = task.places_of(model(rows.inputs, rows.present).detach())
    assert int((task.scores(first, second).argmax(dim=1) == torch.arange(6)).sum()) >= 4


@pytest.mark.parametrize("unit", ["record", "subject"])
def test_in_batch_negatives_are_refused_where_records_or_subjects_are_protected(unit: str) -> None:
    with pytest.raises(ValidationError, match=r"pair is in the loss of all others.*allowed: \"public\""):
        _run(privacy={**PRIVACY, "unit": unit}, matching={"negatives": "in-batch"})
    _run(privacy={**PRIVACY, "unit": unit})
    _run(privacy={**PRIVACY, "unit": "site", "trust": "server"}, matching={"negatives": "in-batch"})
    _run(privacy="none", matching={"negatives": "in-batch"})


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model": {"fusion": {"name": "mean"}}}, "allowed with task = \"matching\": 'pair'"),
        ({"model": {"modality_dropout": 0.2}}, "half a pair teaches nothing"),
        ({"modality": "other"}, r"the two of data.pair, \['left', 'right'\]"),
    ],
)
def test_what_does_not_fit_matching_is_refused(changes: dict[str, object], says: str) -> None:
    with pytest.raises(ModelError, match=says):
        build_model(_run(**changes))  # type: ignore[arg-type]


def test_the_fusion_is_for_matching_alone() -> None:
    table = tiny_run(private=False)
    table["model"] = {**table["model"], "fusion": {"name": "pair"}}  # type: ignore[dict-item]
    with pytest.raises(ModelError, match="'pair' is for task = \"matching\""):
        build_model(RunConfig.model_validate(table))


def test_sites_with_in_batch_negatives_are_trained_one_by_one() -> None:
    for negatives, reason in (("public", None), ("in-batch", "each other's negatives")):
        model = _model(negatives=negatives)
        training = _run().training
        why = why_apart(model, names=trainable_names(model, model.modalities), training=training, plan=None)
        assert (why is None) if reason is None else (reason in (why or ""))
