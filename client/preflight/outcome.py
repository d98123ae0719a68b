"""Outcome: what one check of a rehearsal found, before it has a name.

in        nothing
out       Outcome, which preflight makes a PreflightCheck of
relies on nothing
"""

from typing import NamedTuple


class Outcome(NamedTuple):
    """Passed or not, and what was measured, in one sentence."""

    passed: bool
    detail: str
