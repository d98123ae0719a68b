"""Attack plan: which simulated sites are hostile in a run, on the run folder's disk so that a resumed run has the same.

in        AttackSettings and the names of a data set's sites
out       Attack, in RUN/attack.json, read by simulate.py when the run starts or goes on
relies on engine/hostile.py for what these send; labels.py for what they train on

A hostile site is an enrolled member of the federation with a key, a ledger and data: what it may not do is refused by
the same checks as for any site, and what it may do is what these attacks measure.
"""

from collections.abc import Collection
from pathlib import Path

import numpy as np

from server.settings import write_atomically
from shared.errors import ConfigError
from shared.settings import Settings, parse_settings_json
from simulations.attacks.settings import AttackSettings, Kind

FILE_NAME = "attack.json"


class Attack(Settings):
    """RUN/attack.json: who does what in one run."""

    kind: Kind
    factor: float
    sites: tuple[str, ...]
    pretended: str = ""
    """other-name: as whom they introduce themselves"""


def plan_attack(settings: AttackSettings, *, sites: Collection[str]) -> Attack:
    """Who is hostile among these sites.

    Raises:
        ConfigError: an attack in another's name, where nobody else is left.
    """
    hostile = hostile_sites(settings, sites=sites)
    others = sorted(set(sites) - set(hostile))
    if settings.kind == "other-name" and not others:
        raise ConfigError(f"attack.share is {settings.share}: no site is left whose name could be taken")
    pretended = others[0] if settings.kind == "other-name" else ""
    return Attack(kind=settings.kind, factor=settings.factor, sites=hostile, pretended=pretended)


def hostile_sites(settings: AttackSettings, *, sites: Collection[str]) -> tuple[str, ...]:
    """Names of the hostile ones, sorted."""
    names = sorted(sites)
    order = np.random.default_rng([settings.seed, 23]).permutation(len(names))
    return tuple(sorted(names[int(place)] for place in order[: round(settings.share * len(names))]))


def title_under(attack: Attack, *, title: str, num_sites: int) -> str:
    """A data set's title, so that no report of an attacked run can be taken for another."""
    return f"{title}; {len(attack.sites)} of {num_sites} sites hostile: {attack.kind}"


def write_attack(attack: Attack, *, folder: Path) -> None:
    """RUN/attack.json."""
    write_atomically(folder / FILE_NAME, attack.model_dump_json(indent=2).encode())


def read_attack(folder: Path) -> Attack | None:
    """The attack of a run folder; None where all sites are honest.

    Raises:
        ConfigError: the file is damaged.
    """
    path = folder / FILE_NAME
    if not path.is_file():
        return None
    return parse_settings_json(Attack, path.read_text(encoding="utf-8"), place=str(path))
