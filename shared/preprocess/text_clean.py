"""Text cleaning: addresses, markup, numbers, emoji and long repeats of one text, each only where the run asks for it.

in        a text, normalised before (text.py) or as it came (frozen.py)
out       the text without them, or with a plain word in their place
relies on fixed patterns; each takes time in proportion to the text, whatever stands in it
"""

import html
import re
import unicodedata
from typing import Literal, TypeAlias

from pydantic import Field

from shared.settings import Settings

Treatment: TypeAlias = Literal["keep", "drop", "name"]

_URL = re.compile(r"(?:https?://|www\.)[!-~]+", re.IGNORECASE)
_MAIL = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@[\w-]{1,64}(?:\.[\w-]{1,64}){1,8}", re.ASCII)
_MENTION = re.compile(r"(?<!\w)@\w{1,64}")
_TAG = re.compile(r"<[/!]?[-A-Za-z][^<>]*>")
# not within a word of Latin letters ("covid19", "2nd"), but beside Chinese characters, which need no space
_NUMBER = re.compile(r"(?<![A-Za-z_\d])\d++(?:[.,:]\d++)*(?![A-Za-z_\d])")
_EMOJI = re.compile(
    "[\U0001f000-\U0001faff\u2300-\u23ff\u2600-\u27bf\u2b00-\u2bff\u20e3\ufe0e\ufe0f\u200d\U000e0020-\U000e007f]"
)
_UNNAMED = re.compile("[\U0001f3fb-\U0001f3ff\u20e3\ufe0e\ufe0f\u200d\U000e0020-\U000e007f]")
"""skin tones, joiners and selectors: parts of an emoji that say nothing by themselves"""


class TextCleaningOptions(Settings):
    """What is taken out of texts, or replaced by a plain word, before they become tokens."""

    urls: Treatment = Field(default="keep", description="web addresses; name: the word url")
    mentions: Treatment = Field(default="keep", description="@names and mail addresses; name: the word user")
    markup: Literal["keep", "drop"] = Field(
        default="keep", description="drop: HTML tags go, &amp; and the like are read"
    )
    numbers: Treatment = Field(default="keep", description="in digits, not within words; name: the word number")
    emoji: Treatment = Field(default="keep", description="name: their English Unicode names, as words")
    longest_repeat: int = Field(
        default=0, ge=0, le=100, description="equal letters or signs in a row, digits not; 0: no limit"
    )

    @property
    def cleans(self) -> bool:
        """Whether any text may change."""
        kept = {self.urls, self.mentions, self.markup, self.numbers, self.emoji} == {"keep"}
        return not kept or self.longest_repeat > 0


def cleaned(text: str, *, options: TextCleaningOptions) -> str:
    """The text without what the options take out; what goes leaves a space, so that no two words become one."""
    if not options.cleans:
        return text
    if options.markup == "drop":
        text = html.unescape(_TAG.sub(" ", text))
    if options.urls != "keep":
        text = _URL.sub(" url " if options.urls == "name" else " ", text)
    if options.mentions != "keep":
        word = " user " if options.mentions == "name" else " "
        text = _MENTION.sub(word, _MAIL.sub(word, text))
    if options.emoji != "keep":
        text = _EMOJI.sub(_emoji_name if options.emoji == "name" else " ", text)
    if options.numbers != "keep":
        text = _NUMBER.sub(" number " if options.numbers == "name" else " ", text)
    if options.longest_repeat:
        most = options.longest_repeat
        text = re.sub(rf"([^\d\s])\1{{{most},}}", lambda run: run[1] * most, text)
    return text


def _emoji_name(found: re.Match[str]) -> str:
    if _UNNAMED.match(found[0]):
        return " "
    # the names of this Python's Unicode tables, which pyproject.toml holds to one version
    return f" {unicodedata.name(found[0], '').lower()} "
