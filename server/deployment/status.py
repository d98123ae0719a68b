"""Status: who is there, of which version, since when, and who took no part in the last round and why.

in        the enrolled keys, Flower's register of nodes, the latest run's folder
out       a Status, as a table or as JSON
relies on the handshake of the latest run for versions, which a site says when it comes in; on its plan for since when
"""

from datetime import UTC, datetime
from typing import Literal

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from server.deployment.latest import last_round, latest_run
from server.deployment.serving import answers
from server.deployment.settings import Deployment
from server.enrolment import Enrolment, enrolments
from server.handshake import Introduction, read_handshake
from server.records import SiteRound
from server.roster import first_rounds
from server.settings import read_settings
from shared import flower_commands
from shared.flower_commands import Node
from shared.settings import Settings
from shared.version import VERSION


class SiteStatus(Settings):
    """One enrolled site."""

    name: str
    fingerprint: str
    state: Literal["online", "offline", "never", "expired", "not-registered", "unknown"]
    """never: it has not connected yet; not-registered: the server has not been started since it was enrolled; unknown:
    the server does not run"""
    since: str | None
    """online: when it came; offline: when it was last seen"""
    version: str | None
    """of Motet, as it said when it came into the latest run"""
    first_round: int | None
    """of the latest run that could ask it; above 1 where it came late, None where it takes no part"""
    last_outcome: str | None
    """in the last round of the latest run"""
    last_code: str | None
    """why, where it was not used"""
    key_expires: str | None


class Status(Settings):
    """A deployment as it is now."""

    at: str
    version: str
    server_runs: bool
    run: str | None
    round: int | None
    rounds: int | None
    sites: tuple[SiteStatus, ...]
    not_accepted: tuple[str, ...]
    """of the nodes that introduced themselves to the latest run: why it did not take them"""


def status_of(deployment: Deployment) -> Status:
    """A deployment as it is now.

    Raises:
        RunError: the server runs and does not answer.
    """
    runs, now = answers(deployment), datetime.now(UTC)
    known = flower_commands.nodes(home=deployment.flower_home) if runs else None
    folder = latest_run(deployment)
    record = last_round(folder) if folder else None
    handshake = read_handshake(folder) if folder else None
    joined = first_rounds(folder) if folder else {}
    rounds = {site.site: site for site in record.sites} if record else {}
    introduced = {each.site: each for each in handshake.introductions if each.site} if handshake else {}
    return Status(
        at=now.isoformat(timespec="seconds"),
        version=VERSION,
        server_runs=runs,
        run=folder.name if folder else None,
        round=record.round if record else None,
        rounds=read_settings(folder).run.federation.rounds if folder else None,
        sites=tuple(
            _site(
                each,
                now=now,
                known=known,
                introduced=introduced.get(each.name),
                first_round=joined.get(each.name),
                took_part=rounds.get(each.name),
            )
            for each in enrolments(deployment.enrolled)
        ),
        not_accepted=tuple(each.line for each in handshake.introductions if each.code) if handshake else (),
    )


def render_status(status: Status) -> RenderableType:
    """For a terminal."""
    last = f"last round of {status.run or 'no run yet'}"
    table = Table("site", "state", "since", "version", "in from", last, "key until")
    for site in status.sites:
        style = {"online": "green", "never": "blue", "unknown": ""}.get(site.state, "yellow")
        outcome = " ".join(dict.fromkeys(word for word in (site.last_outcome, site.last_code) if word)) or "-"
        table.add_row(
            site.name,
            Text(site.state, style=style),
            _short(site.since),
            _version(site.version),
            str(site.first_round or "-"),
            outcome,
            _short(site.key_expires) if site.key_expires else "no end",
        )
    head = f"Motet {status.version}, server {'runs' if status.server_runs else 'does not run'}"
    if status.run is not None:
        head += f", latest run {status.run}: round {status.round or 0} of {status.rounds}"
    return Group(Text(head), table, *(Text(f"not accepted: {line}", style="red") for line in status.not_accepted))


def _site(
    enrolment: Enrolment,
    *,
    now: datetime,
    known: dict[str, Node] | None,
    introduced: Introduction | None,
    first_round: int | None,
    took_part: SiteRound | None,
) -> SiteStatus:
    node = known.get(enrolment.node_id or "") if known is not None else None
    state: Literal["online", "offline", "never", "expired", "not-registered", "unknown"]
    if enrolment.has_expired(now):
        state = "expired"
    elif known is None:
        state = "unknown"
    elif node is None:
        state = "not-registered"
    else:
        state = "online" if node.status == "online" else "offline" if node.last_online else "never"
    since = None
    if node is not None:
        since = node.last_online if state == "online" else node.last_offline
    return SiteStatus(
        name=enrolment.name,
        fingerprint=enrolment.fingerprint,
        state=state,
        since=since,
        version=introduced.version if introduced else None,
        first_round=first_round,
        last_outcome=took_part.outcome if took_part else None,
        last_code=took_part.code if took_part else None,
        key_expires=enrolment.expires,
    )


def _version(said: str | None) -> Text:
    if said is None:
        return Text("-")
    return Text(said, style="" if said == VERSION else "yellow")


def _short(time: str | None) -> str:
    return time.replace("T", " ")[:16] if time else "-"
