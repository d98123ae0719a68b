"""Tests of client/arithmetic.py: where and how precisely a cohort is computed, and that nothing else is rounded."""

import pytest
import torch

from client.arithmetic import PLAIN, Arithmetic
from shared.errors import ConfigError

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
        with PLAIN.in_force():
            assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == (False, False)
            assert not torch.is_autocast_enabled("cpu")
        assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == (True, True)
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def test_bf16_holds_for_as_long_as_it_is_in_force() -> None:
    with Arithmetic(precision="bf16").in_force():
        assert torch.get_autocast_dtype("cpu") == torch.bfloat16
        assert torch.is_autocast_enabled("cpu")
    assert not torch.is_autocast_enabled("cpu")
