"""Privacy words: the sentences of the privacy report, read from privacy.toml.

in        server/report/privacy.toml
out       PrivacyWords, asked by every part of the privacy report
relies on every sentence standing there once, so that a claim is changed in one place
"""

from server.report.words import FOLDER, Meaning
from shared.settings import Settings, parse_settings, read_toml


class PrivacyWords(Settings):
    """Sentences by name; what stands in braces is filled in."""

    alarms: dict[str, Meaning]
    """name -> title and text"""
    things: dict[str, str]
    plain: dict[str, str]
    exact: dict[str, str]
    budget: dict[str, str]
    left: dict[str, str]
    trust: dict[str, str]
    evidence: dict[str, str]
    again: dict[str, str]
    pyramid: dict[str, str]
    lists: dict[str, tuple[str, ...]]


def read_privacy_words() -> PrivacyWords:
    """The sentences of this version."""
    return parse_settings(PrivacyWords, read_toml(FOLDER / "privacy.toml"), place="privacy.toml")
