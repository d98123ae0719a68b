"""Words of a text in its language, and their parts of speech. The only door to jieba and to textblob.

in        a text, normalised and cleaned
out       words in their order, with their parts of speech where those are asked for
relies on dictionaries inside the two packages; nothing is fetched, and nothing of a text is written anywhere
"""

import functools
import gc
import importlib
import importlib.metadata
import itertools
import re
import threading
import warnings
from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple, TypeAlias

Language: TypeAlias = Literal["en", "zh", "any"]

_ANY_WORD = re.compile(r"\w+|[^\w\s]")
# contractions as in the Penn Treebank (do n't, it 's), which the tagger's dictionary expects
_ENGLISH_WORD = re.compile(
    r"[^\W_]{1,32}?(?=n['’]t\b)|n['’]t\b|['’](?:s|m|d|re|ve|ll)\b|\d+(?:[.,]\d+)*|\w+|[^\w\s]", re.IGNORECASE
)
# jieba's time grows with the square of the characters between two signs, so it is given a few at a time, which end at a
# sign or space wherever one is near
_CHINESE_PIECE = re.compile(r"(?s).{1,199}[^\u4e00-\u9fd5\w+#&.%-]|.{1,200}")
_SENTENCE_ENDS = frozenset(".!?")
_PACKAGES: dict[str, str] = {"en": "textblob", "zh": "jieba"}
_lock = threading.Lock()
"""several folders may be loaded at once, and both packages fill their dictionaries on first use"""


class Word(NamedTuple):
    """One word as it stands in the text, and its part of speech."""

    text: str
    tag: str


def words_of(text: str, *, language: Language) -> Iterable[str]:
    """The words and signs of a text, without white space, in their order.

    Args:
        text: any text; one in another language than is said comes out in pieces that mean less, never as an error.
        language: "any": runs of letters, whatever their script. "en": also cuts contractions. "zh": words by jieba's
            dictionary of simplified Chinese; what its dictionary lacks is cut by its hidden Markov model.

    Source: Chinese: jieba 0.42.1 (MIT), the most probable path through a dictionary.
    """
    if language == "zh":
        with _lock:
            cut = _jieba_cutter().cut
        return (word for word in _in_pieces(text, cut=cut) if not word.isspace())
    if language == "en":
        return (word.replace("’", "'") for word in _ENGLISH_WORD.findall(text))
    return _ANY_WORD.findall(text)


def tagged_words_of(text: str, *, language: Literal["en", "zh"]) -> Iterable[Word]:
    """The words as `words_of` gives them, each with its part of speech; Chinese words may be cut otherwise here.

    Penn Treebank tags for English, those of ICTCLAS for Chinese.

    Source: English: Brill 1992, ANLP, a dictionary and rules, as in pattern (De Smedt and Daelemans 2012, JMLR 13)
    inside textblob (MIT; pattern: BSD). Chinese: jieba.posseg, a hidden Markov model.
    """
    if language == "zh":
        with _lock:
            cut = _jieba_tagger()
        return (Word(pair.word, pair.flag) for pair in _in_pieces(text, cut=cut) if not pair.word.isspace())
    with _lock:
        find_tags = _textblob_tagger()
    words = list(words_of(text, language=language))
    # sentence by sentence: the rules look at neighbours
    ends = [0, *(place + 1 for place, word in enumerate(words) if word in _SENTENCE_ENDS), len(words)]
    return (Word(*pair) for start, end in itertools.pairwise(ends) for pair in find_tags(words[start:end]))


def version_for(language: Language, *, tagged: bool) -> dict[str, str]:
    """Package and version whose dictionary decides the words or tags; none where no package is asked."""
    if language == "any" or (language == "en" and not tagged):
        return {}
    package = _PACKAGES[language]
    return {package: importlib.metadata.version(package)}


def _in_pieces(text: str, *, cut: Callable[[str], Iterable[Any]]) -> Iterable[Any]:
    return itertools.chain.from_iterable(cut(piece[0]) for piece in _CHINESE_PIECE.finditer(text))


@functools.cache
def _jieba_cutter() -> Any:
    with warnings.catch_warnings():
        # on import jieba looks for pkg_resources, which warns of its own age where it is installed
        warnings.simplefilter("ignore")
        jieba = importlib.import_module("jieba")
    cutter = jieba.Tokenizer()
    # PRIVACY: not by its own `initialize`, which reads a dictionary that anybody may have left in the shared temporary
    # folder, writes one there, and talks to standard error. test_chinese_words_leave_no_file_and_no_message
    cutter.FREQ, cutter.total = cutter.gen_pfdict(cutter.get_dict_file())
    cutter.initialized = True
    return cutter


@functools.cache
def _jieba_tagger() -> Callable[[str], Iterable[Any]]:
    cutter = _jieba_cutter()
    tagger = importlib.import_module("jieba.posseg").dt
    tagger.tokenizer = cutter
    cut: Callable[[str], Iterable[Any]] = tagger.cut
    return cut


@functools.cache
def _textblob_tagger() -> Callable[[list[str]], list[list[str]]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # it leaves its dictionaries' files to the collector
        parser = importlib.import_module("textblob.en").parser
        parser.find_tags(["filled", "Words"])  # its dictionaries fill themselves when first looked into
        gc.collect()
    find_tags: Callable[[list[str]], list[list[str]]] = parser.find_tags
    return find_tags
