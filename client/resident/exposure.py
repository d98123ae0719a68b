"""Exposure: whether another user of the owner's machine could read what the agent guards, or change what it obeys.

in        the owner's settings, with the users who may ask the agent
out       nothing where none of them can; else a ConfigError with each path and the command that closes it
relies on the modes of files and folders; access lists (setfacl) are not looked at
"""

import os
import pwd
import stat
from collections.abc import Sequence
from pathlib import Path

from client.site import SiteConfig
from shared.card import card_places
from shared.errors import ConfigError


def refuse_exposed(site: SiteConfig, *, site_file: Path, users: frozenset[int]) -> None:
    """The data, the ledger, the settings and what the agent keeps cannot be read, nor be changed or replaced, by those
    who may ask it; nor can the owner's own parts and card be changed.

    Args:
        users: numbers of the users who may connect beside the agent's own.

    Raises:
        ConfigError: one of them could.
    """
    guarded = {
        "data": site.data,
        "ledger": site.ledger,
        "cache": site.cache,
        "agent.answers": site.agent.answers,
        "agent.journal": site.agent.journal,
        "site.toml": site_file.resolve(),
    }
    if site.agent.key is not None:
        guarded["agent.key"] = site.agent.key
    others = sorted(users - {os.geteuid(), 0})
    # PRIVACY: the delivered app runs as one of these.
    # test_the_agent_does_not_start_on_data_that_the_node_can_read
    open_to = [
        f"  {name}: user {uid} can read {path}; run: chmod -R go-rwx {path}"
        for name, path in guarded.items()
        for uid in others
        if can_read(path, uid=uid, groups=_groups(uid))
    ]
    obeyed = [
        *guarded.items(),
        *(("parts", path) for path in site.parts),
        *(("card", path) for path in card_places(site.data) if path.is_file()),
    ]
    # PRIVACY: what it replaces in place of the owner's word, or in the owner's Python, the agent would obey.
    # test_the_agent_does_not_start_on_settings_that_the_node_can_replace
    open_to += [
        f"  {name}: user {uid} can change or replace {path}, by what {at} allows; run: chmod go-w {at}, as its owner"
        for name, path in obeyed
        for uid in others
        if (at := changed_by(path, uid=uid, groups=_groups(uid))) is not None
    ]
    if open_to:
        raise ConfigError(
            "\n".join(["agent.allowed_users: of them none may read or change what the agent guards", *open_to])
        )


def changed_by(path: Path, *, uid: int, groups: Sequence[int]) -> Path | None:
    """By which file or folder a user could change a path, or put another in its place; None: by none."""
    below: Path | None = None
    for place in (path, *path.parents):
        if place.exists() and _may_change(place, below=below, uid=uid, groups=groups):
            return place
        below = place
    return None


def _may_change(place: Path, *, below: Path | None, uid: int, groups: Sequence[int]) -> bool:
    found = place.stat()
    is_reached = all(_bits(each, uid=uid, groups=groups) & stat.S_IXOTH for each in place.parents)
    if not is_reached or not (found.st_uid == uid or _bits(place, uid=uid, groups=groups) & stat.S_IWOTH):
        return False
    if below is None or not found.st_mode & stat.S_ISVTX or found.st_uid == uid:
        return True
    # in a folder such as /tmp nobody takes away what is another's
    return not below.exists() or below.stat().st_uid == uid


def can_read(path: Path, *, uid: int, groups: Sequence[int]) -> bool:
    """Whether a user could read a file, or anything in a folder; what is not there yet the agent makes its own."""
    if not path.exists():
        return False
    reading = stat.S_IROTH | stat.S_IXOTH if path.is_dir() else stat.S_IROTH
    passing = all(_bits(each, uid=uid, groups=groups) & stat.S_IXOTH for each in path.parents)
    return bool(passing and _bits(path, uid=uid, groups=groups) & reading)


def _bits(path: Path, *, uid: int, groups: Sequence[int]) -> int:
    """What a user may do with a path: the last three bits of its mode as they are for this user."""
    found = path.stat()
    if found.st_uid == uid:
        return found.st_mode >> 6 & 0o7
    return (found.st_mode >> 3 if found.st_gid in groups else found.st_mode) & 0o7


def _groups(uid: int) -> tuple[int, ...]:
    try:
        user = pwd.getpwuid(uid)
    except KeyError:
        return ()
    return tuple(os.getgrouplist(user.pw_name, user.pw_gid))
