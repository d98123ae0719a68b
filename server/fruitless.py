"""Fruitless: a run that went through its rounds and used no update, told to whoever waited for it.

in        a run's folder
out       what to say, or None where an update was used
relies on metrics.jsonl alone; where participation is secret, nobody but the server knows who took part, and None it is
"""

from pathlib import Path

from server.history import METRICS_FILE, read_rounds

_MOST_NAMED = 8


def nobody_took_part(folder: Path, *, reasons: str) -> str | None:
    """What to tell whoever waited for a run that used no update of any site; None where it used one.

    Args:
        folder: of the run.
        reasons: where it stands why a site refused, as a sentence.
    """
    asked = [site for record in read_rounds(folder / METRICS_FILE) for site in record.sites]
    missing = sorted({f"{site.site}: {site.outcome}" for site in asked if site.outcome != "not-asked"})
    if not missing or any(site.outcome in {"used", "withheld"} for site in asked):
        return None
    more = f", and {len(missing) - _MOST_NAMED} more" if len(missing) > _MOST_NAMED else ""
    return (
        f"no update was used in any round ({', '.join(missing[:_MOST_NAMED])}{more}): the model is the one that the "
        f"run began with. {reasons}"
    )
