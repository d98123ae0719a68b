"""Attention: tokens of one sample look at each other, those that are not there excepted.

in        tokens [B, N, W] and there [B, N]
out       tokens [B, N, W], read by encoders/text.py and fusion/attention.py
relies on Linear and LayerNorm alone, whose per-sample gradients every engine computes exactly
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn


class TransformerBlock(nn.Module):
    """One pre-norm transformer layer; a token that is not there has no weight and gets no gradient from others.

    Source: Xiong et al. 2020, arXiv:2002.04745 (norm before each part). Ours differs: written from Linears, because the
    per-sample gradients of nn.MultiheadAttention are refused or wrong in the engines we use.
    """

    def __init__(self, width: int, *, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm, self.hidden_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query_key_value, self.mix = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.widen, self.narrow = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, tokens: Float[Tensor, "B N W"], there: Bool[Tensor, "B N"]) -> Float[Tensor, "B N W"]:
        """The tokens after they have looked at those that are there."""
        seen = attended(self.query_key_value(self.attention_norm(tokens)), there, heads=self.heads)
        tokens = tokens + self.mix(seen)
        hidden = nn.functional.gelu(self.widen(self.hidden_norm(tokens)))
        seen_and_thought: Tensor = tokens + self.narrow(hidden)
        return seen_and_thought


def attended(
    query_key_value: Float[Tensor, "B N Q"], there: Bool[Tensor, "B N"], *, heads: int
) -> Float[Tensor, "B N W"]:
    """What each token sees of those that are there, by several heads side by side.

    Source: Vaswani et al. 2017, arXiv:1706.03762, section 3.2.
    """
    batch, count, width = *query_key_value.shape[:2], query_key_value.shape[2] // 3
    split = (batch, count, 3, heads, width // heads)
    query, key, value = query_key_value.reshape(split).permute(2, 0, 3, 1, 4)
    scores = query @ key.transpose(-1, -2) * (width // heads) ** -0.5
    # The lowest finite number and not -inf: a sample without any token gives equal weights, never NaN.
    scores = scores.masked_fill(~there[:, None, None, :], torch.finfo(scores.dtype).min)
    seen: Tensor = (scores.softmax(dim=-1) @ value).transpose(1, 2).reshape(batch, count, width)
    return seen


def masked_mean(tokens: Float[Tensor, "B N W"], there: Bool[Tensor, "B N"]) -> Float[Tensor, "B W"]:
    """Mean over the tokens that are there; zeros where there is none."""
    kept = tokens.masked_fill(~there[:, :, None], 0.0)
    return kept.sum(dim=1) / there.sum(dim=1, keepdim=True).clamp(min=1).to(tokens.dtype)
