"""Words: what fields, codes and outcomes mean, read from words.toml.

in        server/report/words.toml
out       Words, asked by tables.py
relies on Flower's bundles carrying .toml files (they carry no .html and no .css)
"""

from pathlib import Path

from shared.settings import Settings, parse_settings, read_toml

FOLDER = Path(__file__).parent
Meaning = tuple[str, str]


class Words(Settings):
    """Explanations by name."""

    fields: dict[str, Meaning]
    updates: dict[str, Meaning]
    codes: dict[str, str]
    accountants: dict[str, str]
    outcomes: dict[str, str]
    engines: dict[str, str]
    texts: dict[str, str]
    views: dict[str, Meaning]
    lists: dict[str, tuple[str, ...]]

    def field(self, name: str) -> Meaning:
        """What a field of a reply is, and whether it depends on records."""
        return self.fields.get(name, self.updates["unknown"])

    def code(self, code: str) -> str:
        """What a wire-safe code says; Flower's own codes are `flower-` and a number."""
        known = "flower" if code.startswith("flower-") else code
        return self.codes.get(known, "a code that this version of Motet does not know")


def read_words() -> Words:
    """The explanations of this version."""
    return parse_settings(Words, read_toml(FOLDER / "words.toml"), place="words.toml")
