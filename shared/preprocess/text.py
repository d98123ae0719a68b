"""Text preprocessing: any text becomes a row of token numbers, with nothing learned from texts.

in        a text from the manifest
out       int64 [L], 0 where the text has ended
relies on a hash that is the same on every machine; two tokens may share a number, and no table of words exists that
          could give away who used which; text_clean.py, text_words.py and text_stop_words.py for what a run asks for
"""

import functools
import hashlib
import itertools
import unicodedata
from collections.abc import Iterable
from typing import Literal

import torch
from jaxtyping import Int
from pydantic import Field, model_validator
from torch import Tensor

from shared.preprocess import RawValue, digest_of, wrong_kind
from shared.preprocess.pretrained import Checkpoint, minilm_checkpoint, read_tokenizer
from shared.preprocess.text_clean import TextCleaningOptions, cleaned
from shared.preprocess.text_stop_words import STOP_WORDS
from shared.preprocess.text_words import Language, Word, tagged_words_of, version_for, words_of

REMEMBERED = 16_384
"""words whose numbers are kept in this process's memory: most words of a text have come before"""
LONGEST_REMEMBERED = 32
"""characters; what is longer is a word that hardly comes again"""


class TextOptions(TextCleaningOptions):
    """How texts become token numbers."""

    encoding: Literal["words", "words-and-ngrams", "bytes", "minilm"] = Field(
        default="words",
        description="hashed words; each word also as its letter groups; UTF-8 bytes; word pieces of the MiniLM package",
    )
    vocabulary: int = Field(default=1024, ge=2, le=1_000_000, description="numbers for tokens; bytes use 256 of them")
    max_tokens: int = Field(default=32, ge=1, le=4096, description="the text is cut after so many")
    ngram: int = Field(default=3, ge=1, le=8, description="words-and-ngrams only: letters in a group")
    longest_ngram: int = Field(
        default=0, ge=0, le=8, description="words-and-ngrams only: groups of all sizes from ngram to this; 0: of one"
    )
    lowercase: bool = True
    language: Language = Field(
        default="any", description="of words: any: runs of letters; en: contractions cut; zh: by jieba's dictionary"
    )
    stop_words: Literal["keep", "drop"] = Field(
        default="keep", description="drop: words of grammar go, those of negation stay; language en or zh"
    )
    tags: Literal["none", "beside", "joined", "only"] = Field(
        default="none",
        description="parts of speech, language en or zh: a token after each word; one token with it; in place of it",
    )

    @model_validator(mode="after")
    def _words_are_words(self) -> "TextOptions":
        for option, off in (("stop_words", "keep"), ("tags", "none")):
            value = getattr(self, option)
            if value != off and self.language == "any":
                raise ValueError(f"{option} is {value!r} and language is 'any'; allowed with it: language 'en' or 'zh'")
            if value != off and self.encoding not in ("words", "words-and-ngrams"):
                raise ValueError(
                    f"{option} is {value!r} and encoding is {self.encoding!r}; allowed with it: 'words' or "
                    "'words-and-ngrams'"
                )
        return self

    @model_validator(mode="after")
    def _sizes_are_in_order(self) -> "TextOptions":
        if self.longest_ngram and self.longest_ngram < self.ngram:
            raise ValueError(f"longest_ngram is {self.longest_ngram}; allowed: 0, or {self.ngram} (ngram) and more")
        return self


class WordGroupOptions(TextOptions):
    """Texts as bags of words and their letter groups, for encoders that do not look at order."""

    encoding: Literal["words", "words-and-ngrams", "bytes", "minilm"] = "words-and-ngrams"
    max_tokens: int = Field(default=96, ge=1, le=4096, description="the text is cut after so many")


class NgramOptions(WordGroupOptions):
    """Texts as bags of words and of letter groups of several sizes, for a table that is read off directly."""

    max_tokens: int = Field(default=256, ge=1, le=4096, description="the text is cut after so many")
    longest_ngram: int = Field(
        default=5, ge=0, le=8, description="words-and-ngrams only: groups of all sizes from ngram to this; 0: of one"
    )


class TextPreprocessor:
    """Texts as token numbers from 1 to `vocabulary`, then zeros; an empty text is all zeros."""

    def __init__(self, options: TextOptions) -> None:
        self.options = options
        self.shape = (options.max_tokens,)
        grouped = options.encoding == "words-and-ngrams"
        self._least, self._longest = (options.ngram, options.longest_ngram) if grouped else (0, 0)
        self._stop_words: frozenset[str] = frozenset()
        if options.stop_words == "drop" and options.language != "any":
            self._stop_words = STOP_WORDS[options.language]
        self._pieces: Checkpoint | None = minilm_checkpoint() if options.encoding == "minilm" else None
        more = {"pieces": self._pieces.digest} if self._pieces else {}
        more |= version_for(options.language, tagged=options.tags != "none")
        self.digest = digest_of("text", version=1, settings=options, more=more)

    @property
    def num_ids(self) -> int:
        """Rows that an embedding of these numbers needs, that of 0 included."""
        return (256 if self.options.encoding == "bytes" else self.options.vocabulary) + 1

    def read(self, value: RawValue) -> Int[Tensor, "L"]:
        """The text's token numbers."""
        if not isinstance(value, str):
            raise wrong_kind(value, wanted="a text")
        numbers = list(itertools.islice(self._numbers(value), self.options.max_tokens))
        ids = torch.zeros(self.options.max_tokens, dtype=torch.int64)
        ids[: len(numbers)] = torch.tensor(numbers, dtype=torch.int64)
        return ids

    def finish(self, values: Int[Tensor, "B L"]) -> Int[Tensor, "B L"]:
        """The numbers as they are."""
        return values

    def _numbers(self, text: str) -> Iterable[int]:
        options = self.options
        text = cleaned(unicodedata.normalize("NFKC", text), options=options)
        if options.tags != "none":
            return itertools.chain.from_iterable(map(self._numbers_of_tagged, self._tagged(text)))
        text = text.casefold() if options.lowercase else text
        if options.encoding == "bytes":
            return (byte + 1 for byte in text.encode("utf-8", "surrogatepass"))
        if self._pieces is not None:
            pieces: Iterable[str] = read_tokenizer(self._pieces).tokenize(text)
            return (1 + stable_hash(piece) % options.vocabulary for piece in pieces)
        words = words_of(text, language=options.language)
        if self._stop_words:
            words = (word for word in words if word.casefold() not in self._stop_words)
        return itertools.chain.from_iterable(map(self._numbers_of_word, words))

    def _tagged(self, text: str) -> Iterable[Word]:
        language: Literal["en", "zh"] = "zh" if self.options.language == "zh" else "en"
        for word, tag in tagged_words_of(text, language=language):
            if word.casefold() not in self._stop_words:
                # only now: whether a word is a name is told by its capital
                yield Word(word.casefold() if self.options.lowercase else word, tag)

    def _numbers_of_word(self, word: str) -> Iterable[int]:
        return _numbers_of(word, least=self._least, longest=self._longest, vocabulary=self.options.vocabulary)

    def _numbers_of_tagged(self, word: Word) -> Iterable[int]:
        options = self.options
        # no word holds a sign beside letters, so that a tag is never taken for a word
        tag = _numbers_of(f"/{word.tag}", least=0, longest=0, vocabulary=options.vocabulary)
        if options.tags == "only":
            return tag
        numbers = self._numbers_of_word(word.text)
        if options.tags == "beside":
            return itertools.chain(numbers, tag)
        both = _numbers_of(f"{word.text}/{word.tag}", least=0, longest=0, vocabulary=options.vocabulary)
        return itertools.chain(both, itertools.islice(numbers, 1, None))


def _numbers_of(word: str, *, least: int, longest: int, vocabulary: int) -> Iterable[int]:
    """The numbers of a word and, where `least` is above 0, of its groups of letters."""
    if len(word) <= LONGEST_REMEMBERED:
        return _remembered_numbers(word, least, longest, vocabulary)
    return (1 + stable_hash(piece) % vocabulary for piece in _pieces_of(word, least=least, longest=longest))


@functools.lru_cache(maxsize=REMEMBERED)
def _remembered_numbers(word: str, least: int, longest: int, vocabulary: int) -> tuple[int, ...]:
    return tuple(1 + stable_hash(piece) % vocabulary for piece in _pieces_of(word, least=least, longest=longest))


def _pieces_of(word: str, *, least: int, longest: int) -> Iterable[str]:
    yield word
    if least and len(word) > 1:
        marked = f"<{word}>"
        for size in range(least, max(least, min(longest, len(marked))) + 1):
            # The mark keeps the group "ate" apart from the word "ate".
            yield from (f"#{marked[start : start + size]}" for start in range(max(1, len(marked) - size + 1)))


def stable_hash(token: str) -> int:
    """64 bits that depend on the token alone; Python's own hash differs from one process to the next."""
    return int.from_bytes(hashlib.blake2b(token.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")
