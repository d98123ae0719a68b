"""Dropout: numbers of an embedding left out in training, by a draw that belongs to each sample alone.

in        values [B, ...] and a key for each sample, drawn from the site's own stream
out       values, some of them 0, the others larger
relies on keys travelling with the rows of a batch, so that every engine and every cut of a batch drops the same

torch's own dropout draws from one generator for all rows: what it drops of a sample depends on the samples before it,
and of a site on the sites beside it.
"""

from math import prod

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from shared.batch import Batch
from shared.errors import ModelError
from shared.privacy.noise import RandomSource

KEYS = "\0dropout"
"""name under which a batch's inputs hold a key for each sample; no modality has such a name"""
_BITS = 24
# Steele, Lea and Flood's constants, as signed numbers of 64 bits
_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_MIXERS = ((30, 0xBF58476D1CE4E5B9 - 2**64), (27, 0x94D049BB133111EB - 2**64), (31, 1))


class SampleDropout(nn.Module):
    """In training each number of a sample is 0 with a certain chance, else larger, so that its mean stays.

    Source: Srivastava et al. 2014, JMLR 15, section 10 (inverted dropout).
    """

    def __init__(self, chance: float) -> None:
        super().__init__()
        self.chance = chance

    def forward(self, values: Float[Tensor, "B ..."], keys: Int[Tensor, "B"] | None) -> Float[Tensor, "B ..."]:
        """The values left over.

        Raises:
            ModelError: the batch has no keys, in training.
        """
        if not self.training or not self.chance:
            return values
        if keys is None:
            raise ModelError("the model drops numbers out, and its batch has no keys; draw them by `with_keys`")
        kept = _drawn(keys, num=prod(values.shape[1:])) >= int(self.chance * 2**_BITS)
        return values * kept.view(values.shape) / (1 - self.chance)


def draws_keys(model: nn.Module) -> bool:
    """Whether training the model asks for keys."""
    return any(isinstance(module, SampleDropout) and module.chance for module in model.modules())


def with_keys(batch: Batch, *, source: RandomSource) -> Batch:
    """The batch with a key for each row."""
    keys = source.integers(len(batch)).to(batch.present.device)
    return Batch(inputs={**batch.inputs, KEYS: keys}, present=batch.present, targets=batch.targets)


def _drawn(keys: Int[Tensor, "B"], *, num: int) -> Int[Tensor, "B N"]:
    """`num` whole numbers of 24 bits for each key.

    Source: Steele, Lea and Flood 2014, OOPSLA, figure 17 (SplitMix64), each number from its own place in the stream.
    """
    mixed: Tensor = keys[:, None] + _GOLDEN * torch.arange(1, num + 1, device=keys.device)
    for shift, factor in _MIXERS:
        # a shift of signed numbers brings ones in from above
        mixed = (mixed ^ ((mixed >> shift) & (2 ** (64 - shift) - 1))) * factor
    numbers: Tensor = (mixed >> (64 - _BITS)) & (2**_BITS - 1)
    return numbers
