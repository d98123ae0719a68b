"""Cleaning, words by language, stop words and parts of speech: what goes, what stays, and what it is counted as."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from shared.errors import ConfigError
from shared.preprocess.text import TextOptions, TextPreprocessor, WordGroupOptions
from shared.preprocess.text_clean import TextCleaningOptions, cleaned
from shared.preprocess.text_stop_words import STOP_WORDS
from shared.preprocess.text_words import tagged_words_of, words_of
from shared.settings import parse_settings

FILM = "我不喜欢这部电影，但是音乐很好听。"


def numbers(text: str, **table: object) -> list[int]:
    """The numbers of a text's tokens; so many numbers that equal ones mean equal tokens."""
    options = parse_settings(TextOptions, {"vocabulary": 1_000_000, **table}, place="here")
    return [int(number) for number in TextPreprocessor(options).read(text) if number]


@pytest.mark.parametrize(
    ("table", "text", "expected"),
    [
        ({"urls": "drop"}, "see https://a.bc/d?e=1 now", "see now"),
        ({"urls": "name"}, "看www.a.bc/d你好", "看 url 你好"),
        ({"mentions": "name"}, "hi @you_2, write to a.b@c.de!", "hi user , write to user !"),
        ({"markup": "drop"}, "<p class='x'>one&amp;two<br/>three</p> 1<2", "one&two three 1<2"),
        ({"numbers": "name"}, "3 of 1,000.5 at 12:30, not covid19 or 2nd; 有3个", "number of number at number , not covid19 or 2nd; 有 number 个"),
        ({"emoji": "name"}, "so😀👍🏽", "so grinning face thumbs up sign"),
        ({"emoji": "drop"}, "so ❤️ 👨‍👩‍👧 good", "so good"),
        ({"longest_repeat": 2}, "soooo good!!!!! 10000 ......", "soo good!! 10000 .."),
        ({}, "<b>@a</b> 1 😀 !!! www.a.bc", "<b>@a</b> 1 😀 !!! www.a.bc"),
    ],
)  # fmt: skip
def test_cleaning_takes_out_what_is_asked_and_nothing_else(
    table: Mapping[str, object], text: str, expected: str
) -> None:
    options = parse_settings(TextCleaningOptions, table, place="here")
    assert " ".join(cleaned(text, options=options).split()) == expected


def test_what_is_cleaned_away_makes_no_tokens() -> None:
    assert numbers("good <b>day</b> @me", markup="drop", mentions="drop") == numbers("good day")
    assert numbers("！！！！！！！！", longest_repeat=1) == numbers("!")


@pytest.mark.parametrize(
    "piece", ["a", "<a", "a@", "1.", "www.", "&", "a.b@a.", "😀", "丂", "n't", "'", " ", "\ud800", "\0"]
)
@pytest.mark.parametrize("language", ["en", "zh"])
def test_long_and_strange_texts_come_through_every_step(piece: str, language: str) -> None:
    clean = {
        "urls": "name",
        "mentions": "name",
        "markup": "drop",
        "numbers": "name",
        "emoji": "name",
        "longest_repeat": 3,
    }
    for text in (piece, piece * 300):
        for tags in ("none", "beside"):
            found = numbers(text, **clean, language=language, tags=tags, stop_words="drop", max_tokens=8)
            assert len(found) <= 8
            assert all(1 <= number <= 1_000_000 for number in found)


def test_english_contractions_are_cut_as_the_treebank_does() -> None:
    words = "I don't think it’s 3.5% of John's!"
    assert list(words_of(words, language="en")) == [
        "I",
        "do",
        "n't",
        "think",
        "it",
        "'s",
        "3.5",
        "%",
        "of",
        "John",
        "'s",
        "!",
    ]
    assert list(words_of("can't CAN'T tent", language="en")) == ["ca", "n't", "CA", "N'T", "tent"]


def test_chinese_is_cut_into_words_without_spaces() -> None:
    assert list(words_of(FILM, language="zh")) == [
        "我",
        "不",
        "喜欢",
        "这部",
        "电影",
        "，",
        "但是",
        "音乐",
        "很",
        "好听",
        "。",
    ]
    assert list(words_of("我 love 3.5", language="zh")) == ["我", "love", "3.5"]
    assert list(words_of(FILM, language="any")) == ["我不喜欢这部电影", "，", "但是音乐很好听", "。"]


def test_a_long_chinese_text_is_cut_as_its_sentences_are() -> None:
    sentences = [FILM, "今天天气很好，我们去公园。", "他昨天没有来上课。"] * 30
    whole = list(words_of("".join(sentences), language="zh"))
    assert whole == [word for sentence in sentences for word in words_of(sentence, language="zh")]


def test_words_of_grammar_go_and_those_of_negation_stay() -> None:
    assert numbers("It is not the end of a good day", language="en", stop_words="drop") == numbers("not end good day")
    assert numbers("I don't", language="en", stop_words="drop") == numbers("n't", language="en")
    kept = ["不", "喜欢", "这部", "电影", "，", "音乐", "好听", "。"]
    assert numbers(FILM, language="zh", stop_words="drop") == [numbers(word, language="zh")[0] for word in kept]
    assert not STOP_WORDS["en"] & {"not", "no", "never", "n't", "nor", "without"}
    assert not STOP_WORDS["zh"] & {"不", "没", "没有", "别", "无"}


def test_parts_of_speech_tell_a_verb_from_a_noun() -> None:
    english = {word.text: word.tag for word in tagged_words_of("The dogs ran home quickly, not far.", language="en")}
    assert english == {"The": "DT", "dogs": "NNS", "ran": "VBD", "home": "NN", "quickly": "RB", ",": ",", "not": "RB", "far": "RB", ".": "."}  # fmt: skip
    chinese = {word.text: word.tag for word in tagged_words_of(FILM, language="zh")}
    assert (chinese["不"], chinese["喜欢"], chinese["电影"]) == ("d", "v", "n")


def test_tags_stand_beside_the_words_or_are_joined_to_them_or_replace_them() -> None:
    text, table = "dogs ran", {"language": "en"}
    plain = numbers(text, **table)
    beside, joined, only = (numbers(text, **table, tags=tags) for tags in ("beside", "joined", "only"))

    assert beside == [plain[0], only[0], plain[1], only[1]]
    assert len(joined) == len(only) == 2
    assert not set(joined) & {*plain, *only}
    assert only == numbers("cats saw", **table, tags="only")
    assert only != numbers("ran dogs", **table, tags="only")


def test_joined_words_keep_their_letter_groups() -> None:
    doors = [
        TextPreprocessor(WordGroupOptions(vocabulary=1_000_000, language="en", tags=tags))
        for tags in ("none", "joined")
    ]
    plain, joined = (door.read("walking").tolist() for door in doors)
    assert plain[0] != joined[0]
    assert plain[1:] == joined[1:]


def test_capitals_help_the_tagger_before_they_go() -> None:
    names = {word.text: word.tag for word in tagged_words_of("yesterday Xavi slept", language="en")}
    assert names["Xavi"] == "NNP"
    assert numbers("we saw Xavi", language="en", tags="beside")[4] == numbers("xavi")[0]


@pytest.mark.parametrize(
    "table",
    [
        {"urls": "drop"}, {"mentions": "drop"}, {"markup": "drop"}, {"numbers": "name"}, {"emoji": "name"},
        {"longest_repeat": 3}, {"language": "en"}, {"language": "zh"}, {"language": "en", "stop_words": "drop"},
        {"language": "en", "tags": "joined"},
    ],
)  # fmt: skip
def test_every_option_has_a_digest_of_its_own(table: Mapping[str, object]) -> None:
    digests = [TextPreprocessor(parse_settings(TextOptions, each, place="here")).digest for each in ({}, table, table)]
    assert digests[0] != digests[1] == digests[2]


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"stop_words": "drop"}, "stop_words is 'drop' and language is 'any'; allowed with it: language 'en' or 'zh'"),
        ({"tags": "beside"}, "tags is 'beside' and language is 'any'"),
        ({"tags": "only", "language": "zh", "encoding": "bytes"}, "allowed with it: 'words' or 'words-and-ngrams'"),
    ],
)
def test_what_needs_words_says_so(table: Mapping[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_settings(TextOptions, table, place="here")


def test_chinese_words_leave_no_file_and_no_message(tmp_path: Path) -> None:
    """jieba's own start reads and writes a dictionary in the shared temporary folder, and logs to standard error."""
    program = """
from shared.preprocess.text_words import tagged_words_of, words_of
assert list(words_of("我不喜欢", language="zh")) == ["我", "不", "喜欢"]
assert [word.tag for word in tagged_words_of("我不喜欢", language="zh")] == ["r", "d", "v"]
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True, text=True, check=False, env={**os.environ, "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not list(tmp_path.iterdir())
