"""Verbal preprocessing: a value becomes words, and these become a language model's tokens.

in        a picture, a recording or a signal
out       int64 [L], as pretrained_text.py has the tokens of a text
relies on describe.py or pretrained_words.py for the words, made of each value by itself
"""

from collections.abc import Callable

from jaxtyping import Int
from pydantic import Field
from torch import Tensor

from shared.preprocess import RawValue, digest_of
from shared.preprocess.pretrained import Checkpoint
from shared.preprocess.pretrained_text import PretrainedTextOptions, TokenPreprocessor

Words = Callable[[RawValue], str]
"""what is said of a value; the same on every machine"""
RULES_VERSION = 1
"""of describe.py: raise it when the same value would be described in other words"""


class VerbalOptions(PretrainedTextOptions):
    """How words that stand for a value go through a language model."""

    max_tokens: int = Field(default=32, ge=3, le=4096, description="the words are cut after so many of its tokens")
    before: str = Field(default="", max_length=200, description='said first, such as "The picture shows:"')


class VerbalPreprocessor(TokenPreprocessor):
    """Values as the tokens of what is said of them."""

    def __init__(
        self, options: VerbalOptions, *, checkpoint: Checkpoint, words: Words, network: Checkpoint | None
    ) -> None:
        super().__init__(options, checkpoint=checkpoint)
        self.words, self.before = words, options.before
        more = {"reads": checkpoint.digest, "says": network.digest if network else f"rules {RULES_VERSION}"}
        self.digest = digest_of(f"verbal {type(words).__name__}", version=1, settings=options, more=more)

    def read(self, value: RawValue) -> Int[Tensor, "L"]:
        """The tokens of what is said of the value."""
        return super().read(f"{self.before} {self.words(value)}".strip())
