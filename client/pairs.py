"""Pairs: an owner whose rows have none of a run's pairs is told that taking part only costs.

in        a run whose task matches two modalities, the site's samples
out       a line on the owner's own screen
relies on the log of the site being the owner's alone
"""

import logging
from pathlib import Path

from shared.batch import Samples
from shared.config import RunConfig

log = logging.getLogger("motet.site")


def tell_of_no_pairs(folder: Path, samples: Samples, *, run: RunConfig) -> None:
    """On the owner's screen alone: the server is told what the owner declares, and nothing of rows."""
    if run.data.pair is None:
        return
    places = [run.modalities.index(name) for name in run.data.pair]
    if not bool(samples.present[:, places].all(dim=1).any()):
        log.warning(
            "%s: no row has both %s: this site's updates are noise alone, and cost budget; take it out of the run, or "
            "put what belongs together into one row. See it with: motet check %s",
            folder,
            " and ".join(run.data.pair),
            folder,
        )
