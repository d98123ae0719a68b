"""Recurrent encoders: what stands behind a text's end changes nothing, and gradients by hand hold with weighted steps."""

import pytest
import torch

from shared.model.encoders import build_encoder
from shared.model.encoders.recurrent import FramesLstm, LinearLstm, LstmOptions
from tests.shared.example_runs import example_run, small


def test_a_padded_text_has_the_state_of_the_text() -> None:
    encoder = build_encoder(example_run({"words": small("embedding-lstm")}), "words")

    torch.testing.assert_close(encoder(torch.tensor([[3, 5, 2, 0, 0, 0]])), encoder(torch.tensor([[3, 5, 2]])))


def test_the_order_of_words_matters() -> None:
    encoder = build_encoder(example_run({"words": small("embedding-lstm")}), "words")

    forwards, backwards = encoder(torch.tensor([[3, 5, 2], [2, 5, 3]])).detach()

    assert float((forwards - backwards).norm()) > 0.01 * float(forwards.norm())


def test_with_steps_of_different_weight_gradients_by_hand_are_those_of_single_operations() -> None:
    model = LinearLstm(3, hidden=4).double()
    draws = torch.Generator().manual_seed(0)
    values = torch.randn(2, 5, 3, dtype=torch.float64, generator=draws).requires_grad_()
    shares = torch.tensor([[0.5, 0.25, 0.25, 0.0, 0.0], [0.0, 0.1, 0.2, 0.3, 0.4]], dtype=torch.float64)
    weights = torch.linspace(-1, 2, 8, dtype=torch.float64).view(2, 4)
    asked = [values, *model.parameters()]

    (mine, mine_found), (theirs, theirs_found) = (
        (mean, torch.autograd.grad((mean * weights).sum(), asked))
        for mean in (model(values, shares), model._step_by_step(values, shares))
    )

    torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-14)
    for one, other in zip(mine_found, theirs_found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-14)
    assert not mine_found[0][0, 3:].any()
    assert bool(mine_found[0][1].any(dim=1).all())


def test_equal_weights_are_the_plain_mean() -> None:
    model, values = LinearLstm(3, hidden=4), torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))

    torch.testing.assert_close(model(values, torch.full((2, 5), 0.2)), model(values))


@pytest.mark.parametrize("length", [1, 4, 5])
def test_frames_that_fill_no_whole_step_are_averaged_too(length: int) -> None:
    encoder = FramesLstm(3, width=2, options=LstmOptions(hidden=4, frames_per_step=4, normalise=False))
    frames = torch.ones(2, 3, length)

    moved = encoder(torch.cat([frames[:, :, :-1], frames[:, :, -1:] + 1], dim=2)) - encoder(frames)

    assert float(moved.detach().abs().min()) > 1e-5
