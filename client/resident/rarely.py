"""Rarely: what others can cause at will is said once a minute at most, with how often it was so.

in        what there is to be said, as often as somebody causes it
out       whether it is said now, and for how many times
relies on nothing

Else any user of the machine could fill the owner's journal with one line until all others have left it.
"""

import math
import time
from collections.abc import Callable, Hashable

_MOST_KEPT = 1024


class Rarely:
    """Counts by what there is to be said; for one thread at a time."""

    def __init__(self, *, every_s: float = 60.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._every_s, self._clock = every_s, clock
        self._said: dict[Hashable, tuple[float, int]] = {}
        """what -> when it was said last, and how often it was not since"""

    def times(self, what: Hashable) -> int:
        """For how many times it is to be said now; 0 where it is not."""
        now = self._clock()
        said, kept_back = self._said.pop(what, (-math.inf, 0))
        is_due = now - said >= self._every_s
        self._said[what] = (now, 0) if is_due else (said, kept_back + 1)
        if len(self._said) > _MOST_KEPT:
            del self._said[next(iter(self._said))]
        return kept_back + 1 if is_due else 0
