"""Memory: what a run's preprocessing would make of all rows of a site, by public numbers, before anything is paid for.

in        a permitted run, the owner's settings
out       nothing where it is within `limits.memory_gib`; else a refusal that names what each modality would take; the
          prepared rows of one run at a time, so that the limit holds for all runs together
relies on a preprocessor's `shape` being that of every value (loader.py checks it)

Without it a server could ask for pictures so large that loading them ends the agent: at a large site and not at a small
one, which would tell about how many rows there really are.
"""

from collections.abc import Callable, Hashable
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Generic, TypeVar

from client.permission import Permitted
from client.run_model import RunKey, key_of
from client.site import SiteConfig
from shared.dataset import preprocessors_of
from shared.errors import PermissionRefused

GIB = 2**30
MOST_PLACES = 1024
"""folders of which anything is kept: one at an agent, many where sites are simulated"""
Wanted = TypeVar("Wanted", bound=Hashable)
Made = TypeVar("Made")


def refuse_too_much_memory(permitted: Permitted, *, site: SiteConfig) -> None:
    """Turns away a run whose prepared rows would take more memory than the owner permits.

    Raises:
        PermissionRefused: naming the limit, and bytes a row of each modality.
        ModelError: as `preprocessors_of`.
    """
    of_modality = bytes_of_row(key_of(permitted.run), permitted.modalities)
    # PRIVACY: the public size and never the true one, whose refusals would count the rows.
    # test_what_a_run_would_take_is_judged_by_public_numbers_alone
    wanted, allowed = sum(of_modality.values()) * site.nominal_size, site.limits.memory_gib
    if wanted > allowed * GIB:
        parts = ", ".join(f"{name} {num:,}" for name, num in of_modality.items())
        raise PermissionRefused(
            f"limits.memory_gib: the run's preprocessing makes {wanted / GIB:.3g} GiB of {site.nominal_size} rows "
            f"(bytes a row: {parts}); allowed: {allowed:g}"
        )


@lru_cache(maxsize=64)
def bytes_of_row(key: RunKey, modalities: tuple[str, ...]) -> dict[str, int]:
    """Modality -> bytes of one prepared row, in which a modality that is absent takes as much as one that is there."""
    ways = preprocessors_of(key.run, names=modalities)
    kinds = {name: key.run.data.modalities[name].kind for name in modalities}
    # tokens are int64, everything else float32; a frozen network's vectors of a text count twice
    return {name: prod(way.shape) * (8 if kinds[name] == "text" else 4) for name, way in ways.items()}


class LastOfEach(Generic[Wanted, Made]):
    """What was made last of each place, and nothing that was made before it."""

    def __init__(self, make: Callable[[Wanted], Made], *, place: Callable[[Wanted], Path]) -> None:
        self._make, self._place = make, place
        self._kept: dict[Path, tuple[Wanted, Made]] = {}

    def __call__(self, wanted: Wanted) -> Made:
        """What is wanted, made anew unless it is what was wanted last; whatever `make` raises."""
        place = self._place(wanted)
        # PRIVACY: gone before anything else is made. Were the rows of several runs kept, each within the limit, their
        # number would end the agent at a large site and not at a small one, which tells about the rows.
        # test_the_rows_of_one_run_at_a_time_are_kept
        known = self._kept.pop(place, None)
        if known is None or known[0] != wanted:
            known = None
            known = (wanted, self._make(wanted))
        self._kept[place] = known
        if len(self._kept) > MOST_PLACES:
            del self._kept[next(iter(self._kept))]
        return known[1]

    def cache_clear(self) -> None:
        """Nothing is kept any more."""
        self._kept.clear()
