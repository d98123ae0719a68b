"""Simulate: a whole federation on one machine, owners included, from a scenario to a report.

in        a scenario, an engine, a run folder to make or to go on with
out       the run folder: server.json, sites/, preflight.json, the ledgers, checkpoints/, metrics.jsonl, the report
relies on the two apps, unchanged, behind either engine
"""

import json
import os
import tomllib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from rich.console import Console

from client.site import SiteConfig
from server.settings import PREFLIGHT_FILE, ServerSettings, read_settings, write_preflight, write_settings
from shared.config import DataSchema, RunConfig, parse_settings
from shared.errors import ManifestError, ModelError, RunError
from shared.manifest import read_manifest
from simulations.scenario import OwnerSettings, Scenario, motet_home, read_card, state_home

Engine = Literal["local", "flower"]
SITES_FOLDER = "sites"
SERVER_LEDGER = "server-ledger.sqlite"
DEPLOYMENT = "deployment"
"""engine of a run whose sites are other people's: no settings are made for them, and no data of theirs is looked at"""


def prepare_run(
    scenario: Scenario,
    *,
    data_set: Path,
    folder: Path,
    engine: str,
    extensions: Sequence[Path] = (),
    num_sites: int | None = None,
    site_cap_epsilon: float | None = None,
) -> ServerSettings:
    """A run folder with the server's settings and a settings file for every simulated owner.

    Args:
        num_sites: sites to wait for before the first round; as many as the data set has, if not given.
        site_cap_epsilon: unit site: the most that all runs over these sites may spend; this run's own, if not given.

    Raises:
        RunError: the folder holds a run already, it is unknown how many sites there are, or several have faults.
        ManifestError: one site's manifest has faults.
        ConfigError: the scenario asks of an owner what no owner may say, such as a delta too large for its data.
    """
    if folder.exists() and any(folder.iterdir()):
        raise RunError(f"{folder}: not empty; name another folder, or go on with it: motet simulate --resume {folder}")
    sites = sorted(path for path in (data_set / "sites").glob("*") if path.is_dir())
    if not sites and (engine != DEPLOYMENT or num_sites is None):
        raise RunError(
            f"{data_set}/sites: no folders in it; allowed: one folder a site, or, for a deployment whose sites keep "
            "their own: motet prepare SCENARIO --num-sites NUMBER"
        )
    _try_to_build(scenario.run, extensions=extensions)
    owners = _owners(scenario, sites=sites if engine != DEPLOYMENT else (), folder=folder, extensions=extensions)
    _try_owners(owners, folder=folder)
    # only now, when nothing is left to go wrong: a folder made for nothing would stand in the way of the next try
    (folder / SITES_FOLDER).mkdir(parents=True, exist_ok=True)
    for name, text in owners.items():
        (folder / SITES_FOLDER / f"{name}.toml").write_text(text, encoding="utf-8")
    card, is_deployment = read_card(data_set), engine == DEPLOYMENT
    settings = ServerSettings(
        run=scenario.run,
        run_id=f"{scenario.run.name}-{datetime.now(UTC):%Y%m%dT%H%M%S}-{os.urandom(3).hex()}",
        held_out=data_set / "held-out",
        cache=motet_home() / "features",
        card=card,
        engine=engine,
        num_sites=num_sites or len(sites),
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        # a simulation's sites begin anew with it; real ones have been in whatever ran before
        ledger=(state_home() if is_deployment else folder.resolve()) / SERVER_LEDGER,
        federation=card.title if card else data_set.name,
        site_cap_epsilon=site_cap_epsilon,
        reproducible_noise=scenario.owners.reproducible_noise and not is_deployment,
        extensions=tuple(path.resolve() for path in extensions),
    )
    write_settings(settings, folder=folder)
    return settings


def run_simulation(folder: Path, *, engine: Engine | None = None) -> None:
    """Run what a run folder describes, from its last checkpoint if it has one, to its report.

    Raises:
        ModelError: the run's training code does not pass its preflight; no data was read.
        MotetError: whatever stopped the server app; what a site does cannot.
    """
    settings = read_settings(folder)
    _check_first(settings, folder=folder)
    sites = sorted((folder / SITES_FOLDER).glob("*.toml"))
    os.environ["MOTET_RUN_FOLDER"] = str(folder.resolve())
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    from client.app import app as client_app
    from server.app import app as server_app

    if (engine or settings.engine) == "flower":
        from simulations.engine.flower import run_in_flower

        run_in_flower(server_app, client_app, sites=sites, folder=folder)
    else:
        from simulations.engine.local import run_locally

        run_locally(server_app, client_app, sites=sites)


def _check_first(settings: ServerSettings, *, folder: Path) -> None:
    """The preflight of a run, once, before its first round; a resumed run has it behind it."""
    if (folder / PREFLIGHT_FILE).is_file():
        return
    from client.preflight import preflight
    from shared.model.registry import load_extensions
    from simulations.preflight import server_checks

    for extension in settings.extensions:
        load_extensions(extension)
    checks = (*preflight(settings.run), *server_checks(settings.run))
    failed = [f"  {check.name}: {check.detail}" for check in checks if not check.passed]
    if failed:
        heading = f"preflight: {len(failed)} of {len(checks)} checks failed; no data was read"
        raise ModelError("\n".join([heading, *failed]))
    write_preflight(checks, folder=folder)
    Console().print(f"preflight: {len(checks)} of {len(checks)} checks passed", highlight=False)


def _owners(scenario: Scenario, *, sites: Sequence[Path], folder: Path, extensions: Sequence[Path]) -> dict[str, str]:
    """Name of every simulated site -> its owner's settings; faults of all sites are told at once."""
    owners, faults = dict[str, str](), list[ManifestError]()
    for site in sites:
        try:
            owners[site.name] = _site_toml(
                site, run=scenario.run, owners=scenario.owners, folder=folder, extensions=extensions
            )
        except ManifestError as error:
            faults.append(error)
    if len(faults) == 1:
        raise faults[0]
    if faults:
        raise RunError("\n".join([f"faults at {len(faults)} of {len(sites)} sites", *map(str, faults)]))
    return owners


def _try_to_build(run: RunConfig, *, extensions: Sequence[Path]) -> None:
    """Names and options of the model's parts are told wrong before anything is made."""
    from shared.model.multimodal import build_model
    from shared.model.registry import load_extensions

    for extension in extensions:
        load_extensions(extension)
    build_model(run)


def _site_toml(site: Path, *, run: RunConfig, owners: OwnerSettings, folder: Path, extensions: Sequence[Path]) -> str:
    """What a simulated owner declares: rows and subjects, rounded to two digits, and the modalities its rows have."""
    num_rows, num_subjects, modalities = _public_facts(site, schema=run.data)
    local = run.local_privacy
    private = local or run.central_privacy
    if local is not None and local.unit == "subject" and not num_subjects:
        raise RunError(f'{site}: no subject_id in its manifest; unit "subject" needs one in every row')
    epsilon = owners.epsilon or (private.epsilon if private else 1.0)
    delta = owners.delta or (local.delta if local else min(1e-5, 1 / num_rows))
    values = {
        "name": site.name,
        "data": str(site.resolve()),
        "data_set": site.name,
        "nominal_size": _two_digits(num_rows),
        **({"nominal_subjects": _two_digits(num_subjects)} if num_subjects else {}),
        "modalities": list(modalities),
        "ledger": str((folder / "ledger.sqlite").resolve()),
        "cache": str(motet_home() / "features"),
        "checkpoints": [
            str(encoder.options["path"]) for encoder in run.model.encoders.values() if "path" in encoder.options
        ],
        "parts": [str(path.resolve()) for path in extensions],
    }
    privacy = {
        "epsilon": epsilon,
        "delta": delta,
        "unit": local.unit if local else "record",
        "on_short_budget": owners.on_short_budget,
        "noise": owners.noise,
        "allow_non_private": private is None,
        "trust_server": run.central_privacy is not None,
        "tell_budget": owners.tell_budget,
        "reproducible_noise": owners.reproducible_noise,
    }
    # a JSON string, number, list or boolean is also one in TOML
    lines = [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    return "\n".join([*lines, "", "[privacy]", *(f"{key} = {json.dumps(value)}" for key, value in privacy.items()), ""])


def _try_owners(owners: Mapping[str, str], *, folder: Path) -> None:
    """What the scenario asks of an owner, and an owner may not say, is told before anything is made."""
    for name, text in owners.items():
        place = f"{folder / SITES_FOLDER / name}.toml, made from the scenario's run.privacy and owners"
        parse_settings(SiteConfig, tomllib.loads(text), place=place)


def _public_facts(site: Path, *, schema: DataSchema) -> tuple[int, int, tuple[str, ...]]:
    """Rows, subjects that they name, and modalities that they have."""
    rows = read_manifest(site, schema=schema).rows
    modalities = tuple(name for name in schema.modalities if any(name in row.values for row in rows))
    return len(rows), len({row.subject for row in rows} - {None}), modalities


def _two_digits(number: int) -> int:
    return max(1, int(float(f"{number:.2g}")))
