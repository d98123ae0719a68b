"""Simulate: a whole federation on one machine, owners included, from a scenario to a report.

in        a scenario, an engine, a run folder to make or to go on with
out       the run folder: server.json, sites/, preflight.json, computed.json, the ledgers, checkpoints/, metrics.jsonl,
          the report
relies on the two apps, unchanged, behind each engine
"""

import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch
from rich.console import Console

from client.arithmetic import PLAIN, Arithmetic
from server.records import Computed
from server.settings import (
    ServerSettings,
    note_computed,
    read_preflight,
    read_settings,
    write_preflight,
    write_settings,
)
from shared.config import RunConfig
from shared.errors import ModelError, RunError
from shared.schema import DataCard
from simulations.attacks.plan import Attack, plan_attack, read_attack, title_under, write_attack
from simulations.engine import EngineName
from simulations.engine.held_memory import without_search
from simulations.owners import settings_of_owners
from simulations.scenario import Scenario, motet_home, read_card, state_home

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
    sites = _site_folders(data_set, are_needed=engine != DEPLOYMENT or num_sites is None)
    _check_number(num_sites or len(sites), run=scenario.run)
    run = _with_whole_path(scenario.run)
    _try_to_build(run, extensions=extensions)
    run = _with_digests(run)
    attack = _attack(scenario, sites=sites, engine=engine)
    owners = settings_of_owners(
        scenario,
        sites=sites if engine != DEPLOYMENT else (),
        folder=folder,
        sites_folder=folder / SITES_FOLDER,
        extensions=extensions,
    )
    # only now, when nothing is left to go wrong: a folder made for nothing would stand in the way of the next try
    _write_owners(owners, folder=folder / SITES_FOLDER)
    if attack is not None:
        write_attack(attack, folder=folder)
    card, is_deployment = _card(data_set, attack=attack, num_sites=len(sites)), engine == DEPLOYMENT
    settings = ServerSettings(
        run=run,
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


def run_simulation(
    folder: Path,
    *,
    engine: EngineName | None = None,
    memory_bytes: int = 2**30,
    arithmetic: Arithmetic = PLAIN,
    ray_address: str | None = None,
) -> None:
    """Run what a run folder describes, from its last checkpoint if it has one, to its report.

    Args:
        folder: of the run.
        engine: another than the one it was begun with.
        memory_bytes: engine "cohort": about how much the training of one cohort may take.
        arithmetic: engine "cohort": where and how precisely cohorts are computed.
        ray_address: engine "flower": of a Ray cluster whose machines share the work.

    Raises:
        RunError: a cluster is named for another engine, cannot be joined, or a machine of it is not fit for the run.
        ModelError: the run's training code does not pass its preflight; no data was read.
        MotetError: whatever stopped the server app; what a site does cannot.
    """
    settings = read_settings(folder)
    chosen = engine or settings.engine
    _check_place(ray_address, engine=chosen, folder=folder)
    os.environ["MOTET_RUN_FOLDER"] = str(folder.resolve())
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    with without_search():
        from client.app import app as client_app
        from server.app import app as server_app
    _check_first(settings, engine=chosen, folder=folder)
    sites, attack = sorted((folder / SITES_FOLDER).glob("*.toml")), read_attack(folder)
    hostile = attack.sites if attack is not None and attack.kind != "label-flipped" else ()
    if attack is not None and hostile:
        from simulations.engine.hostile import HostileApp

        client_app = HostileApp(client_app, attack=attack)
    note_computed(_computed(chosen, memory_bytes=memory_bytes, arithmetic=arithmetic), folder=folder)
    match chosen:
        case "flower":
            from simulations.engine.flower import run_in_flower

            run_in_flower(server_app, client_app, sites=sites, folder=folder, ray_address=ray_address)
        case "cohort":
            from simulations.engine.cohort import run_in_cohorts

            run_in_cohorts(
                server_app,
                client_app,
                sites=sites,
                memory_bytes=memory_bytes,
                folder=motet_home() / "cohort",
                arithmetic=arithmetic,
                by_app=hostile,
            )
        case _:
            from simulations.engine.local import run_locally

            run_locally(server_app, client_app, sites=sites)


def _check_place(ray_address: str | None, *, engine: str, folder: Path) -> None:
    if ray_address is not None and engine != "flower":
        raise RunError(f"{folder}: a run of the engine {engine}; leave --ray-address away, it is of the engine flower")


def _computed(engine: str, *, memory_bytes: int, arithmetic: Arithmetic) -> Computed:
    """What the report says of where this start of the run trains; engines other than cohort have no choice."""
    if engine != "cohort":
        return Computed(engine=engine, device=PLAIN.device, precision=PLAIN.precision)
    card = f" ({torch.cuda.get_device_name(arithmetic.place)})" if arithmetic.place.type == "cuda" else ""
    return Computed(
        engine=engine,
        device=f"{arithmetic.device}{card}",
        precision=arithmetic.precision,
        memory_bytes=memory_bytes,
    )


def _check_first(settings: ServerSettings, *, engine: str, folder: Path) -> None:
    """The preflight of a run, once, before its first round; that of cohorts before the first that trains in them."""
    known = read_preflight(folder)
    if known and engine != "cohort":
        return
    from client.preflight import preflight
    from shared.model.registry import load_extensions
    from simulations import preflight_cohort
    from simulations.preflight import server_checks

    in_cohorts = engine == "cohort" and all(check.name != preflight_cohort.NAME for check in known)
    if known and not in_cohorts:
        return
    for extension in settings.extensions:
        load_extensions(extension)
    checks = known or (*preflight(settings.run), *server_checks(settings.run))
    if in_cohorts:
        checks = (*checks, *preflight_cohort.cohort_checks(settings.run))
    failed = [f"  {check.name}: {check.detail}" for check in checks if not check.passed]
    if failed:
        heading = f"preflight: {len(failed)} of {len(checks)} checks failed; no data was read"
        raise ModelError("\n".join([heading, *failed]))
    write_preflight(checks, folder=folder)
    Console().print(f"preflight: {len(checks)} of {len(checks)} checks passed", highlight=False)


def _write_owners(owners: Mapping[str, str], *, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in owners.items():
        (folder / f"{name}.toml").write_text(text, encoding="utf-8")


def _card(data_set: Path, *, attack: Attack | None, num_sites: int) -> DataCard | None:
    """The data set's card, with the attack in its title: no report of an attacked run may pass for another."""
    card = read_card(data_set)
    if card is None or attack is None:
        return card
    return card.model_copy(update={"title": title_under(attack, title=card.title, num_sites=num_sites)})


def _check_number(num_sites: int, *, run: RunConfig) -> None:
    """Too few sites for the aggregation are told before anything is made."""
    federation = run.federation
    if num_sites < federation.fewest_updates:
        raise RunError(
            f"{num_sites} sites; aggregation = {federation.aggregation!r} with byzantine_sites = "
            f"{federation.byzantine_sites} needs 2 * {federation.byzantine_sites} + 3 = {federation.fewest_updates}; "
            "allowed: more sites, or fewer byzantine_sites"
        )


def _attack(scenario: Scenario, *, sites: Sequence[Path], engine: str) -> Attack | None:
    """Who is hostile in a simulation that asks for it."""
    if scenario.attack is None:
        return None
    if engine == DEPLOYMENT:
        raise RunError("attack: sites are hostile in simulations only; take it out of the scenario of a deployment")
    return plan_attack(scenario.attack, sites=[site.name for site in sites])


def _site_folders(data_set: Path, *, are_needed: bool) -> list[Path]:
    sites = sorted(path for path in (data_set / "sites").glob("*") if path.is_dir())
    if not sites and are_needed:
        raise RunError(
            f"{data_set}/sites: no folders in it; allowed: one folder a site, or, for a deployment whose sites keep "
            "their own: motet prepare SCENARIO --num-sites NUMBER"
        )
    return sites


def _try_to_build(run: RunConfig, *, extensions: Sequence[Path]) -> None:
    """Names and options of the model's parts, or what it begins with, are told wrong before anything is made."""
    from server.start import read_start
    from shared.model.multimodal import build_model
    from shared.model.registry import load_extensions

    for extension in extensions:
        load_extensions(extension)
    read_start(build_model(run), run=run)


def _with_digests(run: RunConfig) -> RunConfig:
    from shared.model.encoders.checkpoint import with_digests

    return with_digests(run)


def _with_whole_path(run: RunConfig) -> RunConfig:
    """The run with the path of what it begins with as seen from anywhere: the server app may run in another folder."""
    start = run.model.start
    if start is None:
        return run
    whole = start.model_copy(update={"path": str(Path(start.path).expanduser().resolve())})
    return run.model_copy(update={"model": run.model.model_copy(update={"start": whole})})
