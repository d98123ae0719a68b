"""Text augmentation: words left out.

in        token numbers [B, L], 0 where the text has ended; or [B, 2, L], a checkpoint's numbers and where there is one
out       the same with tokens left out
relies on the encoders taking a text as long as it has tokens
"""

import torch
from jaxtyping import Int
from pydantic import Field
from torch import Tensor

from shared.model.augment.base import Augmentation
from shared.settings import Settings


class TokenOptions(Settings):
    """How much of a text may be left out; 0 leaves it."""

    word_dropout: float = Field(default=0.0, ge=0, lt=1, description="chance of each token to be left out")


class TextAugmentation(Augmentation):
    """Tokens left out at random, those behind them moving up; the first one always stays.

    Source: Iyyer et al. 2015, ACL, section 3.1 (word dropout).
    """

    def __init__(self, options: TokenOptions, *, modality: str) -> None:
        super().__init__(modality=modality)
        self.options = options

    def changed(self, values: Int[Tensor, "B ..."], keys: Int[Tensor, "B"]) -> Int[Tensor, "B ..."]:
        """The texts, each changed by its key."""
        there = values[:, 1] > 0 if values.ndim == 3 else values > 0
        kept = self.chances(keys, what="words", num=values.shape[-1]) >= self.options.word_dropout
        first = torch.arange(values.shape[-1], device=values.device) == 0
        left = there & (kept | first)
        # those that are left come first, in their order
        order = (~left).to(torch.uint8).argsort(dim=1, stable=True)
        left = left.gather(1, order)
        if values.ndim == 3:
            order, left = order[:, None, :].expand_as(values), left[:, None, :]
        return values.gather(values.ndim - 1, order).masked_fill(~left, 0)
