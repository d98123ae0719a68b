"""Settings from outside: what a fault in them is answered with."""

import re
from typing import Literal

import pytest
from pydantic import Field

from shared import forms
from shared.errors import ConfigError
from shared.forms import IN_WORDS, SERVER
from shared.settings import NamePattern, Settings, parse_settings


class Inner(Settings):
    kind: Literal["small", "large"]
    sizes: tuple[int, ...] = ()


class Empty(Settings):
    pass


class Addressed(Settings):
    server: str = Field(default="a:1", pattern=SERVER)
    names: tuple[NamePattern, ...] = ()
    day: str = Field(default="1", pattern="^[0-9]$")


class Outer(Settings):
    inner: Inner
    parts: dict[str, Inner] = Field(default={})
    empty: Empty = Empty()


def _said(table: dict[str, object]) -> str:
    with pytest.raises(ConfigError) as error:
        parse_settings(Outer, table, place="here")
    return str(error.value)


def test_a_text_where_a_list_belongs_is_answered_with_the_list_that_was_meant() -> None:
    assert "inner.sizes: is no list; allowed: values in brackets, such as [8] (came: '8')" in _said(
        {"inner": {"kind": "small", "sizes": "8"}}
    )
    assert 'such as ["head.*"]' in _said({"inner": {"kind": "small", "sizes": "head.*"}})


def test_a_text_where_a_table_belongs_is_answered_with_the_tables_settings() -> None:
    assert "inner: is no table; allowed: settings in braces, { name = value }, of kind, sizes" in _said(
        {"inner": "small"}
    )


def test_a_setting_that_is_missing_is_answered_with_the_words_it_may_be() -> None:
    assert "inner.kind: is not set, and has no default; allowed: 'small', 'large'" in _said({"inner": {}})
    assert "parts.one.kind: is not set, and has no default; allowed: 'small'" in _said(
        {"inner": {"kind": "small"}, "parts": {"one": {}}}
    )


def test_a_table_without_settings_says_that_it_has_none() -> None:
    assert "empty.more: no such setting; allowed: none (came: '1')" in _said(
        {"inner": {"kind": "small"}, "empty": {"more": 1}}
    )


def test_a_text_of_another_form_is_answered_in_words_and_not_with_the_pattern() -> None:
    with pytest.raises(ConfigError) as error:
        parse_settings(Addressed, {"server": "localhost", "names": ["a b"], "day": "x"}, place="here")
    said = str(error.value)
    assert "server: is of another form; allowed: HOST:PORT, such as motet.example.org:8000 (came: 'localhost')" in said
    assert "allowed: up to 200 characters without spaces, such as encoders.text.* (came: 'a b')" in said
    assert "allowed: what matches ^[0-9]$ (came: 'x')" in said


def test_every_form_is_said_in_words_with_an_example_that_it_allows() -> None:
    patterns = {value for name, value in vars(forms).items() if name.isupper() and isinstance(value, str)}
    assert patterns == set(IN_WORDS)
    for pattern, words in IN_WORDS.items():
        example = words.partition("such as ")[2].split(" or ")[0].split(",")[0]
        assert re.fullmatch(pattern, example), (pattern, example)
