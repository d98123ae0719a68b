"""Enrolment: which key belongs to which site, until when; a folder of public keys that the server's operator fills.

in        a site's public key, as its owner handed it over
out       DIR/enrolled/NAME.pub and NAME.json beside it; both moved to DIR/revoked/ when the site leaves
relies on shared/keys.py for what a key may be; Flower's own register of nodes is kept in step by deployment/nodes.py
"""

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pydantic import Field

from server.settings import write_atomically
from shared.errors import ConfigError
from shared.keys import fingerprint, public_line, read_public
from shared.settings import Settings, parse_settings_json

MOST_SITES = 150
"""between 100, which two cores served well, and 200, whose round took five minutes. docs/many-sites.md"""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class Enrolment(Settings):
    """One enrolled key."""

    name: str
    fingerprint: str
    enrolled: str
    expires: str | None = Field(description="None: never")
    node_id: str | None = Field(default=None, description="of Flower's, once its SuperLink knows the key")

    def has_expired(self, now: datetime) -> bool:
        """Whether the key's time is over."""
        return self.expires is not None and datetime.fromisoformat(self.expires) <= now


def enrol(public_key: Path, *, folder: Path, days: int | None, name: str | None = None) -> Enrolment:
    """Put a site's key beside those of the others.

    Args:
        folder: of the enrolled keys.
        days: after which the key expires; None: never.
        name: of the site; the one behind the key if not given.

    Raises:
        ConfigError: it is no key of the form allowed, has no name, or its name or key is enrolled already.
    """
    key, said = read_public(public_key)
    name = name or said
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{public_key}: the site is called {name[:80]!r}; allowed: letters, digits and ._-, at most 64; the site "
            "says it behind its key, or give --name"
        )
    mark = fingerprint(key)
    for other in enrolments(folder):
        if name.lower() == other.name.lower():
            raise ConfigError(
                f"{other.name} is enrolled already, with the key {other.fingerprint}; if its key has changed, end the "
                f"old one first: motet server revoke {other.name}"
            )
        if mark == other.fingerprint:
            raise ConfigError(f"{public_key}: this key is enrolled already, as {other.name}; each site needs its own")
    # Flower never takes a key again that it has let go of, and whoever revoked one had a reason
    if mark in _revoked_marks(folder):
        raise ConfigError(f"{public_key}: this key was revoked; have the site make a new one: motet site key")
    now = datetime.now(UTC)
    expires = None if days is None else (now + timedelta(days=days)).isoformat(timespec="seconds")
    made = Enrolment(name=name, fingerprint=mark, enrolled=now.isoformat(timespec="seconds"), expires=expires)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / f"{name}.pub", public_line(key, name=name).encode())
    write_enrolment(made, folder=folder)
    return made


def revoke(name: str, *, folder: Path) -> Enrolment:
    """Take a site's key out; from now on no introduction with it is accepted.

    Raises:
        ConfigError: no such site is enrolled.
    """
    found = read_enrolment(folder, name=name)
    away = _revoked(folder)
    away.mkdir(exist_ok=True)
    stamp = f"{datetime.now(UTC):%Y%m%dT%H%M%S.%f}"  # two in one second are two
    # the words first: without them a key stands for nobody, whatever happens in between
    (folder / f"{name}.json").rename(away / f"{name}.{stamp}.json")
    (folder / f"{name}.pub").rename(away / f"{name}.{stamp}.pub")
    return found


def enrolments(folder: Path) -> tuple[Enrolment, ...]:
    """All that are enrolled, by name.

    Raises:
        ConfigError: a file is damaged.
    """
    return tuple(read_enrolment(folder, name=path.stem) for path in sorted(folder.glob("*.json")))


def crowding(folder: Path) -> str | None:
    """What an operator is told where more sites are enrolled than one server bears."""
    found = len(list(folder.glob("*.json")))
    if found <= MOST_SITES:
        return None
    return (
        f"{found} sites are enrolled; from some {MOST_SITES} on Flower's SuperLink answers late, and with twice as "
        "many no run begins; set up another deployment for some of them (docs/many-sites.md)"
    )


def read_enrolment(folder: Path, *, name: str) -> Enrolment:
    """One enrolled site.

    Raises:
        ConfigError: there is none of that name, or its files are damaged or do not belong together.
    """
    path = folder / f"{name}.json"
    if not _NAME.fullmatch(name) or not path.is_file():
        known = ", ".join(sorted(each.stem for each in folder.glob("*.json"))) or "none"
        raise ConfigError(f"{name[:80]!r} is not enrolled; there are: {known}")
    found = parse_settings_json(Enrolment, path.read_text(encoding="utf-8"), place=str(path))
    key, _ = read_public(path.with_suffix(".pub"))
    if found.name != name or found.fingerprint != fingerprint(key):
        raise ConfigError(f"{path}: of another key or site than {name}.pub; revoke it and enrol the key again")
    return found


def write_enrolment(enrolment: Enrolment, *, folder: Path) -> None:
    """NAME.json, whole or not at all."""
    write_atomically(folder / f"{enrolment.name}.json", enrolment.model_dump_json(indent=2).encode())


def revoked_nodes(folder: Path) -> tuple[tuple[Path, Enrolment], ...]:
    """Those that were enrolled and may still be known to Flower, each with its file."""
    found = ((path, path.read_text(encoding="utf-8")) for path in sorted(_revoked(folder).glob("*.json")))
    listed = ((path, parse_settings_json(Enrolment, text, place=str(path))) for path, text in found)
    return tuple((path, each) for path, each in listed if each.node_id is not None)


def _revoked_marks(folder: Path) -> frozenset[str]:
    """Fingerprints of all keys that were revoked, also of one whose revocation was cut off between its two files."""
    words = (path.read_text(encoding="utf-8") for path in sorted(_revoked(folder).glob("*.json")))
    said = {parse_settings_json(Enrolment, text, place=str(_revoked(folder))).fingerprint for text in words}
    return frozenset(said | {fingerprint(read_public(path)[0]) for path in sorted(_revoked(folder).glob("*.pub"))})


def _revoked(folder: Path) -> Path:
    return folder.parent / "revoked"
