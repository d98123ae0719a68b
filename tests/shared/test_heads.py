"""Heads and tasks: one answer a sample, on the scale of the task, with a loss of its own."""

import pytest
import torch
from torch import nn

from shared.config import PartSettings
from shared.errors import ModelError
from shared.model import heads  # noqa: F401  # enters them in the registry
from shared.model.registry import HeadPlace, head_registry
from shared.model.tasks import Rating, SingleLabel, task_of
from tests.shared.example_runs import example_run, small

PLACE = HeadPlace(inputs=4, outputs=3)


@pytest.mark.parametrize("name", ["linear", "mlp"])
def test_a_new_head_favours_no_class(name: str) -> None:
    head = head_registry.build(PartSettings(name=name), place=PLACE)
    assert head(torch.ones(5, 4)).shape == (5, 3)
    assert head.get_parameter("linear.bias").count_nonzero() == 0


def test_the_identity_head_wants_an_embedding_as_wide_as_the_answer() -> None:
    head = head_registry.build(PartSettings(name="identity"), place=HeadPlace(inputs=3, outputs=3))
    fused = torch.randn(2, 3)

    assert torch.equal(head(fused), fused)
    with pytest.raises(ModelError, match=r"embedding_width is 4; allowed: 3"):
        head_registry.build(PartSettings(name="identity"), place=PLACE)


def test_the_task_follows_from_the_data() -> None:
    assert task_of(example_run({"vector": small("linear")})) == SingleLabel(num_outputs=3)
    assert task_of(example_run({"vector": small("linear")}, rating=True)) == Rating(lowest=-3.0, highest=3.0)


def test_the_loss_of_a_class_is_the_cross_entropy_of_each_sample() -> None:
    outputs = torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    losses = SingleLabel(num_outputs=3).loss(outputs, torch.tensor([0, 2]))

    expected = [nn.functional.cross_entropy(outputs[row], torch.tensor(label)) for row, label in ((0, 0), (1, 2))]
    torch.testing.assert_close(losses, torch.stack(expected))


def test_a_rating_starts_in_the_middle_of_its_range_and_may_reach_both_ends() -> None:
    task = Rating(lowest=1.0, highest=5.0)
    ratings = task.scaled(torch.tensor([[-1.0], [0.0], [1.0]]))

    torch.testing.assert_close(ratings, torch.tensor([[1.0], [3.0], [5.0]]))
    torch.testing.assert_close(task.loss(ratings, torch.tensor([1.0, 4.0, 1.0])), torch.tensor([0.0, 0.25, 4.0]))


def test_the_loss_of_a_rating_does_not_depend_on_its_unit() -> None:
    outputs, targets = torch.tensor([[0.3], [-0.2]]), torch.tensor([2.0, 4.0])
    stars, percent = Rating(lowest=0.0, highest=5.0), Rating(lowest=0.0, highest=100.0)

    torch.testing.assert_close(
        stars.loss(stars.scaled(outputs), targets), percent.loss(percent.scaled(outputs), targets * 20)
    )
