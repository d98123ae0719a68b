"""Owners: the settings file of every simulated site, as an owner of its data would write it.

in        a scenario and the folders of its data set's sites
out       text of a site.toml for each, read by client/site.py; or every fault of every site at once
relies on manifest.py for what a folder holds; nothing is written here
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from client.site import SiteConfig
from shared.errors import ManifestError, RunError
from shared.manifest import read_manifest
from shared.schema import DataSchema
from shared.settings import parse_settings
from simulations.scenario import Scenario, motet_home

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
        RunError: several have, or a run that protects subjects meets rows about nobody.
        ConfigError: the scenario asks of an owner what no owner may say.
    """
    common, privacy = _common(scenario, folder=folder, extensions=extensions), _privacy(scenario)
    tables, faults = dict[str, Table](), list[ManifestError]()
    for site in sites:
        try:
            tables[site.name] = _table(site, scenario=scenario, common=common, privacy=privacy)
        except ManifestError as error:
            faults.append(error)
    if len(faults) == 1:
        raise faults[0]
    if faults:
        raise RunError("\n".join([f"faults at {len(faults)} of {len(sites)} sites", *map(str, faults)]))
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
    encoders = scenario.run.model.encoders.values()
    return {
        "ledger": str((folder / "ledger.sqlite").resolve()),
        "cache": str(motet_home() / "features"),
        "checkpoints": [str(encoder.options["path"]) for encoder in encoders if "path" in encoder.options],
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
    """What a simulated owner declares: rows and subjects, rounded to two digits, and the modalities its rows have."""
    num_rows, num_subjects, modalities = _public_facts(site, schema=scenario.run.data)
    local = scenario.run.local_privacy
    if local is not None and local.unit == "subject" and not num_subjects:
        raise RunError(f'{site}: no subject_id in its manifest; unit "subject" needs one in every row')
    return {
        "name": site.name,
        "data": os.path.realpath(site),
        "data_set": site.name,
        "nominal_size": _two_digits(num_rows),
        **({"nominal_subjects": _two_digits(num_subjects)} if num_subjects else {}),
        "modalities": list(modalities),
        **common,
        "privacy": {**privacy, "delta": scenario.owners.delta or (local.delta if local else min(1e-5, 1 / num_rows))},
    }


def _public_facts(site: Path, *, schema: DataSchema) -> tuple[int, int, tuple[str, ...]]:
    """Rows, subjects that they name, and modalities that they have."""
    rows = read_manifest(site, schema=schema).rows
    modalities = tuple(name for name in schema.modalities if any(name in row.values for row in rows))
    return len(rows), len({row.subject for row in rows} - {None}), modalities


def _two_digits(number: int) -> int:
    return max(1, int(float(f"{number:.2g}")))
