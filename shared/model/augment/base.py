"""Base: what all augmentations share.

in        values and keys of a batch
out       changed values in training, the same ones in evaluation
relies on sample_draws.py
"""

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor, nn

from shared.errors import ModelError
from shared.model.sample_draws import normal, uniform


class Augmentation(nn.Module, ABC):
    """Changes each sample by numbers of its own key; has no weights."""

    needs_keys = True

    def __init__(self, *, modality: str) -> None:
        super().__init__()
        self.modality = modality

    def forward(self, values: Num[Tensor, "B ..."], keys: Int[Tensor, "B"] | None) -> Num[Tensor, "B ..."]:
        """The values as this step sees them.

        Raises:
            ModelError: the batch has no keys, in training.
        """
        if not self.training:
            return values
        if keys is None:
            raise ModelError("the model augments values, and its batch has no keys; draw them by `with_keys`")
        with torch.no_grad():
            return self.changed(values, keys)

    @abstractmethod
    def changed(self, values: Num[Tensor, "B ..."], keys: Int[Tensor, "B"]) -> Num[Tensor, "B ..."]:
        """The values, each changed by its key."""

    def spread_around(self, keys: Tensor, middle: float, by: float, *, what: str) -> Float[Tensor, "B"]:
        """A number for each sample, evenly drawn up to `by` away from the middle."""
        return middle + by * (2 * self.chances(keys, what=what)[:, 0] - 1)

    def chances(self, keys: Tensor, *, what: str, num: int = 1) -> Float[Tensor, "B N"]:
        """Numbers in (0, 1) for each sample; modalities and uses do not share any."""
        return uniform(keys, num=num, purpose=f"{self.modality} {what}")

    def noise(self, values: Float[Tensor, "B ..."], keys: Tensor, *, std: float) -> Float[Tensor, "B ..."]:
        """Gaussian numbers in the shape of the values."""
        numbers = normal(keys, num=values[0].numel(), purpose=f"{self.modality} noise")
        return std * numbers.view(values.shape).to(values.dtype)


def stretch(
    keys_start: Float[Tensor, "B"], keys_length: Float[Tensor, "B"], *, places: int, most: float
) -> Float[Tensor, "B places"]:
    """1 inside one stretch of each sample, of a length up to the share `most` of all places, else 0.

    Args:
        keys_start: in (0, 1), where it begins among the places at which it fits.
        keys_length: in (0, 1), its length as a share of the longest.
    """
    length = keys_length * most * places
    start = keys_start * (places - length)
    middle = torch.arange(places, device=start.device) + 0.5
    inside = (middle >= start[:, None]) & (middle < (start + length)[:, None])
    return inside.to(start.dtype)
