"""Tests of client/arithmetic.py: where and how precisely a cohort is computed, and that nothing else is rounded."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from client.arithmetic import PLAIN, Arithmetic
from client.cohort_training import Member, train_cohort
from client.gradient.bookkeeping import BookkeepingEngine
from client.gradient.layers.base import FormedLayer, WatchedLayer
from client.gradient.layers.linear import LinearLayer
from shared.errors import ConfigError
from shared.privacy.mechanism import Clip
from tests.client.cohorts import How, member, one_vector, rows, small_cohort
from tests.client.layered import Chain, names_of
from tests.client.toy import plan_of, training_settings

HAS_CARD = torch.cuda.is_available()


@pytest.mark.parametrize(
    ("device", "precision", "said"),
    [
        ("tpu", "float32", "allowed: cpu, cuda"),
        ("nonsense", "float32", "allowed: cpu, cuda"),
        ("cpu", "tf32", "--device cuda"),
        ("cpu", "half", "float32, tf32, bf16"),
    ],
)
def test_what_is_not_offered_is_refused_with_what_is(device: str, precision: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Arithmetic(device=device, precision=precision)


@pytest.mark.skipif(HAS_CARD, reason="there is a card here")
def test_a_card_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match="no such card"):
        Arithmetic(device="cuda")


def test_nothing_is_rounded_that_nobody_asked_to_round() -> None:
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    try:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        with PLAIN.in_force(), PLAIN.narrowed():
            assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == (False, False)
            assert not torch.is_autocast_enabled("cpu")
        assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == (True, True)
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def test_bf16_holds_for_as_long_as_it_is_in_force() -> None:
    with Arithmetic(precision="bf16").narrowed():
        assert torch.get_autocast_dtype("cpu") == torch.bfloat16
        assert torch.is_autocast_enabled("cpu")
    assert not torch.is_autocast_enabled("cpu")


def network() -> Chain:
    """A picture of 6 x 6 numbers through two convolutions, a norm and two linear layers."""
    torch.manual_seed(0)
    return Chain(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.GroupNorm(2, 8),
        nn.ReLU(),
        nn.Conv2d(8, 4, 3),
        nn.Flatten(),
        nn.Linear(64, 5),
        nn.Tanh(),
        nn.Linear(5, 1),
    )


def updates(model: nn.Module, members: list[Member], *, arithmetic: Arithmetic) -> list[Tensor]:
    names = names_of(model)
    how = How(names=names, training=training_settings(), round_number=1, rounds=1, modality_dropout=0.0)
    trained = train_cohort(model, members, **how, arithmetic=arithmetic)
    return [one_vector(each, names).double() for each in trained]


def pictures(*, rate: float, noise: float) -> list[Member]:
    plan = plan_of(sample_rate=rate, noise_multiplier=noise, steps_per_round=1)
    return [member(rows(6, 1, 6, 6, seed=site), replace(plan, clip_norm=0.1 + site), site=site) for site in range(3)]


def test_bf16_gives_about_what_float32_gives() -> None:
    exact, rounded = (
        updates(network(), pictures(rate=1.0, noise=0.0), arithmetic=each)
        for each in (PLAIN, Arithmetic(precision="bf16"))
    )

    for wanted, found in zip(exact, rounded, strict=True):
        assert 1e-6 < float((found - wanted).norm() / wanted.norm()) < 0.15


def test_in_bf16_a_unit_still_moves_the_sum_by_at_most_the_clip_norm() -> None:
    """One row a site, much longer than its norm: what is left of it is the norm, to float32 and not to bfloat16."""
    plan = plan_of(sample_rate=1.0, noise_multiplier=0.0, steps_per_round=1)
    alone = [
        member(rows(1, 1, 6, 6, seed=site), replace(plan, clip_norm=1e-3 * (1 + site)), site=site) for site in range(3)
    ]
    step = training_settings().learning_rate / plan.expected_batch_size
    found = updates(network(), alone, arithmetic=Arithmetic(precision="bf16"))

    for site, update in enumerate(found):
        assert float(update.norm()) == pytest.approx(step * 1e-3 * (1 + site), rel=1e-3)


def test_in_tf32_a_unit_still_moves_the_sum_by_at_most_the_clip_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was measured in full is summed in full: no card may round the product that clips."""
    seen, wanted = list[bool](), torch.backends.cuda.matmul.allow_tf32
    for kind in (FormedLayer, LinearLayer):
        real = kind.sum_into

        def noted(self: WatchedLayer, *given: object, real: Callable[..., None] = real, **named: object) -> None:
            seen.append(torch.backends.cuda.matmul.allow_tf32)
            real(self, *given, **named)

        monkeypatch.setattr(kind, "sum_into", noted)
    model, batch = network(), rows(4, 1, 6, 6)
    try:
        torch.backends.cuda.matmul.allow_tf32 = True
        BookkeepingEngine().clipped_sum(model, batch, names=names_of(model), clip=Clip(0.1))
        assert torch.backends.cuda.matmul.allow_tf32
    finally:
        torch.backends.cuda.matmul.allow_tf32 = wanted
    assert len(seen) == 5
    assert not any(seen)


@pytest.mark.skipif(not HAS_CARD, reason="there is no card here")
def test_a_card_gives_what_the_processor_gives() -> None:
    model = Chain(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1))
    on_processor, on_card = (
        updates(model, small_cohort(5), arithmetic=each) for each in (PLAIN, Arithmetic(device="cuda"))
    )

    for wanted, found in zip(on_processor, on_card, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
