"""Sample draws: random numbers that belong to one sample of a batch alone, made from its key.

in        a key for each sample, drawn from the site's own stream
out       numbers read by dropout.py and augment/
relies on keys travelling with the rows of a batch, so that every engine and every cut of a batch draws the same

torch's own generator is one for all rows: what it gives a sample depends on the samples before it, and a site on the
sites beside it.
"""

import hashlib
import math
from functools import lru_cache

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from shared.batch import Batch
from shared.privacy.noise import RandomSource

KEYS = "\0dropout"
"""name under which a batch's inputs hold a key for each sample; no modality has such a name"""
BITS = 24
"""of each number"""
# Steele, Lea and Flood's constants, as signed numbers of 64 bits
_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_MIXERS = ((30, 0xBF58476D1CE4E5B9 - 2**64), (27, 0x94D049BB133111EB - 2**64), (31, 1))


def draws_keys(model: nn.Module) -> bool:
    """Whether training the model asks for keys."""
    return any(getattr(module, "needs_keys", False) for module in model.modules())


def with_keys(batch: Batch, *, source: RandomSource) -> Batch:
    """The batch with a key for each row."""
    keys = source.integers(len(batch)).to(batch.present.device)
    return Batch(inputs={**batch.inputs, KEYS: keys}, present=batch.present, targets=batch.targets)


def drawn(keys: Int[Tensor, "B"], *, num: int) -> Int[Tensor, "B N"]:
    """`num` whole numbers of 24 bits for each key.

    Source: Steele, Lea and Flood 2014, OOPSLA (SplitMix64), each number from its own place in the stream.
    """
    mixed: Tensor = keys[:, None] + _GOLDEN * torch.arange(1, num + 1, device=keys.device)
    for shift, factor in _MIXERS:
        # a shift of signed numbers brings ones in from above
        mixed = (mixed ^ ((mixed >> shift) & (2 ** (64 - shift) - 1))) * factor
    numbers: Tensor = (mixed >> (64 - BITS)) & (2**BITS - 1)
    return numbers


def uniform(keys: Int[Tensor, "B"], *, num: int, purpose: str) -> Float[Tensor, "B N"]:
    """`num` numbers for each key, in (0, 1); those of one purpose have nothing to do with those of another."""
    # one bit less than a float32 holds, so that a half can be added and none is 1
    return ((drawn(keys ^ _salt(purpose), num=num) >> 1).float() + 0.5) * 2.0 ** -(BITS - 1)


def between(keys: Int[Tensor, "B"], low: float, high: float, *, purpose: str) -> Float[Tensor, "B"]:
    """One number for each key, from `low` to `high`."""
    return low + (high - low) * uniform(keys, num=1, purpose=purpose)[:, 0]


def normal(keys: Int[Tensor, "B"], *, num: int, purpose: str) -> Float[Tensor, "B N"]:
    """`num` Gaussian numbers of mean 0 and deviation 1 for each key; for augmentation, never to protect anybody.

    Source: Box and Muller 1958.
    """
    pairs = uniform(keys, num=2 * num, purpose=purpose)
    radius, turn = (-2.0 * pairs[:, :num].log()).sqrt(), 2.0 * math.pi * pairs[:, num:]
    return radius * turn.cos()


@lru_cache(maxsize=256)
def _salt(purpose: str) -> int:
    return int.from_bytes(hashlib.blake2b(purpose.encode(), digest_size=8).digest(), "big", signed=True)
