"""All fusions: absent modalities have no influence and no gradient, rows do not see each other, engines can follow."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from client.gradient.stacked import why_not_stacked
from shared.config import PartSettings
from shared.model.fusion.present import weights_of
from shared.model.multimodal import build_model
from shared.model.registry import Fusion, FusionPlace, fusion_registry
from shared.model.tasks import MultiLabel, Rating, Several, SingleLabel, Task
from tests.shared.example_runs import FUSIONS, example_run, small

MODALITIES, WIDTH = ("photo", "words", "sound"), 4
TASKS: dict[str, Task] = {
    "single": SingleLabel(num_outputs=4),
    "multi": MultiLabel(num_outputs=4),
    "several": Several(
        tasks={"mood": SingleLabel(num_outputs=3), "size": Rating(lowest=0.0, highest=1.0)},
        num_targets={"mood": 1, "size": 1},
        weights={"mood": 1.0, "size": 1.0},
    ),
}
CASES = [(fusion, "single") for fusion in FUSIONS] + [
    (fusion, task) for fusion in ("average", "weighted-average", "vote") for task in ("multi", "several")
]
number = st.one_of(st.floats(-5, 5, width=32), st.sampled_from([0.0, 1e4, -1e4]))
values = st.lists(number, min_size=5 * 3 * WIDTH, max_size=5 * 3 * WIDTH)
masks = st.lists(st.booleans(), min_size=5 * 3, max_size=5 * 3)


def fusion_of(name: str, task: str) -> Fusion:
    """With weights that are equal nowhere."""
    place = FusionPlace(modalities=MODALITIES, width=WIDTH, task=TASKS[task])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        fusion = fusion_registry.build(PartSettings(name=name), place=place)
        with torch.no_grad():
            for parameter in fusion.parameters():
                parameter.add_(0.3 * torch.randn(parameter.shape))
    return fusion


def rows(numbers: list[float], mask: list[bool]) -> tuple[Tensor, Tensor]:
    return torch.tensor(numbers).reshape(5, 3, WIDTH), torch.tensor(mask).reshape(5, 3)


@settings(max_examples=8, deadline=None)
@pytest.mark.parametrize(("name", "task"), CASES)
@given(numbers=values, mask=masks, is_training=st.booleans())
def test_what_is_absent_has_no_influence_whatever_it_is(
    name: str, task: str, numbers: list[float], mask: list[bool], is_training: bool
) -> None:
    embeddings, present = rows(numbers, mask)
    fusion = fusion_of(name, task).train(is_training)
    garbage = torch.where(present[:, :, None], embeddings, embeddings.flip(0) * 3 + 7)

    fused = fusion(embeddings, present)

    assert fused.shape == (5, WIDTH)
    assert fused.isfinite().all()
    assert torch.equal(fusion(garbage, present), fused)


@settings(max_examples=8, deadline=None)
@pytest.mark.parametrize(("name", "task"), CASES)
@given(numbers=values, mask=masks)
def test_what_is_absent_gets_no_gradient(name: str, task: str, numbers: list[float], mask: list[bool]) -> None:
    embeddings, present = rows(numbers, mask)
    embeddings.requires_grad_()
    fusion = fusion_of(name, task)

    torch.autograd.backward((fusion(embeddings, present) * torch.arange(1.0, WIDTH + 1)).sum())

    assert embeddings.grad is not None
    assert embeddings.grad.isfinite().all()
    assert embeddings.grad[~present].count_nonzero() == 0
    for key, parameter in fusion.named_parameters():
        if parameter.grad is None:
            continue
        assert parameter.grad.isfinite().all()
        modality = [place for place, modality in enumerate(MODALITIES) if modality in key.split(".")]
        if modality and not present[:, modality[0]].any():
            assert parameter.grad.count_nonzero() == 0


@settings(max_examples=5, deadline=None)
@pytest.mark.parametrize(("name", "task"), CASES)
@given(numbers=values, mask=masks, order=st.permutations(range(5)), is_training=st.booleans())
def test_the_order_of_samples_does_not_matter(
    name: str, task: str, numbers: list[float], mask: list[bool], order: list[int], is_training: bool
) -> None:
    embeddings, present = rows(numbers, mask)
    fusion = fusion_of(name, task).train(is_training)

    shuffled = fusion(embeddings[order], present[order])

    torch.testing.assert_close(shuffled, fusion(embeddings, present)[order], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_book_keeping_can_follow_every_fusion(fusion: str) -> None:
    model = build_model(example_run({"photo": small("cnn"), "words": small("embedding-mean")}, fusion=fusion))
    assert why_not_stacked(model, names=[name for name, _ in model.named_parameters()]) is None


def test_weights_add_up_to_one_where_anything_is_present_and_to_nothing_elsewhere() -> None:
    present = torch.tensor([[True, True, True], [True, False, True], [False, False, False]])
    weights = weights_of(torch.tensor([0.5, -3.0, 200.0]).expand(3, 3), present)

    torch.testing.assert_close(weights.sum(dim=1), torch.tensor([1.0, 1.0, 0.0]))
    assert weights[~present].count_nonzero() == 0
