"""Present: what fusions share: a layer for each modality, and what counts only where a modality is.

in        embeddings or answers [B, M, D] and present [B, M]
out       the same without what is absent, and weights over the rest
relies on PerModality, so that a site without a modality neither trains nor sends its part of a fusion
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from shared.model.parameters import PerModality, apply_each
from shared.model.registry import FusionPlace
from shared.settings import Settings


class PlainOptions(Settings):
    """None."""


def linear_each(place: FusionPlace, *, outputs: int | None = None) -> PerModality:
    """A linear layer a modality, from an embedding to `outputs` numbers, or to as many as it has."""
    return PerModality({name: nn.Linear(place.width, outputs or place.width) for name in place.modalities})


def only_present(
    values: Float[Tensor, "B M *D"], present: Bool[Tensor, "B M"], *, neutral: float = 0.0
) -> Float[Tensor, "B M *D"]:
    """The values where a modality is, elsewhere a number that says nothing: 0 of a sum, 1 of a product."""
    return values.masked_fill(~present.reshape(*present.shape, *(1,) * (values.ndim - 2)), neutral)


def weights_of(scores: Float[Tensor, "B M"], present: Bool[Tensor, "B M"]) -> Float[Tensor, "B M"]:
    """Weights above 0 that add up to 1 over the modalities present; all 0 where there is none."""
    # The lowest finite number and not -inf: a sample without any modality gives equal weights, never NaN.
    kept = scores.masked_fill(~present, torch.finfo(scores.dtype).min)
    return kept.softmax(dim=1).masked_fill(~present, 0.0)


class LearnedWeights(nn.Module):
    """A number a modality, the same for all samples, equal at the start: weights over the modalities a sample has.

    Each is the only weight of a linear layer that reads a 1, so that every engine has its gradient sample by sample.
    """

    def __init__(self, modalities: tuple[str, ...]) -> None:
        super().__init__()
        self.score = PerModality({name: nn.Linear(1, 1, bias=False) for name in modalities})
        for parameter in self.score.parameters():
            nn.init.zeros_(parameter)

    def forward(self, values: Float[Tensor, "B M D"], present: Bool[Tensor, "B M"]) -> Float[Tensor, "B D"]:
        """The weighted mean of the values that are there; zeros where there is none."""
        scores = apply_each(self.score, values.new_ones(*present.shape, 1))[:, :, 0]
        return (weights_of(scores, present)[:, :, None] * only_present(values, present)).sum(dim=1)
