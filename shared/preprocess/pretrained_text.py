"""Pretrained text networks: token numbers become one vector a text, for caching once or for training.

in        a text; a Checkpoint of BERT's or of GPT's kind
out       int64 [L], 0 where the text has ended, else 1 more than the checkpoint's own number; vectors [B, E]
relies on pretrained_network.py for layers that every sample's gradient can be followed through

Attention and places are given to the network for each sample, so that it decides nothing by looking at the numbers.
"""

import inspect

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor, nn

from shared.preprocess import RawValue, digest_of, wrong_kind
from shared.preprocess.pretrained import Checkpoint, read_tokenizer
from shared.preprocess.pretrained_network import is_causal, load_network
from shared.preprocess.text_clean import TextCleaningOptions, cleaned


class PretrainedTextOptions(TextCleaningOptions):
    """How texts go through a pretrained network."""

    max_tokens: int = Field(
        default=64, ge=3, le=4096, description="the text is cut after so many, or as many as the network has places for"
    )


class TokenPreprocessor:
    """Texts as the numbers that a checkpoint's own tokenizer gives, each plus 1, then zeros."""

    def __init__(self, options: PretrainedTextOptions, *, checkpoint: Checkpoint) -> None:
        self.options, self.checkpoint = options, checkpoint
        self.num_tokens = min(options.max_tokens, checkpoint.max_tokens or options.max_tokens)
        self.shape = (self.num_tokens,)
        self.digest = digest_of("tokens", version=1, settings=options, more={"weights": checkpoint.digest})

    def read(self, value: RawValue) -> Int[Tensor, "L"]:
        """The text's token numbers."""
        if not isinstance(value, str):
            raise wrong_kind(value, wanted="a text")
        tokenizer = read_tokenizer(self.checkpoint)
        text = cleaned(value, options=self.options)
        numbers = tokenizer(text, truncation=True, max_length=self.num_tokens)["input_ids"]
        tokens = torch.zeros(self.num_tokens, dtype=torch.int64)
        tokens[: len(numbers)] = 1 + torch.tensor(numbers, dtype=torch.int64)
        return tokens

    def finish(self, values: Int[Tensor, "B L"]) -> Int[Tensor, "B L"]:
        """The numbers as they are."""
        return values


class TextNetwork(nn.Module):
    """A pretrained transformer's last layer: the mean over a text's tokens, or its last token where it looks back only.

    A text without tokens gives zeros.
    """

    def __init__(self, network: nn.Module, *, causal: bool, places_from: int = 0) -> None:
        super().__init__()
        self.network = network
        self.causal, self.places_from = causal, places_from
        self._takes = frozenset(inspect.signature(network.forward).parameters)

    def forward(self, tokens: Int[Tensor, "B L"]) -> Float[Tensor, "B E"]:
        """The vector of each text."""
        there = tokens > 0
        return self.pooled(self.states(there, input_ids=(tokens - 1).clamp(min=0)), there)

    def pooled(self, states: Float[Tensor, "B L E"], there: Bool[Tensor, "B L"]) -> Float[Tensor, "B E"]:
        """One vector of the states of the tokens that are there; zeros where there is none."""
        if not self.causal:
            kept = states.masked_fill(~there[:, :, None], 0.0)
            return kept.sum(dim=1) / there.sum(dim=1, keepdim=True).clamp(min=1).to(states.dtype)
        last = (there * torch.arange(there.shape[1], device=there.device)).amax(dim=1)
        vectors = states.gather(1, last[:, None, None].expand(-1, 1, states.shape[2])).squeeze(1)
        return vectors.masked_fill(~there.any(dim=1, keepdim=True), 0.0)

    def states(self, there: Bool[Tensor, "B L"], **values: Tensor) -> Float[Tensor, "B L E"]:
        """The last layer's state of every token.

        Args:
            there: which tokens there are; places are counted among these.
            values: `input_ids` [B, L], or `inputs_embeds` [B, L, E] in their place.
        """
        count = (there.cumsum(dim=1) - 1).clamp(min=0)
        # one row for each sample, as layers that are followed must see it
        given = {"position_ids": count + self.places_from, "token_type_ids": torch.zeros_like(count)}
        if self.causal:
            # GPT-2 would take these for tokens
            del given["token_type_ids"]
        given = {name: value for name, value in given.items() if name in self._takes}
        found: Tensor = self.network(attention_mask=self._attention(there), **given, **values).last_hidden_state
        return found

    def _attention(self, there: Bool[Tensor, "B L"]) -> Float[Tensor, "B 1 L L"]:
        """What is added to the scores: nothing where a token may look, the lowest number elsewhere."""
        length = there.shape[1]
        seen = there[:, None, None, :].expand(-1, 1, length, length)
        if self.causal:
            seen = seen & torch.ones(length, length, dtype=torch.bool, device=there.device).tril()
        # The lowest finite number and not -inf: a text without any token gives equal weights, never NaN.
        lowest = torch.finfo(torch.float32).min
        return torch.zeros(seen.shape, device=there.device).masked_fill(~seen, lowest)


def text_network(checkpoint: Checkpoint) -> TextNetwork:
    """The checkpoint's network with a copy of the weights for its caller.

    Raises:
        ModelError: as `load_network`.
    """
    causal = is_causal(checkpoint)
    return TextNetwork(load_network(checkpoint), causal=causal, places_from=checkpoint.places_from)
