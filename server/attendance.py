"""Attendance: whether enough sites are there for a round; a run with too few waits, says so, and goes on with them.

in        what a Transport says of who is on line, and how many a round needs
out       nothing, once they are there; or why the run ends here, to be gone on with later
relies on the Transport's own idea of who is on line, which may be a minute old
"""

import logging
import time
from collections.abc import Callable, Collection
from typing import Protocol, runtime_checkable

from shared.errors import RunError

log = logging.getLogger("motet.server")
LOOK_S = 2.0
"""between two looks; a Flower node says that it is there every half minute"""
_NAMED = 9


@runtime_checkable
class Presence(Protocol):
    """Who knows which sites are on line."""

    def online(self) -> frozenset[str]:
        """Names of the sites that can be asked now, of those that introduced themselves."""


def wait_for_enough(
    presence: Presence,
    *,
    sites: Callable[[], Collection[str]],
    needed: int,
    round_number: int,
    timeout_s: float,
    say: Callable[[str], None],
) -> None:
    """Come back once as many sites are on line as a round needs.

    Args:
        sites: those that the round may ask; looked at again each time, since a site that comes late can end the wait.
        needed: how many of them have to be there; at once, where the round asks fewer.
        timeout_s: the longest wait.
        say: told when the wait begins, whenever somebody comes or goes, and when it is over.

    Raises:
        RunError: the time was over first; nothing was asked, and the run can be gone on with.
    """
    began, seen = time.monotonic(), None
    while True:
        asked = frozenset(sites())
        there, enough = presence.online() & asked, min(needed, len(asked))
        if len(there) >= enough:
            break
        if there != seen:
            say(_paused(there, sites=asked, needed=enough, round_number=round_number))
            seen = there
        if time.monotonic() - began >= timeout_s:
            raise RunError(
                f"round {round_number}: {len(there)} of {len(asked)} sites were on line after a pause of "
                f"{timeout_s:.0f} s (federation.pause_s); federation.min_sites asks for {enough}. "
                "What was trained is kept: start the run again once they are back"
            )
        time.sleep(min(LOOK_S, timeout_s))
    if seen is not None:
        say(f"round {round_number}: {len(there)} of {len(asked)} sites are on line; the run goes on")


def _paused(there: frozenset[str], *, sites: Collection[str], needed: int, round_number: int) -> str:
    missing = sorted(set(sites) - there)
    names = ", ".join(missing[:_NAMED]) + (f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else "")
    return (
        f"paused before round {round_number}: {len(there)} of {len(sites)} sites are on line, {needed} are needed; "
        f"waiting for {names}"
    )
