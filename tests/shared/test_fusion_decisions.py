"""Fusions of answers: votes are counted, ties broken, learned weights add up to one over the modalities present."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from shared.config import PartSettings
from shared.errors import ModelError
from shared.model.registry import Fusion, FusionPlace, fusion_registry
from shared.model.tasks import MultiLabel, Rating, Several, SingleLabel, Task
from shared.settings import Option

MODALITIES = ("photo", "words", "sound", "motion")
RATING = Rating(lowest=-3.0, highest=3.0)
EVERYTHING = torch.ones(1, 4, dtype=torch.bool)


def build(name: str, *, task: Task | None = None, **options: Option) -> Fusion:
    place = FusionPlace(modalities=MODALITIES, width=3, task=task or SingleLabel(num_outputs=3))
    return fusion_registry.build(PartSettings(name=name, options=options), place=place).eval()


def logits(*probabilities: tuple[float, ...]) -> Tensor:
    return torch.tensor(probabilities).log()[None]


def test_the_majority_wins_over_the_surest() -> None:
    answers = logits((0.5, 0.4, 0.1), (0.5, 0.4, 0.1), (0.01, 0.98, 0.01), (0.6, 0.3, 0.1))

    assert int(build("vote")(answers, EVERYTHING).argmax()) == 0
    assert int(build("average")(answers, EVERYTHING).argmax()) == 1


def test_a_tie_is_broken_by_the_mean_probability() -> None:
    answers = logits((0.5, 0.4, 0.1), (0.5, 0.4, 0.1), (0.1, 0.8, 0.1), (0.3, 0.6, 0.1))

    assert int(build("vote")(answers, EVERYTHING).argmax()) == 1
    assert int(build("vote")(answers.flip(1), EVERYTHING).argmax()) == 1


def test_the_outputs_of_a_vote_are_shares_of_votes() -> None:
    answers = logits((0.5, 0.4, 0.1), (0.5, 0.4, 0.1), (0.1, 0.8, 0.1), (0.6, 0.2, 0.2))
    mean = torch.tensor([1.7, 1.8, 0.5]) / 4

    share = build("vote")(answers, EVERYTHING).softmax(dim=1)[0]

    torch.testing.assert_close(share, (torch.tensor([3.0, 1.0, 0.0]) + mean / 2) / 4.5)


@settings(max_examples=50, deadline=None)
@given(
    numbers=st.lists(st.floats(-20, 20, width=32), min_size=12, max_size=12),
    mask=st.lists(st.booleans(), min_size=4, max_size=4),
)
def test_no_class_with_fewer_votes_ever_wins(numbers: list[float], mask: list[bool]) -> None:
    answers, present = torch.tensor(numbers).reshape(1, 4, 3), torch.tensor([mask])
    votes = torch.bincount(answers[0, mask].argmax(dim=1), minlength=3)

    chosen = int(build("vote")(answers, present).argmax())

    assert not any(mask) or votes[chosen] == votes.max()


def test_each_label_is_voted_on_by_itself() -> None:
    answers = torch.tensor([[[1.0, -9.0, 1.0], [1.0, -9.0, -1.0], [-9.0, 9.0, 2.0], [1.0, 8.0, -1.0]]])
    three = torch.tensor([[True, True, True, False]])

    voted = build("vote", task=MultiLabel(num_outputs=3))
    assert (voted(answers, three) > 0).tolist() == [[True, False, True]]
    # two votes against two on the second label and the third: the mean probability is below a half, and above
    assert (voted(answers, EVERYTHING) > 0).tolist() == [[True, False, True]]
    assert (voted(-answers, EVERYTHING) > 0).tolist() == [[False, True, False]]


@pytest.mark.parametrize(
    ("mask", "expected"),
    [([1, 1, 1, 1], 1.5), ([1, 1, 1, 0], 1.0), ([1, 0, 0, 1], 4.5), ([0, 0, 1, 0], -7.0), ([0, 0, 0, 0], 0.0)],
)
def test_ratings_are_voted_on_by_their_median(mask: list[int], expected: float) -> None:
    answers = torch.tensor([[[1.0], [2.0], [-7.0], [8.0]]])
    voted = build("vote", task=RATING)(answers, torch.tensor([mask], dtype=torch.bool))
    assert voted.tolist() == [[expected]]


def test_each_of_several_tasks_is_voted_on_by_itself() -> None:
    single = SingleLabel(num_outputs=3)
    task = Several(tasks={"a": single, "b": RATING}, num_targets={"a": 1, "b": 1}, weights={"a": 1.0, "b": 1.0})
    draws = torch.Generator().manual_seed(0)
    answers, present = torch.randn(6, 4, 4, generator=draws), torch.rand(6, 4, generator=draws) < 0.6

    voted = build("vote", task=task)(answers, present)

    torch.testing.assert_close(voted[:, :3], build("vote", task=single)(answers[:, :, :3], present))
    torch.testing.assert_close(voted[:, 3:], build("vote", task=RATING)(answers[:, :, 3:], present))


def test_a_vote_is_trained_as_an_average() -> None:
    answers = torch.randn(5, 4, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    present = EVERYTHING.expand(5, 4)

    voted, averaged = (build(name).train()(answers, present) for name in ("vote", "average"))

    assert torch.equal(voted, averaged)
    assert voted.requires_grad


def test_a_task_without_votes_is_refused() -> None:
    class Odd:
        num_outputs = 3

        def scaled(self, outputs: Tensor) -> Tensor:
            return outputs

        log_probabilities = scaled

        def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
            return outputs[:, 0]

    with pytest.raises(ModelError, match="nothing to vote on for Odd; allowed: tasks single-label"):
        build("vote", task=Odd())


@pytest.mark.parametrize("of", ["log-probabilities", "logits"])
def test_learned_weights_start_as_an_average_and_follow_their_numbers(of: str) -> None:
    answers = torch.randn(1, 4, 3, generator=torch.Generator().manual_seed(0))
    present = torch.tensor([[True, True, False, True]])
    fusion, likely = (
        build("weighted-average", of=of),
        answers[0].log_softmax(dim=1) if of == "log-probabilities" else answers[0],
    )

    torch.testing.assert_close(fusion(answers, present), build("average", of=of)(answers, present))

    with torch.no_grad():
        for modality, weight in zip(MODALITIES, (0.5, 0.25, 7.0, 0.25), strict=True):
            fusion.get_parameter(f"weights.score.{modality}.weight").fill_(torch.tensor(weight).log())
    torch.testing.assert_close(fusion(answers, present)[0], likely[0] / 2 + likely[1] / 4 + likely[3] / 4)
