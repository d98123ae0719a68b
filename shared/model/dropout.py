"""Dropout: numbers of an embedding left out in training, by a draw that belongs to each sample alone.

in        values [B, ...] and a key for each sample
out       values, some of them 0, the others larger
relies on sample_draws.py
"""

from math import prod

from jaxtyping import Float, Int
from torch import Tensor, nn

from shared.errors import ModelError
from shared.model.sample_draws import BITS, drawn


class SampleDropout(nn.Module):
    """In training each number of a sample is 0 with a certain chance, else larger, so that its mean stays.

    Source: Srivastava et al. 2014, JMLR 15, section 10 (inverted dropout).
    """

    def __init__(self, chance: float) -> None:
        super().__init__()
        self.chance, self.needs_keys = chance, bool(chance)

    def forward(self, values: Float[Tensor, "B ..."], keys: Int[Tensor, "B"] | None) -> Float[Tensor, "B ..."]:
        """The values left over.

        Raises:
            ModelError: the batch has no keys, in training.
        """
        if not self.training or not self.chance:
            return values
        if keys is None:
            raise ModelError("the model drops numbers out, and its batch has no keys; draw them by `with_keys`")
        kept = drawn(keys, num=prod(values.shape[1:])) >= int(self.chance * 2**BITS)
        return values * kept.view(values.shape) / (1 - self.chance)
