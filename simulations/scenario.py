"""Scenario: one file that says where data comes from and what run is made of it, for people to copy and change.

in        simulations/scenarios/NAME.toml or a file of the user's own, and --set changes
out       Scenario: how to get the data set, how simulated owners are set up, the RunConfig
relies on shared/config.py for what a run may ask
"""

import hashlib
import os
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from shared.config import NoiseKind, RunConfig
from shared.errors import ConfigError
from shared.schema import DataCard, DataSchema
from shared.settings import Name, Option, Settings, parse_settings, read_toml
from simulations.attacks.settings import AttackSettings

SCENARIOS = Path(__file__).parent / "scenarios"


def motet_home() -> Path:
    """Where built data sets and caches are kept: MOTET_HOME, or .cache/motet in the user's home."""
    return Path(os.environ.get("MOTET_HOME") or Path.home() / ".cache" / "motet").expanduser().resolve()


def state_home() -> Path:
    """Where what must not be lost is kept, the server's ledger: MOTET_HOME, or .local/state/motet in the user's home.

    Never the folder of caches, which people and programs empty: a ledger that is gone has forgotten what was spent.
    """
    return Path(os.environ.get("MOTET_HOME") or Path.home() / ".local" / "state" / "motet").expanduser().resolve()


class SourceSettings(Settings):
    """Where the data set is: a folder, or a builder that makes one."""

    path: Path | None = Field(
        default=None, description="a data set's folder: held-out/ in it, and sites/ for simulations"
    )
    builder: str | None = Field(default=None, description="as in `motet data BUILDER`")
    seed: int = Field(default=0, ge=0, description="of the builder")
    options: dict[str, Option] = Field(default={}, description="of the builder")
    missing: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="share of the sites (rows, under `missing_by`) with a modality that lose it, each modality by "
        "itself; a row keeps one that the model takes",
    )
    missing_by: Literal["site", "row"] = Field(default="site", description="who loses them")
    missing_from: tuple[Name, ...] = Field(
        default=(), description="the modalities concerned; those that the model takes, if not set"
    )
    missing_seed: int | None = Field(default=None, ge=0, description="of what is taken away; `seed`, if not set")

    @model_validator(mode="after")
    def _one_of_them(self) -> "SourceSettings":
        if (self.path is None) == (self.builder is None):
            raise ValueError("path and builder: exactly one of them must be set")
        return self


class OneOwnerSettings(Settings):
    """What some simulated owners say otherwise than the rest."""

    frozen: tuple[str, ...] = Field(
        default=(), description="patterns of the names of parameters that these use and do not train"
    )
    tasks: tuple[Name, ...] | None = Field(
        default=None, description="of several tasks, those that these answer; those that their rows do, if not set"
    )


class OwnerSettings(Settings):
    """What every simulated owner permits."""

    epsilon: float | None = Field(
        default=None, gt=0, description="cap of each site's ledger; the run's epsilon if not set"
    )
    delta: float | None = Field(default=None, gt=0, lt=1)
    on_short_budget: Literal["refuse", "fewer-rounds", "more-noise"] = "refuse"
    noise: NoiseKind = "float64"
    tell_budget: bool = True
    reproducible_noise: bool = Field(default=False, description="the server's too; it protects nobody")
    sites: dict[str, OneOwnerSettings] = Field(
        default={}, description="pattern of sites' names -> what those owners say; the first that matches holds"
    )


class Scenario(Settings):
    """A file under simulations/scenarios, or one like it."""

    about: str
    source: SourceSettings
    owners: OwnerSettings = OwnerSettings()
    attack: AttackSettings | None = None
    run: RunConfig


def find_scenario(name: str) -> Path:
    """The path of a shipped scenario, or of the user's own file.

    Raises:
        ConfigError: neither.
    """
    shipped = SCENARIOS / f"{name}.toml"
    if shipped.is_file():
        return shipped
    if Path(name).is_file():
        return Path(name)
    raise ConfigError(
        f"{name}: no such scenario; allowed: {', '.join(shipped_scenarios())}, or the path of a TOML file"
    )


def shipped_scenarios() -> tuple[str, ...]:
    """Names of the scenarios that come with Motet."""
    return tuple(sorted(path.stem for path in SCENARIOS.glob("*.toml")))


def read_scenario(path: Path, *, changes: Sequence[str] = (), home: Path) -> tuple[Scenario, Path]:
    """A scenario with changes such as "run.federation.rounds=5" made to it, and the folder of its data set.

    A built data set is built once and kept under `home`. Where `run.data` is left out, the data set's own dataset.toml
    says what its folders look like.

    Raises:
        ConfigError: the file, a change or the data set is not allowed; every fault is named.
    """
    table = read_toml(path)
    for change in changes:
        _apply(change, table)
    source = table.get("source")
    settings = parse_settings(SourceSettings, source if isinstance(source, dict) else {}, place=f"{path}: source")
    run = table.get("run")
    data_set = _data_set(settings, beside=path.parent, home=home)
    if settings.missing:
        data_set = _with_losses(data_set, settings, needed=_modalities_of(run), home=home)
    if table.get("attack") is not None:
        data_set = _under(table["attack"], data_set, place=f"{path}: attack", home=home)
    card = read_card(data_set)
    if card is not None and isinstance(run, dict):
        run.setdefault("data", card.content.model_dump(exclude_none=True))
    return parse_settings(Scenario, table, place=str(path)), data_set


def read_run(path: Path, *, changes: Sequence[str] = (), data: DataSchema | None) -> RunConfig:
    """A scenario's run alone, with changes made to it; its data set is neither looked for nor built.

    Args:
        data: what the data looks like where the scenario leaves that to its data set.

    Raises:
        ConfigError: the file or a change is not allowed; every fault is named.
    """
    table = read_toml(path)
    for change in changes:
        _apply(change, table)
    run = table.get("run")
    run = dict(run) if isinstance(run, dict) else {}
    if data is not None:
        run.setdefault("data", data.model_dump(exclude_none=True))
    return parse_settings(RunConfig, run, place=f"{path}: run")


def _data_set(settings: SourceSettings, *, beside: Path, home: Path) -> Path:
    if settings.path is not None:
        folder = (beside / settings.path.expanduser()).resolve()
        if not (folder / "held-out").is_dir():
            raise ConfigError(
                f"{folder}: no data set; allowed: a folder with held-out/ in it, and for simulations sites/SITE/ too "
                "(see README, Data)"
            )
        return folder
    from simulations.datasets.registry import build

    name = str(settings.builder)
    options = settings.model_dump_json(include={"seed", "options"})
    folder = home / "data" / f"{name}-{hashlib.sha256(options.encode()).hexdigest()[:12]}"
    if not folder.is_dir():
        build(name, folder, seed=settings.seed, options=settings.options)
    return folder


def _with_losses(source: Path, settings: SourceSettings, *, needed: tuple[str, ...], home: Path) -> Path:
    """The data set less what `missing` takes away, made once and kept under `home`."""
    from simulations.datasets.missing import digest_of_source, take_away

    share, by, names = settings.missing, settings.missing_by, settings.missing_from or needed
    seed = settings.seed if settings.missing_seed is None else settings.missing_seed
    key = repr((digest_of_source(source), share, by, names, needed, seed))
    folder = home / "data" / f"{source.name}-missing-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    if not folder.is_dir():
        take_away(source, folder, share=share, by=by, names=names, needed=needed, seed=seed)
    return folder


def _under(table: object, source: Path, *, place: str, home: Path) -> Path:
    """The data set that hostile sites train on, made once and kept under `home`; the same where they train rightly."""
    attack = parse_settings(AttackSettings, table if isinstance(table, dict) else {}, place=place)
    if attack.kind != "label-flipped":
        return source
    from simulations.attacks.labels import flip_labels
    from simulations.attacks.plan import hostile_sites
    from simulations.datasets.missing import digest_of_source

    sites = hostile_sites(attack, sites=[path.name for path in (source / "sites").glob("*") if path.is_dir()])
    key = repr((digest_of_source(source), sites))
    folder = home / "data" / f"{source.name}-flipped-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    if not folder.is_dir():
        flip_labels(source, folder, sites=sites)
    return folder


def _modalities_of(run: object) -> tuple[str, ...]:
    """Those that the model of a run takes, as far as its unread table says."""
    for key in ("model", "encoders"):
        run = run.get(key) if isinstance(run, dict) else None
    return tuple(sorted(map(str, run))) if isinstance(run, dict) else ()


def _apply(change: str, table: dict[str, object]) -> None:
    dotted, equals, value = change.partition("=")
    keys = dotted.strip().split(".")
    if not equals or not all(keys):
        raise ConfigError(f"--set {change!r}; allowed: KEY.KEY=VALUE, for example run.federation.rounds=5")
    for key in keys[:-1]:
        inner = table.setdefault(key, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"--set {change!r}: {key} holds a value, not a table")
        table = inner
    try:
        table[keys[-1]] = tomllib.loads(f"value = {value.strip()}")["value"]
    except tomllib.TOMLDecodeError:
        table[keys[-1]] = value.strip()


def read_card(data_set: Path) -> DataCard | None:
    """The card of a data set, where it has one."""
    path = data_set / "dataset.toml"
    return parse_settings(DataCard, read_toml(path), place=str(path)) if path.is_file() else None
