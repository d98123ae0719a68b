"""Tasks: what each answer costs by hand, each sample by itself, and which losses a run may not ask for."""

import math
from collections.abc import Mapping

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from shared.config import RunConfig
from shared.errors import ModelError
from shared.model.multimodal import MultimodalModel, build_model
from shared.model.parameters import task_of_parameter, trainable_names
from shared.model.tasks import MultiLabel, Rating, Several, SingleLabel, Task, task_of
from shared.settings import parse_settings

TASKS = {
    "feeling": {"kind": "single-label", "labels": ("joy", "calm", "fear")},
    "valence": {"kind": "rating", "rating_range": (-3, 3)},
    "topics": {"kind": "multi-label", "labels": ("war", "love")},
}
SEVERAL: dict[str, object] = {"task": "several", "tasks": TASKS}
MULTI: dict[str, object] = {"task": "multi-label", "labels": ("war", "love")}
SINGLE: dict[str, object] = {"task": "single-label", "labels": ("joy", "calm", "fear")}
RATING: dict[str, object] = {"task": "rating", "rating_range": (-3, 3)}
NAN = math.nan


def run_of(
    task: Mapping[str, object],
    *,
    loss: Mapping[str, object] | None = None,
    fusion: str = "concat",
    head: str = "linear",
    width: int = 4,
) -> RunConfig:
    """A run of two feature modalities."""
    table = {
        "name": "tasks",
        "seed": 1,
        "data": {**task, "modalities": {name: {"kind": "features", "width": 5} for name in ("left", "right")}},
        "model": {
            "embedding_width": width,
            "encoders": {name: {"name": "linear"} for name in ("left", "right")},
            "fusion": {"name": fusion},
            "head": {"name": head},
            "loss": loss or {},
        },
        "training": {"optimizer": "sgd", "learning_rate": 0.1, "batch_size": 4, "local_steps": 1},
        "privacy": "none",
        "federation": {"rounds": 1},
    }
    return parse_settings(RunConfig, table, place="tasks")


def model_of(task: Mapping[str, object], **how: object) -> MultimodalModel:
    return build_model(run_of(task, **how))  # type: ignore[arg-type]


def inputs_of(rows: int, *, seed: int = 0) -> tuple[dict[str, Tensor], Tensor]:
    draw = torch.Generator().manual_seed(seed)
    values = {name: torch.randn(rows, 5, generator=draw) for name in ("left", "right")}
    return values, torch.ones(rows, 2, dtype=torch.bool)


def test_a_class_costs_its_weight_times_its_cross_entropy() -> None:
    outputs, targets = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]]), torch.tensor([0, 2])
    plain = [math.log(1 + 2 * math.exp(-2.0)), math.log(2 + math.e)]
    assert SingleLabel(3).loss(outputs, targets).tolist() == pytest.approx(plain)
    weighted = SingleLabel(3, class_weights=(0.5, 1.0, 4.0)).loss(outputs, targets)
    assert weighted.tolist() == pytest.approx([0.5 * plain[0], 4 * plain[1]])


def test_labels_cost_the_mean_of_their_binary_cross_entropies_weighted_where_true() -> None:
    outputs, targets = torch.tensor([[1.0, -2.0]]), torch.tensor([[1.0, 0.0]])
    first, second = math.log(1 + math.exp(-1.0)), math.log(1 + math.exp(-2.0))
    assert float(MultiLabel(2).loss(outputs, targets)) == pytest.approx((first + second) / 2)
    # the second label is not true, so that its weight does not count
    weighted = MultiLabel(2, class_weights=(3.0, 7.0)).loss(outputs, targets)
    assert float(weighted) == pytest.approx((3 * first + second) / 2)


def test_a_rating_costs_the_square_of_its_error_in_halves_of_the_range_and_beyond_delta_a_line() -> None:
    targets, outputs = torch.tensor([0.0, 0.0, -3.0]), torch.tensor([[0.9], [1.5], [3.0]])
    assert Rating(-3.0, 3.0).loss(outputs, targets).tolist() == pytest.approx([0.3**2, 0.5**2, 2.0**2])
    huber = Rating(-3.0, 3.0, huber_delta=0.4).loss(outputs, targets)
    assert huber.tolist() == pytest.approx([0.3**2, 0.4 * (2 * 0.5 - 0.4), 0.4 * (2 * 2.0 - 0.4)])


@given(error=st.floats(-5, 5), delta=st.floats(0.05, 3))
def test_hubers_gradient_never_passes_that_of_its_delta(error: float, delta: float) -> None:
    outputs = torch.tensor([[error]], dtype=torch.float64, requires_grad=True)
    targets = torch.zeros(1, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(Rating(-1.0, 1.0, huber_delta=delta).loss(outputs, targets).sum(), outputs)
    assert float(gradient) == pytest.approx(2 * max(-delta, min(delta, error)), abs=1e-9)


def test_ratings_in_another_unit_cost_the_same() -> None:
    draws = torch.randn(20, 1, generator=torch.Generator().manual_seed(0))
    for unit in (1.0, 1000.0):
        task = Rating(0.0, 2 * unit, huber_delta=0.3)
        cost = task.loss(task.scaled(draws), torch.full((20,), 0.5 * unit))
        assert torch.allclose(cost, Rating(-1.0, 1.0, huber_delta=0.3).loss(draws, torch.full((20,), -0.5)), atol=1e-5)


def test_several_tasks_cost_the_weighted_sum_of_those_that_have_an_answer() -> None:
    task = task_of(run_of(SEVERAL, loss={"task_weights": {"valence": 0.25, "topics": 2.0}}))
    assert isinstance(task, Several)
    outputs = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor(
        [[1, 1.5, 1, 0], [NAN, 1.5, NAN, NAN], [2, NAN, NAN, NAN], [NAN, NAN, 0, 1]], dtype=torch.float32
    )
    feeling = SingleLabel(3).loss(outputs[:, :3], torch.tensor([1, 0, 2, 0]))
    valence = Rating(-3.0, 3.0).loss(outputs[:, 3:4], torch.tensor([1.5, 1.5, 0.0, 0.0]))
    topics = MultiLabel(2).loss(outputs[:, 4:], torch.tensor([[1.0, 0], [0, 0], [0, 0], [0, 1]]))
    expected = [
        feeling[0] + 0.25 * valence[0] + 2 * topics[0],
        0.25 * valence[1],
        feeling[2],
        2 * topics[3],
    ]
    assert torch.allclose(task.loss(outputs, targets), torch.stack(expected))


def test_class_weights_of_several_tasks_are_named_with_their_task() -> None:
    task = task_of(run_of(SEVERAL, loss={"class_weights": {"feeling.joy": 3.0, "topics.war": 0.5}}))
    assert isinstance(task, Several)
    assert task.tasks["feeling"] == SingleLabel(3, class_weights=(3.0, 1.0, 1.0))
    assert task.tasks["topics"] == MultiLabel(2, class_weights=(0.5, 1.0))


@pytest.mark.parametrize(
    ("task", "loss", "said"),
    [
        (SINGLE, {"class_weights": {"anger": 2.0}}, "class_weights: .'anger'. not in the data; allowed: joy, calm"),
        (SEVERAL, {"class_weights": {"joy": 2.0}}, "allowed: feeling.joy"),
        (RATING, {"class_weights": {"joy": 2.0}}, "allowed: none"),
        (SINGLE, {"class_weights": {"joy": 0.0}}, "not above 0; allowed: up to 1e6"),
        (SINGLE, {"class_weights": {"joy": -1.0}}, "not above 0"),
        (SEVERAL, {"task_weights": {"mood": 1.0}}, "task_weights: .'mood'. not in the data; allowed: feeling, valence"),
        (SINGLE, {"task_weights": {"label": 1.0}}, "allowed: none"),
        (SEVERAL, {"task_weights": {"valence": 2e6}}, "up to 1e6"),
        (SINGLE, {"rating": "huber"}, "single-label. has no ratings"),
        (RATING, {"huber_delta": 0.2}, "has no effect; allowed with model.loss.rating"),
    ],
)
def test_a_loss_that_does_not_fit_the_data_is_refused(
    task: Mapping[str, object], loss: Mapping[str, object], said: str
) -> None:
    with pytest.raises(ModelError, match=said):
        task_of(run_of(task, loss=loss))


@pytest.mark.parametrize(
    ("task", "targets"),
    [
        (SINGLE, torch.tensor([0, 1, 2, 1])),
        (RATING, torch.tensor([0.0, 3.0, -3.0, 1.0])),
        (MULTI, torch.tensor([[0.0, 1], [1, 1], [0, 0], [1, 0]])),
        (SEVERAL, torch.tensor([[0, NAN, 1, 0], [NAN, 2, NAN, NAN], [NAN, NAN, 1, 1], [2, -3.0, 0, 0]])),
    ],
    ids=["single", "rating", "multi", "several"],
)
@pytest.mark.parametrize("fusion", ["concat", "average"])
def test_the_loss_of_a_sample_and_its_gradient_are_its_own(
    task: Mapping[str, object], targets: Tensor, fusion: str
) -> None:
    """Alone, or beside others, a sample costs the same and pulls the weights the same way."""
    model = model_of(task, fusion=fusion)
    inputs, present = inputs_of(4)
    parameters = list(model.parameters())
    together = model.loss(model(inputs, present), targets)
    for row in range(4):
        own = {name: values[row : row + 1] for name, values in inputs.items()}
        alone = model.loss(model(own, present[:1]), targets[row : row + 1])
        assert torch.allclose(alone[0], together[row], rtol=1e-5)
        first = torch.autograd.grad(together[row], parameters, retain_graph=True, allow_unused=True)
        second = torch.autograd.grad(alone.sum(), parameters, allow_unused=True)
        for a, b in zip(first, second, strict=True):
            assert (a is None) == (b is None)
            assert a is None or b is None or torch.allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("fusion", ["concat", "average"])
def test_a_task_without_an_answer_gets_no_gradient(fusion: str) -> None:
    """Exactly none, and none that is not a number: the head of the task, and what the encoders learn for it."""
    model = model_of(SEVERAL, fusion=fusion)
    inputs, present = inputs_of(3)
    targets = torch.tensor([[1.0, NAN, NAN, NAN], [0, NAN, NAN, NAN], [2, NAN, NAN, NAN]])
    model.loss(model(inputs, present), targets).sum().backward()  # type: ignore[no-untyped-call]
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        assert bool(parameter.grad.isfinite().all())
        assert bool(parameter.grad.any()) == (task_of_parameter(model, name) in (None, "feeling")), name
    # what the encoders got is what they would get from this task alone
    whole = [parameter.grad for parameter in model.encoders.parameters()]
    model.zero_grad()
    one = SingleLabel(3).loss(model(inputs, present)[:, :3], torch.tensor([1, 0, 2]))
    alone = torch.autograd.grad(one.sum(), list(model.encoders.parameters()))
    for a, b in zip(whole, alone, strict=True):
        assert a is not None
        assert torch.allclose(a, b)


@pytest.mark.parametrize("fusion", ["concat", "average"])
def test_each_task_has_a_head_that_a_site_without_its_answers_does_not_send(fusion: str) -> None:
    model = model_of(SEVERAL, fusion=fusion)
    everything = trainable_names(model, ("left", "right"))
    assert everything == trainable_names(model, ("left", "right"), ("feeling", "valence", "topics"))
    assert everything == tuple(name for name, _ in model.named_parameters())
    some = trainable_names(model, ("left", "right"), ("feeling", "topics"))
    lost = set(everything) - set(some)
    assert lost == {name for name in everything if "valence" in name}
    assert {task_of_parameter(model, name) for name in lost} == {"valence"}
    assert {task_of_parameter(model, name) for name in some} == {None, "feeling", "topics"}
    # of a single task there is but one head
    assert trainable_names(model_of(SINGLE, fusion=fusion), ("left",), ()) == trainable_names(
        model_of(SINGLE, fusion=fusion), ("left",)
    )


def test_heads_of_two_tasks_do_not_begin_alike() -> None:
    pair = {"task": "several", "tasks": {name: {"kind": "single-label", "labels": ("a", "b")} for name in ("x", "y")}}
    weights = dict(model_of(pair).named_parameters())
    assert not torch.equal(weights["head.x.linear.weight"], weights["head.y.linear.weight"])
    assert not weights["head.x.linear.bias"].any()


def test_a_head_without_weights_does_not_answer_several_tasks() -> None:
    with pytest.raises(ModelError, match="there are 3 tasks; allowed: a head with weights of its own for each task"):
        model_of(SEVERAL, head="identity", width=6)


def test_a_task_whose_name_torch_needs_is_refused() -> None:
    with pytest.raises(ModelError, match=r"tasks \['keys'\] have names that torch needs"):
        model_of({"task": "several", "tasks": {"keys": TASKS["valence"], "mood": TASKS["feeling"]}})


@pytest.mark.parametrize(("task", "outputs"), [(SINGLE, 3), (RATING, 1), (MULTI, 2), (SEVERAL, 6)])
@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_a_model_gives_as_many_numbers_as_its_task_asks_for(
    task: Mapping[str, object], outputs: int, head: str
) -> None:
    run = run_of(task, head=head)
    asked = task_of(run)
    assert isinstance(asked, Task)
    assert asked.num_outputs == outputs
    assert build_model(run)(*inputs_of(2)).shape == (2, outputs)


def test_ratings_among_several_tasks_are_in_the_unit_of_the_data() -> None:
    task = task_of(
        run_of({"task": "several", "tasks": {**TASKS, "price": {"kind": "rating", "rating_range": (0, 10)}}})
    )
    scaled = task.scaled(torch.ones(1, 7))
    assert scaled.tolist() == [[1, 1, 1, 3, 1, 1, 10]]
    shares = task.log_probabilities(torch.zeros(1, 7))
    assert shares[0].tolist() == pytest.approx([-math.log(3)] * 3 + [0, 0, 0, 0])
