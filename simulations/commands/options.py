"""Options: those that several commands share, spelled and explained alike.

in        nothing
out       annotations that typer reads, for motet.py and the modules beside this one; what they stand for
relies on nothing
"""

import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, get_args

import typer

from simulations.engine import DEFAULT_ENGINE, EngineName

Set = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting of the scenario.")]
Parts = Annotated[
    list[Path] | None, typer.Option("--parts", help="A Python file of yours that registers encoders, fusions or heads.")
]
Source = Annotated[Path | None, typer.Option("--from", help="Where a public source lies, for scenarios that need one.")]

Engine = Annotated[
    str | None,
    typer.Option(
        help="cohort (all sites of a round together in this process, the default), local (one after the other) or "
        "flower (Flower's simulation by Ray)."
    ),
]
Memory = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="About how much the training of one cohort may take, such as 512M or 2G; if not given, half of the "
        "machine's. Of engine cohort only.",
    ),
]
Device = Annotated[str | None, typer.Option(help="cpu (the default), cuda or cuda:NUMBER. Of engine cohort only.")]
Precision = Annotated[
    str | None,
    typer.Option(
        help="float32 (the default); tf32 (on cards that have it) or bf16: faster, with rounded products. Of engine "
        "cohort only."
    ),
]
RayAddress = Annotated[
    str | None,
    typer.Option(
        "--ray-address",
        metavar="HOST:PORT",
        help="Of a Ray cluster whose machines share the work, this one among them (docs/many-machines.md). Of engine "
        "flower only.",
    ),
]
_UNITS = {"M": 2**20, "G": 2**30}


def checked_engine(name: str | None, *, cohort_only: Mapping[str, str | None]) -> EngineName:
    """The engine that --engine names, or the default.

    Args:
        name: what was given.
        cohort_only: options that only the cohort engine has a use for, by name.

    Raises:
        BadParameter: there is no such engine, or it has no use for an option.
    """
    allowed: dict[str, EngineName] = {each: each for each in get_args(EngineName)}
    if name is not None and name not in allowed:
        raise typer.BadParameter(f"{name!r}; allowed: {', '.join(allowed)}", param_hint="--engine")
    engine = DEFAULT_ENGINE if name is None else allowed[name]
    given = [option for option, value in cohort_only.items() if value is not None]
    if given and engine != "cohort":
        raise typer.BadParameter(f"of the engine cohort; leave it away with --engine {engine}", param_hint=given[0])
    return engine


def checked_cluster(address: str | None, *, engine: str | None, goes_on: bool) -> None:
    """A cluster is named as Ray takes it, for the engine that has a use for it.

    Args:
        address: what --ray-address gave.
        engine: what --engine gave.
        goes_on: whether a run is resumed, whose engine its folder names.

    Raises:
        BadParameter: it is not.
    """
    if address is None:
        return
    if engine != "flower" and not (goes_on and engine is None):
        raise typer.BadParameter("of the engine flower; give --engine flower with it", param_hint="--ray-address")
    found = re.fullmatch(r"(?:[A-Za-z0-9._-]+|\[[0-9a-fA-F:]+\]):([0-9]{1,5})", address)
    if found is None or not 1 <= int(found[1]) <= 65_535:
        raise typer.BadParameter(f"{address!r}; allowed: HOST:PORT, such as 10.0.0.7:6379", param_hint="--ray-address")


def memory_bytes(size: str | None) -> int:
    """The bytes that --memory stands for; half of the machine's memory where it is not given.

    Raises:
        BadParameter: not a size.
    """
    if size is None:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([MG])(?:i?B)?", size.strip())
    number = int(float(found[1]) * _UNITS[found[2]]) if found else 0
    if number < 2**20:
        raise typer.BadParameter(
            f"{size!r}; allowed: a number with M or G, at least 1M, such as 512M, 2G or 2GiB", param_hint="--memory"
        )
    return number


def source_change(source: Path | None) -> list[str]:
    """The setting that --from stands for."""
    return [f"source.options.from={source.expanduser().resolve()}"] if source else []


def log_to_terminal() -> None:
    """What a command that goes on running says, a line each with its time; a service manager keeps them."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", force=True)
    logging.getLogger("httpx").setLevel(logging.WARNING)
