"""Settings: frozen tables that come from outside, read and judged in one go.

in        a table of a TOML file, or JSON
out       Settings of some kind, or a ConfigError with every fault in it
relies on nothing of Motet but errors.py and forms.py
"""

import itertools
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, TypeVar, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from shared.errors import ConfigError
from shared.forms import IN_WORDS, PARAMETERS

Option = bool | int | float | str | tuple[float, ...]


def _plain_name(name: str) -> str:
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,31}", name):
        raise ValueError(f"{name!r} is not a name; allowed: a small letter, then up to 31 of a-z, 0-9 and _")
    return name


Name = Annotated[str, AfterValidator(_plain_name)]
NamePattern = Annotated[str, Field(pattern=PARAMETERS)]
MOST_PATTERNS = 1000


class Settings(BaseModel):
    """A frozen table that refuses unknown fields, NaN and infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


AnySettings = TypeVar("AnySettings", bound=Settings)


def parse_settings(kind: type[AnySettings], table: Mapping[str, object], *, place: str) -> AnySettings:
    """Settings from a table, or every fault in it at once.

    Raises:
        ConfigError: with the field, what came and what is allowed, for each fault.
    """
    try:
        return kind.model_validate(table)
    except ValidationError as error:
        raise ConfigError(_describe(error, kind=kind, place=place)) from None


def parse_settings_json(kind: type[AnySettings], text: str, *, place: str) -> AnySettings:
    """Settings from JSON, under the same checks as `parse_settings`."""
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        raise ConfigError(_describe(error, kind=kind, place=place)) from None


def read_toml(path: Path) -> dict[str, object]:
    """A TOML file as a table.

    Raises:
        ConfigError: the file is missing, not UTF-8 or not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; give the path of a TOML file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{path}: not readable as TOML: {error}") from None


def _describe(error: ValidationError, *, kind: type[Settings], place: str) -> str:
    # a union reports a fault for each of its sides; `privacy = "none"` is not what a table was meant to be
    faults = [fault for fault in error.errors(include_url=False) if not _is_other_side(fault)]
    lines = [f"{place}: {len(faults)} fault{'' if len(faults) == 1 else 's'} in the settings"]
    for fault in itertools.islice(faults, 50):
        path = [str(part) for part in fault["loc"] if "[" not in str(part)]
        came = "" if isinstance(fault["input"], Mapping) else f" (came: {str(fault['input'])[:80]!r})"
        said = fault["msg"].removeprefix("Value error, ")
        if fault["type"] == "extra_forbidden":
            said = f"no such setting; allowed: {', '.join(_fields_at(kind, path[:-1])) or 'none'}"
        elif fault["type"] == "string_pattern_mismatch":
            said = _form_in_words(fault)
        elif fault["type"] == "missing":
            choices = _choices(kind, path)
            said, came = f"is not set, and has no default{'; allowed: ' if choices else ''}{', '.join(choices)}", ""
        elif fault["type"] in ("tuple_type", "list_type"):
            said = f"is no list; allowed: values in brackets, such as {_in_brackets(fault['input'])}"
        elif fault["type"] in ("model_type", "dict_type"):
            fields = _fields_at(kind, path) if fault["type"] == "model_type" else []
            said = f"is no table; allowed: settings in braces, {{ name = value }}{_of(fields)}"
        # what is said of the whole table names its fields itself
        lines.append(f"  {'.'.join(path)}: {said}{came}" if path else f"  {said}{came}")
    return "\n".join(lines)


def _form_in_words(fault: ErrorDetails) -> str:
    pattern = str(fault.get("ctx", {}).get("pattern"))
    return f"is of another form; allowed: {IN_WORDS.get(pattern, f'what matches {pattern}')}"


def _in_brackets(value: object) -> str:
    return f'["{value}"]' if isinstance(value, str) and not value.isdecimal() else f"[{value}]"


def _choices(kind: type[BaseModel], path: list[str]) -> list[str]:
    """The words that a setting may be, where it is one of a few."""
    field = _table_at(kind, path[:-1]).model_fields.get(path[-1])
    is_one_of_few = field is not None and get_origin(field.annotation) is Literal
    return [repr(word) for word in get_args(field.annotation)] if field is not None and is_one_of_few else []


def _of(fields: list[str]) -> str:
    return f", of {', '.join(fields)}" if fields else ""


def _is_other_side(fault: ErrorDetails) -> bool:
    is_literal_side = any(str(part).startswith("literal[") for part in fault["loc"])
    return is_literal_side and isinstance(fault["input"], Mapping)


def _fields_at(kind: type[BaseModel], path: list[str]) -> list[str]:
    """Names of the settings that the table at a path may hold."""
    return list(_table_at(kind, path).model_fields)


def _table_at(kind: type[BaseModel], path: list[str]) -> type[BaseModel]:
    for part in path:
        field = kind.model_fields.get(part)
        kind = next(iter(_tables_of(field.annotation if field is not None else None)), kind)
    return kind


def _tables_of(annotation: object) -> list[type[BaseModel]]:
    """Tables that an annotation names: itself, the sides of a union, the values of a dictionary."""
    sides = (annotation, *get_args(annotation))
    return [side for side in sides if isinstance(side, type) and issubclass(side, BaseModel)]
