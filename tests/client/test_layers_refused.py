"""Tests of client/gradient/: layers and uses of weights that cannot be followed are refused, and named."""

from typing import cast

import pytest
import torch
from torch import Tensor, nn

from client.gradient import choose_engine
from client.gradient.bookkeeping import BookkeepingEngine
from client.gradient.reference import ReferenceEngine
from client.gradient.stacked import Stacked, why_not_stacked
from shared.errors import ModelError, PrivacyError
from shared.model.recurrence import MeanState, run_through, site_weights
from shared.privacy.mechanism import Clip
from tests.client.layered import Chain, batch_of, names_of
from tests.client.test_layers import Sites, assert_alike, part, rows


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        (nn.Bilinear(2, 2, 2), "Bilinear is none of"),
        (nn.BatchNorm1d(2), "BatchNorm1d is none of"),
        (nn.Conv1d(1, 1, 3, padding="same"), "pads with 'zeros', 'same'"),
        (nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect"), "pads with 'reflect'"),
        (nn.Embedding(3, 2, max_norm=1.0), "max_norm"),
        (nn.Embedding(3, 2, scale_grad_by_freq=True), "scale_grad_by_freq"),
        (nn.Embedding(3, 2, sparse=True), "sparse"),
        (nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)), "is none of"),
    ],
)
def test_layers_that_cannot_be_followed_are_named(layer: nn.Module, said: str) -> None:
    model = Chain(layer)
    why = why_not_stacked(model, names=names_of(model))

    assert why is not None
    assert said in why
    with pytest.raises(ModelError, match="functional"):
        Stacked(model, names=names_of(model))


def test_a_layer_with_hooks_is_not_followed() -> None:
    model = Chain(nn.Linear(2, 2))
    assert why_not_stacked(model, names=names_of(model)) is None
    handle = model.layers[0].register_forward_hook(lambda *_: None)
    assert "has hooks" in (why_not_stacked(model, names=names_of(model)) or "")
    handle.remove()
    assert why_not_stacked(model, names=names_of(model)) is None


class CalledByName(Chain):
    """Hands a layer its input under its name."""

    def forward(self, inputs: dict[str, Tensor], present: Tensor) -> Tensor:
        outputs: Tensor = self.layers[0](input=inputs["x"])
        return outputs


def test_a_layer_called_by_name_is_refused_and_left_to_others_by_auto() -> None:
    model, batch = CalledByName(nn.Linear(4, 2)).double(), batch_of(rows(4))
    names, clip = names_of(model), Clip(0.1)
    with pytest.raises(ModelError, match=r"called with 0 values and \['input'\]"):
        BookkeepingEngine().clipped_sum(model, batch, names=names, clip=clip)

    wanted, found = (
        engine.clipped_sum(model, batch, names=names, clip=clip).sums
        for engine in (ReferenceEngine(), choose_engine("auto", model))
    )
    for name in names:
        assert_alike(found[name], wanted[name])


class Recurrent(Chain):
    """Takes the weights of a Linear to compute with apart; whether the Linear is called as well can be chosen."""

    notes = True

    def forward(self, inputs: dict[str, Tensor], present: Tensor) -> Tensor:
        driven = self.layers[0](inputs["x"])
        recurrent = cast("nn.Linear", self.layers[1])
        course = run_through(driven, weights=site_weights(recurrent))
        again = recurrent(course.before) if self.notes else torch.zeros_like(driven)
        mean: Tensor = MeanState.apply(driven, again, course, None)  # type: ignore[no-untyped-call]
        return mean


def test_site_weights_whose_use_nobody_notes_are_refused() -> None:
    model, batch = Recurrent(nn.Linear(4, 8), nn.Linear(2, 8, bias=False)).double(), batch_of(rows(3, 4))
    BookkeepingEngine().clipped_sum(model, batch, names=names_of(model), clip=Clip(0.1))
    model.notes = False
    with pytest.raises(ModelError, match=r"parameters \['layers.1'\] are used from outside their layer"):
        BookkeepingEngine().clipped_sum(model, batch, names=names_of(model), clip=Clip(0.1))


def test_rows_that_do_not_fill_the_units_are_refused() -> None:
    sites = Sites("linear", rows_per_unit=1)
    sites.batch = part(sites.batch, [0, 1, 2])
    with pytest.raises(PrivacyError, match="a batch of 3 rows; allowed: 3 times 3"):
        sites.clipped(per_layer=False)
