"""Ledger rows: which rows of which ledger paid for what a report says, so that its numbers can be computed again.

in        a run folder, the ledgers in it or copies of the sites' own, what each site stated round by round
out       SiteRows: a site's data set with all its rows; or why they could not be told
relies on shared/privacy/ledger.py to read a ledger; nothing is written
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from server.history import SiteHistory
from shared.privacy.accountant import MechanismUse
from shared.privacy.ledger import Ledger, LedgerRow
from shared.settings import read_toml

SIMULATION_LEDGER, SERVER_LEDGER = "ledger.sqlite", "server-ledger.sqlite"
_SITES_FOLDER = "sites"


@dataclass(frozen=True)
class NamedLedger:
    """A file given on the command line; whose it is, where that was said."""

    path: Path
    site: str | None = None


@dataclass(frozen=True)
class SiteRows:
    """All rows of the data set that a site used in a run, in the order in which they were reserved."""

    data_set: str
    rows: tuple[LedgerRow, ...]

    def of_run(self, run_id: str) -> tuple[LedgerRow, ...]:
        """What the run has reserved and is not void."""
        return tuple(row for row in self.rows if row.run_id == run_id and row.state != "void")

    def until(self, last: LedgerRow) -> tuple[LedgerRow, ...]:
        """What counted when a row was reserved, that row included: void rows do, if they became so only later."""
        return tuple(
            row
            for row in self.rows
            if row.id <= last.id and (row.state != "void" or (row.ended_utc or "") > last.created_utc)
        )


def find_site_rows(
    folder: Path,
    *,
    given: Sequence[NamedLedger],
    sites: Sequence[str],
    run_id: str,
    histories: Mapping[str, SiteHistory],
) -> dict[str, SiteRows | str]:
    """site -> its rows, or why they are not known.

    A ledger that was given without a name is a site's if it alone holds rows of this run with the noise that the site
    stated, and no other site stated the same.

    Raises:
        LedgerError: a file is no ledger, or is damaged.
    """
    found: dict[str, SiteRows | str] = {}
    for ledger in given:
        if ledger.site is not None:
            found[ledger.site] = _of_run(Ledger.existing(ledger.path), run_id=run_id)
    data_sets = _simulated(folder) if not given else {}
    if data_sets and (folder / SIMULATION_LEDGER).is_file():
        simulated = Ledger.existing(folder / SIMULATION_LEDGER)
        for site, data_set in data_sets.items():
            found.setdefault(site, SiteRows(data_set, simulated.rows(data_set)))
    unnamed = [ledger for ledger in given if ledger.site is None]
    candidates = [rows for ledger in unnamed for rows in _all_of_run(Ledger.existing(ledger.path), run_id=run_id)]
    noise = {site: held.uses() for site, held in histories.items() if held.said}
    alike = Counter(noise.values())
    for site in sites:
        if site not in found:
            twins = alike[noise[site]] if site in noise else 0
            found[site] = _matching(site, noise.get(site), candidates, run_id=run_id, twins=twins)
    return found


def _simulated(folder: Path) -> dict[str, str]:
    """site -> its data set, of a simulation, which made the owners' settings itself."""
    tables = [read_toml(path) for path in sorted((folder / _SITES_FOLDER).glob("*.toml"))]
    return {str(table["name"]): str(table["data_set"]) for table in tables if {"name", "data_set"} <= set(table)}


def _all_of_run(ledger: Ledger, *, run_id: str) -> list[SiteRows]:
    found = [SiteRows(name, ledger.rows(name)) for name in ledger.data_sets()]
    return [rows for rows in found if any(row.run_id == run_id for row in rows.rows)]


def _of_run(ledger: Ledger, *, run_id: str) -> SiteRows | str:
    found = _all_of_run(ledger, run_id=run_id)
    if len(found) == 1:
        return found[0]
    if not found:
        return f"{ledger.path} holds no row of run {run_id}"
    return f"{ledger.path} holds rows of run {run_id} for {len(found)} data sets"


def _matching(
    site: str, noise: frozenset[MechanismUse] | None, candidates: Sequence[SiteRows], *, run_id: str, twins: int
) -> SiteRows | str:
    """The candidate that alone fits what a site stated, which `twins` sites, itself included, have stated alike."""
    hint = f"name a copy of its ledger: --ledger {site}=FILE"
    if noise is None:
        return hint
    fitting = [
        rows for rows in candidates if noise <= {row.use for row in rows.of_run(run_id) if row.mechanism != "counts"}
    ]
    if len(fitting) == 1 and twins == 1:
        return fitting[0]
    return hint if not fitting else f"{twins} sites and {len(fitting)} data sets look alike; {hint}"
