"""Handshake: whether who says "I am clinic-a" is clinic-a, by the key enrolled under that name; and of which version.

in        what a node answered to the hello request, the nonce it was sent, and the folder of enrolled keys
out       an Introduction for each: accepted, or the code and the words why not; RUN/handshake.json
relies on shared/keys.py for signatures; on nothing that Flower says about a node
"""

from collections.abc import Container
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeGuard, get_args

from pydantic import Field

from server.enrolment import read_enrolment
from server.settings import write_atomically
from shared.errors import ConfigError, RunError
from shared.keys import is_signed, read_public
from shared.messages import NOT_ACCEPTED, PROTOCOL_VERSION, Hello, NotAccepted, OtherVersion, Refusal
from shared.settings import Settings, parse_settings_json
from shared.version import VERSION

FILE_NAME = "handshake.json"


class Introduction(Settings):
    """What became of one node's introduction."""

    site: str | None = Field(description="None: it did not say, or what it said could not be believed")
    code: str | None = Field(description="None: accepted")
    line: str = Field(description="for the server's operator")
    version: str | None = Field(default=None, description="of Motet at the site, as it says")
    protocol_version: int | None = None


class Handshake(Settings):
    """All introductions since the last start of a run; of each node the last one."""

    at: str
    version: str
    introductions: tuple[Introduction, ...]


class Enrolled:
    """The keys of a folder, read when an introduction is judged: one enrolled or revoked meanwhile counts at once."""

    def __init__(self, folder: Path) -> None:
        """Takes a deployment's folder of keys.

        Raises:
            RunError: there is none.
        """
        if not folder.is_dir():
            raise RunError(f"{folder}: no folder of enrolled keys; make a deployment with: motet server init")
        self._folder = folder

    def fault_of(self, hello: Hello, *, nonce: str, now: datetime | None = None) -> NotAccepted | None:
        """Why this introduction is not to be believed; None where it is."""
        try:
            enrolment = read_enrolment(self._folder, name=hello.site)
            key, _ = read_public(self._folder / f"{hello.site}.pub")
        except ConfigError:
            return "not-enrolled"
        # PRIVACY: a site that speaks in another's name would spend, and be shown, in its place.
        # test_a_site_that_speaks_in_anothers_name_is_refused
        if hello.signature is None or not is_signed(hello.signed_text(nonce), signature=hello.signature, key=key):
            return "wrong-signature"
        return "key-expired" if enrolment.has_expired(now or datetime.now(UTC)) else None


def judge_introduction(
    said: Hello | OtherVersion | Refusal | None, *, nonce: str, enrolled: Enrolled | None, taken: Container[str]
) -> Introduction:
    """Whether a node's answer is taken, and as whose.

    Args:
        said: None: nothing that can be read.
        nonce: what it was sent, and must have signed.
        enrolled: None: simulated sites, which have no keys.
        taken: names of the sites that are in already.

    Raises:
        RunError: two simulated sites bear one name.
    """
    if said is None:
        line = "a site answered with nothing that can be read; its node's log says more (node/log at the site)"
        return Introduction(site=None, code="no-introduction", line=line)
    if isinstance(said, Refusal):
        return Introduction(site=None, code=said.code, line=f"a site refuses to introduce itself: {said.code}")
    if isinstance(said, OtherVersion):
        line = (
            f"a site runs Motet {said.version or 'of an unknown version'} (protocol {said.protocol_version}), this "
            f"server {VERSION} (protocol {PROTOCOL_VERSION}); install the same release on both"
        )
        return Introduction(
            site=None, code="version-mismatch", line=line, version=said.version, protocol_version=said.protocol_version
        )
    if enrolled is None and said.site in taken:
        raise RunError(f"two sites are called {said.site!r}; every site.toml needs a name of its own")
    fault = None if enrolled is None else enrolled.fault_of(said, nonce=nonce)
    if fault is None and said.site in taken:
        fault = "name-taken"
    return Introduction(
        # a name that was not proved is not shown as that site's
        site=said.site if fault in (None, "key-expired") else None,
        code=fault,
        line="accepted" if fault is None else f"who says to be {said.site} was not accepted: {NOT_ACCEPTED[fault]}",
        version=said.version,
        protocol_version=said.protocol_version,
    )


def is_not_accepted(code: str | None) -> TypeGuard[NotAccepted]:
    """Whether a code is one of the server's own, which the site has to be told."""
    return code in get_args(NotAccepted)


def write_handshake(introductions: list[Introduction], *, folder: Path) -> None:
    """RUN/handshake.json."""
    found = Handshake(at=_now(), version=VERSION, introductions=tuple(introductions))
    write_atomically(folder / FILE_NAME, found.model_dump_json(indent=2).encode())


def read_handshake(folder: Path) -> Handshake | None:
    """Who introduced themselves since a run's last start; None where none was written.

    Raises:
        ConfigError: the file is damaged.
    """
    path = folder / FILE_NAME
    if not path.is_file():
        return None
    return parse_settings_json(Handshake, path.read_text(encoding="utf-8"), place=str(path))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
