"""Tests of client/gradient/bookkeeping.py and stacked.py: what book-keeping promises of gradients that are planted."""

import logging
import math
from typing import cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from client.gradient import choose_engine, stacked
from client.gradient.bookkeeping import BookkeepingEngine
from client.gradient.choice import AutoEngine
from client.gradient.engine import rows_of
from client.gradient.functional import FunctionalEngine
from client.gradient.layers import Rows
from client.gradient.reference import ReferenceEngine
from shared.batch import Batch
from shared.errors import ModelError, PrivacyError
from shared.privacy.mechanism import GRIDS_PER_NORM, Clip
from tests.client.layered import Chain, batch_of, names_of, summed
from tests.client.toy import Planted, Toy, planted_samples

LAYERS: dict[str, tuple[nn.Module, tuple[int, ...], tuple[int, ...]]] = {
    "linear": (nn.Linear(3, 2), (3,), (2,)),
    "positions": (nn.Linear(2, 2), (3, 2), (3, 2)),
    "convolution": (nn.Conv1d(2, 2, 2), (2, 3), (2, 2)),
    "embedding": (nn.Embedding(3, 2), (3,), (3, 2)),
    "layer norm": (nn.LayerNorm(3), (2, 3), (2, 3)),
    "group norm": (nn.GroupNorm(1, 2), (2, 3), (2, 3)),
}
"""a layer, and of a row the shape of what it takes and of what its outputs are multiplied with, which is planted"""
EVERY = pytest.mark.parametrize("kind", LAYERS)
NUMBERS = 12
ENGINE = BookkeepingEngine(microbatch_size=3)

plain = st.floats(min_value=-10, max_value=10, width=32)
strange = st.sampled_from([0.0, 1e-23, 1e-30, 1e10, 1e18, -1e18, 3e38, math.nan, math.inf, -math.inf])
row = st.lists(st.one_of(plain, strange), min_size=NUMBERS, max_size=NUMBERS)


def planted(kind: str, numbers: Tensor) -> Batch:
    """Rows for a Chain of that layer: the first numbers of each are its input, the rest multiply its outputs."""
    _, taken, given_back = LAYERS[kind]
    inputs = numbers[:, : math.prod(taken)].reshape(-1, *taken)
    if kind == "embedding":
        inputs = inputs.nan_to_num(posinf=1, neginf=2).abs().fmod(3).long()
    return batch_of(inputs, numbers[:, -math.prod(given_back) :].reshape(-1, *given_back))


@settings(max_examples=25, deadline=None)
@EVERY
@given(others=st.lists(row, max_size=4), one=row, clip_norm=st.sampled_from([1e-6, 1e-3, 1.0, 30.0]))
def test_one_unit_moves_the_sum_of_every_layer_by_at_most_the_clip_norm(
    kind: str, others: list[list[float]], one: list[float], clip_norm: float
) -> None:
    model = Chain(LAYERS[kind][0])
    with_one, without = (
        summed(ENGINE, model, planted(kind, torch.tensor(rows).reshape(-1, NUMBERS)), clip=Clip(clip_norm))[0]
        for rows in ([*others, one], others)
    )

    assert with_one.isfinite().all()
    assert float((with_one - without).norm()) <= clip_norm * (1 + 5e-6)


@EVERY
@pytest.mark.parametrize("rows_per_unit", [1, 2])
@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_a_broken_gradient_of_any_layer_contributes_exactly_zero(kind: str, broken: float, rows_per_unit: int) -> None:
    """And empties nobody else; one row of it is enough."""
    model, numbers = Chain(LAYERS[kind][0]), torch.full((3 * rows_per_unit, NUMBERS), 0.1)
    numbers[rows_per_unit, -1] = broken
    alone, nothing = summed(
        ENGINE,
        model,
        planted(kind, numbers[rows_per_unit : 2 * rows_per_unit]),
        clip=Clip(1.0),
        rows_per_unit=rows_per_unit,
    )
    among, found = summed(ENGINE, model, planted(kind, numbers), clip=Clip(1.0), rows_per_unit=rows_per_unit)
    numbers[rows_per_unit : 2 * rows_per_unit] = numbers[:rows_per_unit]
    three, _ = summed(ENGINE, model, planted(kind, numbers), clip=Clip(1.0), rows_per_unit=rows_per_unit)

    assert not alone.any()
    assert (nothing.unclipped, found.unclipped) == (0.0, 2.0)
    assert float(among.norm()) > 0.1
    torch.testing.assert_close(among, three * 2 / 3)


@EVERY
def test_rows_of_a_unit_give_their_mean_clipped_once(kind: str) -> None:
    """The first unit's rows cancel but for a part; clipped one by one they would leave something else."""
    model, numbers = Chain(LAYERS[kind][0]), torch.full((6, NUMBERS), 0.5)
    numbers[:3, -4:] *= torch.tensor([9.0, -8.5, 1.0])[:, None]
    wanted, found = (
        summed(engine, model, planted(kind, numbers), clip=Clip(0.4), rows_per_unit=3)
        for engine in (ReferenceEngine(), ENGINE)
    )

    torch.testing.assert_close(found[0], wanted[0])
    assert found[1].unclipped == wanted[1].unclipped


@EVERY
def test_units_within_the_norm_are_counted_and_left_alone(kind: str) -> None:
    model, numbers = Chain(LAYERS[kind][0]), torch.linspace(-0.5, 0.5, NUMBERS).repeat(5, 1)
    numbers[:3] *= 100
    (wanted, reference), (found, counted) = (
        summed(engine, model, planted(kind, numbers), clip=Clip(8.0)) for engine in (ReferenceEngine(), ENGINE)
    )

    assert counted.unclipped == reference.unclipped == 2.0
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_tiny_numbers_times_huge_ones_count_towards_the_norm() -> None:
    """A gradient of 1e-23 has a square of zero in float32; times an input of 1e18 it is ten times the clip norm."""
    batch = batch_of(torch.full((1, 10), 1e18), torch.full((1, 1000), 1e-23))
    mirrored = batch_of(torch.full((1, 1000), 1e-23), torch.full((1, 10), 1e18))

    for model, rows in ((Chain(nn.Linear(10, 1000)), batch), (Chain(nn.Linear(1000, 10, bias=False)), mirrored)):
        assert float(summed(ReferenceEngine(), model, rows, clip=Clip(1.0))[0].norm()) == pytest.approx(1e-3, rel=0.1)
        assert float(summed(ENGINE, model, rows, clip=Clip(1e-4))[0].norm()) <= 1e-4


def test_positions_that_cancel_are_summed_as_they_were_measured() -> None:
    """Gradients of a bias that cancel over a thousand positions, as those under a softmax do."""
    gradients = torch.randn(2, 1000, 1, generator=torch.Generator().manual_seed(0)) * 1e8
    gradients[:, -1] -= gradients.sum(dim=1)
    batch = batch_of(torch.zeros(2, 1000, 3), gradients)
    model = Chain(nn.Linear(3, 1))

    for rows in (rows_of(batch, start=0, stop=1), rows_of(batch, start=1, stop=2)):
        assert float(summed(ENGINE, model, rows, clip=Clip(0.01))[0].norm()) <= 0.01 * (1 + 5e-6)


def test_norms_of_millions_of_numbers_are_not_cut_short() -> None:
    """In one piece float32 is 0.1 % short over two million equal numbers, and the contribution as much too long."""
    batch = batch_of(torch.full((1, 2, 2000), 0.1), torch.full((1, 2, 1000), 0.1))
    total, _ = summed(ENGINE, Chain(nn.Linear(2000, 1000, bias=False)), batch, clip=Clip(0.01))

    assert float(total.norm()) == pytest.approx(0.01, rel=1e-5)


class TiedByFunction(nn.Module):
    """Outputs through the transposed table of its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(4, 3)

    def forward(self, inputs: dict[str, Tensor], present: Tensor) -> Tensor:
        return nn.functional.linear(self.table(inputs["x"]), self.table.weight)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs.square().flatten(1).sum(dim=1)


class ScaledByAWeight(Chain):
    """A weight scales the outputs as well, beside its layer."""

    def forward(self, inputs: dict[str, Tensor], present: Tensor) -> Tensor:
        outputs: Tensor = self.layers(inputs["x"])
        return outputs * cast("Tensor", self.layers[0].weight).mean()


class FoldsTokens(Chain):
    """Every token a row of its layers."""

    def forward(self, inputs: dict[str, Tensor], present: Tensor) -> Tensor:
        size, times, width = inputs["x"].shape
        outputs: Tensor = self.layers(inputs["x"].reshape(size * times, width))
        return outputs.reshape(size, times, -1).sum(dim=1)


class TimeFirst(Chain):
    """Rows of its layers are points in time."""

    def forward(self, inputs: dict[str, Tensor], present: Tensor) -> Tensor:
        outputs: Tensor = self.layers(inputs["x"].transpose(0, 1))
        return outputs.sum(dim=0)


OUTSIDE = [
    (TiedByFunction(), batch_of(torch.tensor([[0, 1], [2, 3]]))),
    (ScaledByAWeight(nn.Linear(3, 2)), batch_of(torch.ones(2, 3))),
]
FOLDED = [
    (kind(nn.Linear(3, 2)), batch_of(torch.randn(size, times, 3, generator=torch.Generator().manual_seed(size))))
    for kind in (FoldsTokens, TimeFirst)
    # as many rows as points in time: nothing but the model could tell
    for size, times in ((2, 5), (5, 5), (3, 2), (2, 2))
]


@pytest.mark.parametrize(("model", "batch"), OUTSIDE)
def test_weights_used_from_outside_their_layer_are_refused(model: nn.Module, batch: Batch) -> None:
    with pytest.raises(ModelError, match=r"weight'\] are used from outside their layer; set gradient_engine"):
        summed(ENGINE, model, batch, clip=Clip(0.1))


@pytest.mark.parametrize(("model", "batch"), FOLDED)
def test_rows_that_are_not_samples_are_refused(model: nn.Module, batch: Batch) -> None:
    for _ in range(2):
        with pytest.raises(ModelError, match=r"a layer sees \d+ rows where the batch has [12]; set gradient_engine"):
            summed(BookkeepingEngine(), model, batch, clip=Clip(0.1))


@pytest.mark.parametrize(("model", "batch"), [*OUTSIDE, *FOLDED])
@pytest.mark.parametrize("rows_per_unit", [1, 2])
def test_auto_falls_back_with_a_log_line_and_the_same_numbers(
    model: nn.Module, batch: Batch, rows_per_unit: int, caplog: pytest.LogCaptureFixture
) -> None:
    engine, rows = choose_engine("auto", model), rows_of(batch, start=0, stop=2)
    with caplog.at_level(logging.INFO, logger="motet.site"):
        found = [summed(engine, model, rows, clip=Clip(0.1), rows_per_unit=rows_per_unit)[0] for _ in range(2)]

    assert isinstance(engine, AutoEngine)
    assert isinstance(engine.engine, FunctionalEngine)
    assert [record.message.split(":")[0] for record in caplog.records] == [
        "gradients by torch.func instead of book-keeping"
    ]
    wanted = summed(ReferenceEngine(), model, rows, clip=Clip(0.1), rows_per_unit=rows_per_unit)[0]
    for each in found:
        torch.testing.assert_close(each, wanted)


def test_raw_parameters_make_auto_fall_back() -> None:
    engine, rows = choose_engine("auto", Planted()), planted_samples(torch.ones(2, 6))
    with pytest.raises(ModelError, match="the model itself: Planted is none of Linear"):
        summed(ENGINE, Planted(), rows, clip=Clip(1.0))
    with pytest.raises(ModelError, match="scale: Scale is none of"):
        stacked.Stacked(Toy(), names=names_of(Toy()))

    assert summed(engine, Planted(), rows, clip=Clip(1.0))[0].norm() == pytest.approx(2.0)


def test_auto_keeps_to_book_keeping_where_it_can() -> None:
    model = Chain(nn.Linear(3, 2))
    engine = choose_engine("auto", model)
    summed(engine, model, batch_of(torch.ones(2, 3)), clip=Clip(1.0))

    assert isinstance(engine, AutoEngine)
    assert isinstance(engine.engine, BookkeepingEngine)


def test_whole_numbers_are_refused_by_book_keeping_and_left_to_others_by_auto() -> None:
    model, batch, clip = Chain(nn.Linear(3, 2)), batch_of(torch.ones(2, 3)), Clip(0.5, grid=0.5 / GRIDS_PER_NORM)
    with pytest.raises(PrivacyError, match="allowed with the reference engine"):
        summed(ENGINE, model, batch, clip=clip)

    found = summed(choose_engine("auto", model), model, batch, clip=clip)[1]
    assert all(total.dtype == torch.int64 for total in found.sums.values())


def test_the_model_is_left_as_it_was_even_by_a_pass_that_fails() -> None:
    model = ScaledByAWeight(nn.Conv1d(3, 2, 1), nn.Linear(4, 2), nn.LayerNorm(2)).eval()
    model.layers[1].requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def facts() -> list[object]:
        of_parameters = [(name, each.requires_grad, each.grad) for name, each in model.named_parameters()]
        return [
            *of_parameters,
            *((vars(module).keys() - {"training"}, module.training) for module in model.modules()),
            *(len(module._forward_hooks) + len(module._backward_hooks) for module in model.modules()),
        ]

    found, names = facts(), ("layers.0.weight", "layers.2.bias")
    for engine in (ENGINE, BookkeepingEngine()):
        with pytest.raises(ModelError):
            engine.clipped_sum(model, batch_of(torch.ones(2, 3, 4)), names=names, clip=Clip(1.0))
        engine.clipped_sum(model, batch_of(torch.ones(2, 3, 4)), names=names[1:], clip=Clip(1.0))

    assert facts() == found
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_layer_that_no_loss_depends_on_has_exact_zeros() -> None:
    class Idle(Chain):
        def forward(self, inputs: dict[str, Tensor], present: Tensor) -> Tensor:
            return super().forward(inputs, present).detach()

    for layer, taken, _ in LAYERS.values():
        values = torch.ones(2, *taken)
        batch = batch_of(values.long() if isinstance(layer, nn.Embedding) else values)
        total, found = summed(ENGINE, Idle(layer), batch, clip=Clip(1.0))
        assert not total.any()
        assert found.unclipped == 2.0


@pytest.mark.parametrize("rows_per_unit", [1, 3])
@pytest.mark.parametrize("forms", [False, True])
def test_each_pass_holds_as_many_rows_as_the_model_says_whatever_was_drawn(
    forms: bool, rows_per_unit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A microbatch where gradients are formed; else what fits, here 30 rows of 5 numbers."""
    held: list[int] = []
    original = stacked.Stacked._passed

    def noted(self: stacked.Stacked, weights: Tensor | None, batch: Batch, *, rows: Rows, **rest: object) -> object:
        held.append(len(batch))
        return original(self, weights, batch, rows=rows, **rest)  # type: ignore[arg-type]

    monkeypatch.setattr(stacked.Stacked, "_passed", noted)
    monkeypatch.setattr(stacked, "LARGEST_HELD", 150)
    shape = (75, 2, 3) if forms else (75, 3)
    values = torch.linspace(-1, 1, math.prod(shape)).reshape(shape)
    model, batch = Chain(nn.Linear(3, 2)), batch_of(values)
    engines = (ReferenceEngine(), BookkeepingEngine(microbatch_size=6))
    wanted, found = (summed(engine, model, batch, clip=Clip(0.1), rows_per_unit=rows_per_unit)[0] for engine in engines)

    # a unit of several rows is several positions to a linear layer
    size = 6 if forms or rows_per_unit > 1 else 30
    assert held == [size] * (75 // size) + [75 % size]
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


def test_an_exchanged_layer_or_weight_is_seen_by_an_engine_that_knew_the_one_before() -> None:
    model, batch, engine = Chain(nn.Linear(3, 2), nn.Linear(2, 2)), batch_of(torch.ones(2, 3)), BookkeepingEngine()

    def nothing() -> None:
        pass

    def new_layer() -> None:
        model.layers[0] = nn.Linear(3, 2)

    def new_weight() -> None:
        model.layers[1].weight = nn.Parameter(torch.ones(2, 2))

    for exchange in (nothing, new_layer, new_weight):
        exchange()
        wanted, found = (summed(each, model, batch, clip=Clip(0.1))[0] for each in (ReferenceEngine(), engine))
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("rows_per_unit", [1, 3])
def test_where_it_is_asked_for_no_pass_has_more_than_a_microbatch(
    rows_per_unit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As preflight asks, of a model too that forms no gradients: else nothing there went from piece to piece."""
    held: list[int] = []
    original = stacked.Stacked._passed

    def noted(self: stacked.Stacked, weights: Tensor | None, batch: Batch, *, rows: Rows, **rest: object) -> object:
        held.append(rows.units)
        return original(self, weights, batch, rows=rows, **rest)  # type: ignore[arg-type]

    monkeypatch.setattr(stacked.Stacked, "_passed", noted)
    model, batch = Chain(nn.Linear(3, 2)), batch_of(torch.linspace(-1, 1, 45).reshape(15, 3))
    engine = choose_engine("auto", model, microbatch_size=2, always=True)
    wanted, found = (
        summed(each, model, batch, clip=Clip(0.1), rows_per_unit=rows_per_unit)[0]
        for each in (ReferenceEngine(), engine)
    )

    assert held == ([2] * 7 + [1] if rows_per_unit == 1 else [1] * 5)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
