"""Owners: the settings file of every simulated site, as an owner of its data would write it.

in        a scenario and the folders of its data set's sites
out       text of a site.toml for each, read by client/site.py; or every fault of every site at once
relies on manifest.py for what a folder holds; nothing is written here
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from client.site import SiteConfig
from shared.errors import ManifestError, RunError
from shared.manifest import read_manifest
from shared.model.encoders.checkpoint import named_folders
from shared.schema import DataSchema
from shared.settings import parse_settings
from shared.targets import cells_of
from simulations.scenario import OneOwnerSettings, Scenario, motet_home

Table = dict[str, object]


def settings_of_owners(
    scenario: Scenario, *, sites: Sequence[Path], folder: Path, sites_folder: Path, extensions: Sequence[Path]
) -> dict[str, str]:
    """Name of every simulated site -> its owner's settings.

    Args:
        scenario: what the owners permit, and the run they are asked to take part in.
        sites: the folders with their data.
        folder: of the run; the owners' ledger lies in it.
        sites_folder: where the settings will lie, for error texts.
        extensions: Python files of parts that the owners trust.

    Raises:
        ManifestError: one site's manifest has faults.
        RunError: several have, or a run that protects subjects meets rows about nobody, or a pattern meets no site, or
            a matching meets sites without a pair.
        ConfigError: the scenario asks of an owner what no owner may say.
    """
    _check_patterns(scenario, sites=sites)
    common, privacy = _common(scenario, folder=folder, extensions=extensions), _privacy(scenario)
    tables, faults, unpaired = dict[str, Table](), list[ManifestError](), list[str]()
    for site in sites:
        try:
            tables[site.name] = _table(site, scenario=scenario, common=common, privacy=privacy)
        except ManifestError as error:
            faults.append(error)
        except _NoPairsError:
            unpaired.append(site.name)
    if len(faults) == 1:
        raise faults[0]
    if faults:
        raise RunError("\n".join([f"faults at {len(faults)} of {len(sites)} sites", *map(str, faults)]))
    if unpaired:
        named = f"{', '.join(unpaired[:40])}{' and others' if len(unpaired) > 40 else ''}"
        pair = " and ".join(scenario.run.data.pair or ())
        raise RunError(
            f"{len(unpaired)} of {len(sites)} sites have no row with both {pair}: {named}. Their updates would be "
            "noise alone. Take their folders out of the data set, or put what belongs together into one row; where "
            'source.missing takes modalities away, missing_by = "row" leaves pairs'
        )
    for name, table in tables.items():
        place = f"{sites_folder / name}.toml, made from the scenario's run.privacy and owners"
        parse_settings(SiteConfig, table, place=place)
    return {name: as_toml(table) for name, table in tables.items()}


def as_toml(table: Table) -> str:
    """A table of plain values, and tables of such, as TOML: in JSON's form, which TOML can take."""
    values = [f"{key} = {json.dumps(value)}" for key, value in table.items() if not isinstance(value, dict)]
    for name, inner in table.items():
        if isinstance(inner, dict):
            values += ["", f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in inner.items())]
    return "\n".join([*values, ""])


def _common(scenario: Scenario, *, folder: Path, extensions: Sequence[Path]) -> Table:
    """What all owners say alike."""
    return {
        "ledger": str((folder / "ledger.sqlite").resolve()),
        "cache": str(motet_home() / "features"),
        "checkpoints": list(named_folders(scenario.run).values()),
        "parts": [str(path.resolve()) for path in extensions],
    }


def _privacy(scenario: Scenario) -> Table:
    """What all owners permit alike."""
    run, owners = scenario.run, scenario.owners
    private = run.local_privacy or run.central_privacy
    return {
        "epsilon": owners.epsilon or (private.epsilon if private else 1.0),
        "unit": run.local_privacy.unit if run.local_privacy else "record",
        "on_short_budget": owners.on_short_budget,
        "noise": owners.noise,
        "allow_non_private": private is None,
        "trust_server": run.central_privacy is not None,
        "tell_budget": owners.tell_budget,
        "reproducible_noise": owners.reproducible_noise,
    }


def _table(site: Path, *, scenario: Scenario, common: Table, privacy: Table) -> Table:
    """What a simulated owner declares: rows and subjects, rounded to two digits, the modalities and tasks of its rows.

    How many rows have each modality, where the run weighs by that.
    """
    facts, own = _public_facts(site, schema=scenario.run.data), _said_by(scenario, name=site.name)
    if facts.num_pairs == 0:
        raise _NoPairsError
    local, size = scenario.run.local_privacy, _two_digits(facts.num_rows)
    if local is not None and local.unit == "subject" and not facts.num_subjects:
        raise RunError(f'{site}: no subject_id in its manifest; unit "subject" needs one in every row')
    tasks, by_modality = own.tasks or facts.tasks, scenario.run.federation.weighting == "modality"
    sizes = {name: min(size, _two_digits(number)) for name, number in facts.rows_with.items()}
    return {
        "name": site.name,
        "data": os.path.realpath(site),
        "data_set": site.name,
        "nominal_size": size,
        **({"nominal_subjects": _two_digits(facts.num_subjects)} if facts.num_subjects else {}),
        "modalities": list(facts.rows_with),
        **({"tasks": list(tasks)} if tasks else {}),
        **({"frozen": list(own.frozen)} if own.frozen else {}),
        **common,
        **({"nominal_modality_sizes": sizes} if by_modality else {}),
        "privacy": {
            **privacy,
            "delta": scenario.owners.delta or (local.delta if local else min(1e-5, 1 / facts.num_rows)),
        },
    }


def _said_by(scenario: Scenario, *, name: str) -> OneOwnerSettings:
    """What the scenario has one owner say by itself."""
    own = (said for pattern, said in scenario.owners.sites.items() if fnmatchcase(name, pattern))
    return next(own, OneOwnerSettings())


def _check_patterns(scenario: Scenario, *, sites: Sequence[Path]) -> None:
    names = [site.name for site in sites]
    idle = [pattern for pattern in scenario.owners.sites if not any(fnmatchcase(name, pattern) for name in names)]
    if idle and names:
        raise RunError(f"owners.sites: {idle} match no site; there are: {', '.join(names[:40])}")


@dataclass(frozen=True)
class _Facts:
    """What a folder holds."""

    num_rows: int
    num_subjects: int
    """that the rows name"""
    rows_with: dict[str, int]
    """modality -> rows that have it, of those that any has"""
    tasks: tuple[str, ...]
    """of several, those that any row answers; none where there are not several"""
    num_pairs: int | None
    """matching: rows that have both of a pair; None for any other task"""


class _NoPairsError(Exception):
    """A site of a matching has no row with both of a pair."""


def _public_facts(site: Path, *, schema: DataSchema) -> _Facts:
    rows = read_manifest(site, schema=schema).rows
    counted = {name: sum(name in row.values for row in rows) for name in schema.modalities}
    answered = {task for row in rows for task in cells_of(row.target, schema=schema)} if schema.tasks else set()
    return _Facts(
        num_rows=len(rows),
        num_subjects=len({row.subject for row in rows} - {None}),
        rows_with={name: number for name, number in counted.items() if number},
        tasks=tuple(name for name in schema.tasks if name in answered),
        num_pairs=None if schema.pair is None else sum(set(schema.pair) <= row.values.keys() for row in rows),
    )


def _two_digits(number: int) -> int:
    return max(1, int(float(f"{number:.2g}")))
