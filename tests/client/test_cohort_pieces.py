"""Tests of client/cohort_training.py: how a cohort is cut into pieces and shared out, and what is left of it."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from client import cohort_training
from client.cohort_training import train_cohort
from shared.errors import ModelError
from tests.client.cohorts import How, member, one_vector, rows, small_cohort, together
from tests.client.layered import Chain, names_of
from tests.client.test_bookkeeping import ScaledByAWeight
from tests.client.toy import plan_of, training_settings


@pytest.fixture(autouse=True)
def _same_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


class Forgetful(Chain):
    """Drops numbers by torch's own generator."""

    def forward(self, inputs: dict[str, Tensor], present: Tensor) -> Tensor:
        return nn.functional.dropout(super().forward(inputs, present), 0.5, self.training)


def test_a_model_that_draws_from_torchs_generator_is_left_to_training_alone() -> None:
    with pytest.raises(ModelError, match="torch's generator"):
        together(Forgetful(nn.Linear(4, 3)), small_cohort(3))


@pytest.mark.parametrize("numbers_at_once", [1, 200, 1 << 19])
@pytest.mark.parametrize("most", [2, 64])
@pytest.mark.parametrize("threads", [1, 2])
def test_pieces_and_threads_change_nothing(
    numbers_at_once: int, most: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def model() -> Chain:
        return Chain(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))

    wanted = together(model(), small_cohort(9))
    monkeypatch.setattr(cohort_training, "NUMBERS_AT_ONCE", numbers_at_once)
    monkeypatch.setattr(cohort_training, "MOST_SITES_AT_ONCE", most)
    torch.set_num_threads(threads)
    found = together(model(), small_cohort(9))

    assert torch.get_num_threads() == threads
    for each, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(each, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("members", "workers", "lengths"), [(100, 2, [25] * 4), (10, 1, [10]), (10, 2, [5, 5])])
def test_workers_have_as_many_pieces_of_the_same_size(members: int, workers: int, lengths: list[int]) -> None:
    costs = [cohort_training.NUMBERS_AT_ONCE // 30] * members

    pieces = cohort_training._pieces(range(members), costs=costs, larger=1, workers=workers)

    assert [len(piece) for piece in pieces] == lengths
    assert [place for piece in pieces for place in piece] == list(range(members))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("fails", [False, True])
def test_the_model_comes_back_as_it_was(threads: int, fails: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cohort_training, "NUMBERS_AT_ONCE", 1)
    torch.set_num_threads(threads)
    kind = ScaledByAWeight if fails else Chain
    model = kind(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3)).eval()
    model.layers[2].requires_grad_(False)
    model.layers[1].train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    global_state = torch.get_rng_state()

    def facts() -> list[object]:
        return [
            *((module.training, set(vars(module))) for module in model.modules()),
            *((each.requires_grad, each.grad, set(vars(each))) for each in model.parameters()),
        ]

    found = facts()
    if fails:
        with pytest.raises(ModelError, match="used from outside"):
            together(model, small_cohort(4))
    else:
        together(model, small_cohort(4))

    assert facts() == found
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), global_state)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_second_round_starts_from_the_weights_the_model_has_then() -> None:
    """Copies for threads are kept from round to round, and share the model's weights, frozen ones too."""
    model, plan = Chain(nn.Linear(4, 3), nn.Linear(3, 3)), plan_of(noise_multiplier=0.0, clip_norm=1e6, sample_rate=1.0)

    def updates(of: nn.Module, names: tuple[str, ...]) -> list[Tensor]:
        how = How(names=names, training=training_settings(), round_number=1, rounds=1, modality_dropout=0.0)
        sites = [member(rows(3, 4, seed=site), plan, site=site) for site in range(2)]
        return [one_vector(each, names) for each in train_cohort(of, sites, **how)]

    for names in (("layers.1.weight",), names_of(model)):
        before = updates(model, names)
        with torch.no_grad():
            model.get_parameter("layers.0.weight").add_(1.0)
        fresh = Chain(nn.Linear(4, 3), nn.Linear(3, 3))
        fresh.load_state_dict(model.state_dict())

        for first, second, wanted in zip(before, updates(model, names), updates(fresh, names), strict=True):
            assert not torch.equal(first, second)
            assert torch.equal(second, wanted)
