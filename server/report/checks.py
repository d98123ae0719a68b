"""Checks: numbers that a report states, beside the same numbers computed again.

in        pairs of values
out       Check, with a verdict that is "same" only where both were there and agreed
relies on the accountants being deterministic: what differs by more than rounding differs
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["same", "differs", "not checked", "told"]

TOLERANCE = 1e-6
"""relative; two machines' floating point agrees far better than this"""


_LONGEST = 13
"""letters of a value that are shown"""


@dataclass(frozen=True)
class Check:
    """One number of a report."""

    name: str
    stated: str
    found: str
    difference: str
    verdict: Verdict
    note: str = ""


def same(name: str, *, stated: object, found: object, note: str = "") -> Check:
    """Two values that have to be equal; numbers up to rounding."""
    if _is_number(stated) and _is_number(found):
        first, second = float(str(stated)), float(str(found))
        agree = first == second or math.isclose(first, second, rel_tol=TOLERANCE, abs_tol=1e-9)
        verdict: Verdict = "same" if agree else "differs"
        return Check(
            name, _text(stated), _text(found), f"{second - first:+.3g}" if first != second else "0", verdict, note
        )
    agree = stated == found
    return Check(name, _text(stated), _text(found), "" if agree else "not equal", "same" if agree else "differs", note)


def at_most(name: str, *, stated: float, found: float, note: str = "") -> Check:
    """A bound that what was found has to keep."""
    verdict: Verdict = "same" if found <= stated * (1 + TOLERANCE) else "differs"
    return Check(name, f"at most {stated:.6g}", f"{found:.6g}", f"{found - stated:+.3g}", verdict, note)


def unchecked(name: str, *, stated: object, why: str) -> Check:
    """A number for which something is missing."""
    return Check(name, _text(stated), "–", "–", "not checked", why)


def information(name: str, *, stated: object, found: object, note: str) -> Check:
    """What a reader should know, and what makes no report wrong."""
    return Check(name, _text(stated), _text(found), "", "told", note)


def compare_fields(name: str, *, stated: Mapping[str, object], found: Mapping[str, object]) -> list[Check]:
    """Each field of two records, in the order of the first."""
    return [same(f"{name}.{field}", stated=value, found=found.get(field)) for field, value in stated.items()]


def first_difference(stated: object, found: object, place: str = "") -> str:
    """Where two trees of plain values first differ; empty where they are equal."""
    if isinstance(stated, Mapping) and isinstance(found, Mapping):
        for key in [*stated, *(key for key in found if key not in stated)]:
            inner = first_difference(stated.get(key), found.get(key), f"{place}.{key}" if place else str(key))
            if inner:
                return inner
        return ""
    if isinstance(stated, list) and isinstance(found, list) and len(stated) == len(found):
        for number, (first, second) in enumerate(zip(stated, found, strict=True)):
            inner = first_difference(first, second, f"{place}[{number}]")
            if inner:
                return inner
        return ""
    return "" if stated == found else f"{place}: {_text(stated)} in the report, {_text(found)} in the folder"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _text(value: object) -> str:
    if value is None:
        return "not told"
    if isinstance(value, float):
        return f"{value:.6g}"
    text = str(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
