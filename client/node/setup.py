"""Set-up of a site: a folder with everything its owner needs, and a public key to hand over.

in        the site's name, its server, the folder of its data, and what the owner says is public about it
out       site.toml, node.toml, agent/, node/, socket/, NAME.pub
relies on dataset.toml for what records can hold; rows are counted for the owner's eyes only (`count_rows`)
"""

import math
import os
import pwd
import shutil
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from client.node.settings import FILE_NAME as NODE_FILE
from client.node.settings import TEMPLATE, NodeSettings
from client.node.template import site_toml
from client.site import SiteConfig, read_site
from shared.card import card_places, find_card
from shared.errors import ConfigError
from shared.keys import fingerprint, new_key, private_text, public_line, read_certificate, write_secret
from shared.manifest import MANIFEST_NAMES, read_manifest
from shared.schema import DataCard
from shared.settings import parse_settings

SITE_FILE = "site.toml"


@dataclass(frozen=True)
class Counted:
    """What is in a data folder, for its owner."""

    rows: int
    subjects: int
    """that rows name; 0: none does"""


@dataclass(frozen=True)
class NewSite:
    """What the owner says of a new site."""

    name: str
    server: str
    data: Path
    size: int
    subjects: int | None = None
    unit: Literal["record", "subject"] = "record"
    epsilon: float = 8.0
    delta: float | None = None
    node_user: str | None = None
    """who runs the SuperNode; the agent's own user if not given, and then delivered code can read the data"""
    ca: Path | None = None


def count_rows(data: Path) -> Counted:
    """How many records and people a folder holds. Private: for the owner's screen, and never written down unasked.

    Raises:
        ManifestError: the folder has faults.
        ConfigError: there is no such folder, or it has no manifest or no dataset.toml.
    """
    _check_data(data)
    rows = read_manifest(data, schema=_card(data).content).rows
    return Counted(rows=len(rows), subjects=len({row.subject for row in rows} - {None}))


def rounded(number: int) -> int:
    """A public number for a private one: its first digit, the others zero, and so never above it."""
    if number < 1:
        return 1
    first, zeros = str(number)[0], len(str(number)) - 1
    return int(first + "0" * zeros)


def make_site(folder: Path, new: NewSite) -> tuple[Path, str]:
    """A site's folder; the public key to hand over, and its fingerprint.

    Raises:
        ConfigError: the folder is not empty, a value is not allowed, or there is no dataset.toml; nothing is left.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder}: not empty; name a new folder for the site")
    _check_data(new.data)
    user = _user(new.node_user)
    text, node_text = _site_text(new), TEMPLATE.format(server=new.server)
    # before anything is made, all of it is judged
    parse_settings(SiteConfig, tomllib.loads(text), place="motet site init")
    parse_settings(NodeSettings, tomllib.loads(node_text), place="motet site init")
    if new.ca is not None:
        read_certificate(new.ca)
    # who runs the SuperNode passes through the folder and reads nothing in it but what is made for it
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.chmod(0o711 if user else 0o700)
    for name, mode in {"agent": 0o700, "socket": 0o711 if user else 0o700, "node": 0o700}.items():
        (folder / name).mkdir(mode=mode)
        (folder / name).chmod(mode)
    write_secret(folder / SITE_FILE, text.encode())
    (folder / NODE_FILE).write_text(node_text, encoding="utf-8")
    (folder / NODE_FILE).chmod(0o644 if user else 0o600)
    made = new_site_key(folder, name=new.name)
    if new.ca is not None:
        shutil.copyfile(new.ca, folder / "node" / "ca.crt")
    if user is not None and os.geteuid() == 0:
        hand_over(folder / "node", user=user)
    read_site(folder / SITE_FILE)
    return made


def new_site_key(folder: Path, *, name: str) -> tuple[Path, str]:
    """A new key in the place of the old, which is gone: the public half to hand over, and its fingerprint.

    Raises:
        ConfigError: this user may not write to both places of the key; the old one is still there.
    """
    key, owner = new_key(), (folder / "node").stat()
    for place in ("agent", "node"):
        if not os.access(folder / place, os.W_OK | os.X_OK):
            raise ConfigError(f"{folder / place}: this user cannot write there; do it as root, or sudo chown it first")
    for place in ("agent", "node"):
        (folder / place / "key").unlink(missing_ok=True)
        write_secret(folder / place / "key", private_text(key))
    if os.geteuid() == 0:
        # PRIVACY: who owns that folder may have put a link there meanwhile, to a file that is the agent's or root's.
        # test_a_link_in_the_nodes_folder_hands_nothing_over
        os.chown(folder / "node" / "key", owner.st_uid, owner.st_gid, follow_symlinks=False)
    public = folder / f"{name}.pub"
    public.write_text(public_line(key.public_key(), name=name), encoding="utf-8")
    public.chmod(0o644)
    return public, fingerprint(key.public_key())


def hand_over(folder: Path, *, user: pwd.struct_passwd) -> None:
    """A folder and all in it belong to another user from now on; only root may do that."""
    for path in (folder, *folder.rglob("*")):
        os.chown(path, user.pw_uid, user.pw_gid, follow_symlinks=False)


def _site_text(new: NewSite) -> str:
    card = _card(new.data)
    return site_toml(
        name=new.name,
        data=str(new.data.resolve()),
        data_set=f"{new.name}: {card.title}"[:200],
        size=new.size,
        subjects=new.subjects,
        modalities=list(card.content.modalities),
        tasks=None,
        users=[new.node_user] if new.node_user else [],
        epsilon=new.epsilon,
        delta=new.delta or _delta(new.subjects if new.unit == "subject" and new.subjects else new.size),
        unit=new.unit,
    )


def _delta(units: int) -> float:
    """A power of ten that is at most a tenth of 1 / units, and at most 1e-5."""
    return min(1e-5, 10.0 ** -math.ceil(math.log10(10 * units)))


def _check_data(data: Path) -> None:
    if not data.is_dir():
        raise ConfigError(f"{data}: no such folder; --data names the one with metadata.jsonl in it")
    if _has_manifest(data):
        return
    inner = [path.name for path in sorted((data / "sites").glob("*")) if _has_manifest(path)]
    meant = f"; did you mean {data}/sites/{inner[0] if len(inner) == 1 else 'NAME'}?" if inner else ""
    raise ConfigError(f"{data}: no metadata.jsonl, .csv or .parquet in it{meant}")


def _has_manifest(folder: Path) -> bool:
    return any((folder / name).exists() for name in MANIFEST_NAMES)


def _card(data: Path) -> DataCard:
    card = find_card(data)
    if card is None:
        raise ConfigError(
            f"{data}: no {card_places(data)[0].name} in it or above it; put the one that all sites agreed on there: it "
            "says what records hold, and binds every run"
        )
    return card


def _user(name: str | None) -> pwd.struct_passwd | None:
    if name is None:
        return None
    try:
        found = pwd.getpwnam(name)
    except KeyError:
        raise ConfigError(f"--node-user {name!r}: no user of this machine; make one first (useradd --system)") from None
    return None if found.pw_uid == os.geteuid() else found
