"""Texts: token numbers that any machine computes alike, and nothing learned."""

from typing import Literal

import pytest
import torch
from pydantic import ValidationError

from shared.preprocess.text import TextOptions, TextPreprocessor, stable_hash

Encoding = Literal["words", "words-and-ngrams", "bytes"]


def numbers(text: str, options: TextOptions) -> list[int]:
    return [int(number) for number in TextPreprocessor(options).read(text)]


@pytest.mark.parametrize("encoding", ["words", "words-and-ngrams", "bytes"])
@pytest.mark.parametrize(
    "text", ["", "   ", "one", "No. Wait! Why?", "漢字かな", "naïve ﬁne", "\ud800", "x" * 5000, "👍🏽"]
)
def test_every_text_has_the_promised_shape_and_range(encoding: Encoding, text: str) -> None:
    door = TextPreprocessor(TextOptions(encoding=encoding, vocabulary=50, max_tokens=7))
    ids = door.read(text)

    assert ids.shape == door.shape == (7,)
    assert ids.dtype == torch.int64
    assert int(ids.min()) >= 0
    assert int(ids.max()) < door.num_ids
    ended = (ids == 0).long()
    assert torch.equal(ended, ended.cummax(dim=0).values)


def test_words_keep_their_order_and_case_does_not_matter() -> None:
    options = TextOptions(vocabulary=1_000_000, max_tokens=4)
    hello, world = (1 + stable_hash(word) % 1_000_000 for word in ("hello", "world"))

    assert numbers("Hello world", options) == [hello, world, 0, 0]
    assert numbers("world HELLO", options) == [world, hello, 0, 0]
    assert numbers("ｈｅｌｌｏ", options) == [hello, 0, 0, 0]
    assert numbers("Hello", options.model_copy(update={"lowercase": False}))[0] != hello


def test_punctuation_is_a_token_because_moods_use_it() -> None:
    options = TextOptions(vocabulary=1_000_000, max_tokens=4)
    assert numbers("joy!", options)[:2] == numbers("joy !", options)[:2]
    assert numbers("joy!", options) != numbers("joy?", options)


def test_letter_groups_let_related_words_share_numbers() -> None:
    options = TextOptions(encoding="words-and-ngrams", vocabulary=1_000_000, max_tokens=40)
    one, other, far = ({*numbers(text, options)} - {0} for text in ("sunshine", "sunshiny", "grok"))

    assert len(one & other) >= 5
    assert not one & far


def test_letter_groups_of_several_sizes_are_those_of_each_size_and_short_words_come_once() -> None:
    def groups(text: str, ngram: int, longest: int) -> list[int]:
        options = TextOptions(
            encoding="words-and-ngrams", vocabulary=1_000_000, max_tokens=60, ngram=ngram, longest_ngram=longest
        )
        return [number for number in numbers(text, options) if number]

    word, *of_three_to_five = groups("stamps", 3, 5)
    assert of_three_to_five == [*groups("stamps", 3, 0)[1:], *groups("stamps", 4, 0)[1:], *groups("stamps", 5, 5)[1:]]
    assert len(of_three_to_five) == 6 + 5 + 4
    assert groups("stamps", 3, 0)[0] == word
    assert groups("ox", 3, 5) == [*groups("ox", 3, 0), *groups("ox", 4, 0)[1:]]
    assert groups("ox", 6, 8) == groups("ox", 6, 0)


def test_a_longest_group_shorter_than_the_shortest_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"longest_ngram is 2; allowed: 0, or 3 \(ngram\) and more"):
        TextOptions(longest_ngram=2)


def test_bytes_are_the_bytes() -> None:
    assert numbers("aé", TextOptions(encoding="bytes", max_tokens=4)) == [98, 196, 170, 0]


def test_the_hash_is_the_one_that_caches_and_weights_were_made_with() -> None:
    """Golden: what `printf mood | b2sum -l 64` prints; a change would scramble every stored model."""
    assert stable_hash("mood") == int("eea7f3fedd022fbe", 16)


def test_the_digest_changes_with_the_settings() -> None:
    variants = [TextOptions(), TextOptions(encoding="bytes"), TextOptions(vocabulary=9), TextOptions(lowercase=False)]
    assert len({TextPreprocessor(options).digest for options in variants}) == len(variants)


def test_a_value_of_another_kind_is_refused() -> None:
    with pytest.raises(TypeError, match="reads a text"):
        TextPreprocessor(TextOptions()).read(torch.zeros(2).numpy())
