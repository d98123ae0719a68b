"""Nodes: Flower's register of nodes kept in step with the folder of enrolled keys.

in        DIR/enrolled, DIR/revoked, and a SuperLink that runs
out       every enrolled key registered, every revoked or expired one let go of
relies on shared/flower_commands.py for the register, on server/enrolment.py for who belongs in it
"""

import logging
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime

from server.deployment.settings import Deployment
from server.enrolment import Enrolment, enrolments, revoked_nodes, write_enrolment
from server.settings import write_atomically
from shared import flower_commands
from shared.errors import MotetError, RunError
from shared.flower_commands import Node

log = logging.getLogger("motet.server")


def is_in_step(deployment: Deployment, *, now: datetime | None = None) -> bool:
    """Whether there is nothing to tell Flower; asks it nothing."""
    now = now or datetime.now(UTC)
    all_known = all(_is_right(each, now=now) for each in enrolments(deployment.enrolled))
    return all_known and not revoked_nodes(deployment.enrolled)


def bring_in_step(deployment: Deployment, *, known: Mapping[str, Node] | None = None) -> None:
    """Tell Flower who came and who left; a key that fails is told of and does not hold up the others.

    Args:
        known: all nodes that the SuperLink knows: one that it has forgotten is registered anew.
    """
    now = datetime.now(UTC)
    for path, gone in revoked_nodes(deployment.enrolled):
        if _let_go(gone, deployment=deployment, known=known):
            log.info("%s: revoked; its node is turned away from now on", gone.name)
            forgotten = gone.model_copy(update={"node_id": None})
            write_atomically(path, forgotten.model_dump_json(indent=2).encode())
    coming = dict[str, Enrolment]()
    for each in enrolments(deployment.enrolled):
        if known is not None and each.node_id is not None and each.node_id not in known:
            log.warning("%s: the SuperLink does not know its node any more; registered anew", each.name)
            each = each.model_copy(update={"node_id": None})  # noqa: PLW2901
        if _is_right(each, now=now):
            continue
        if each.has_expired(now):
            if _let_go(each, deployment=deployment, known=known):
                log.warning("%s: its key has expired; its node is turned away from now on", each.name)
                write_enrolment(each.model_copy(update={"node_id": None}), folder=deployment.enrolled)
        else:
            coming[each.name] = each
    _take_in(coming, deployment=deployment)


def _is_right(enrolment: Enrolment, *, now: datetime) -> bool:
    return (enrolment.node_id is None) == enrolment.has_expired(now)


def _take_in(coming: Mapping[str, Enrolment], *, deployment: Deployment) -> None:
    """One process for all that come: Flower's own command takes seconds for each."""
    silent = dict(coming)
    for name, made in _registered(coming, deployment=deployment):
        enrolment = silent.pop(name)
        if isinstance(made, MotetError):
            log.error("%s cannot be registered: %s", name, made)
            continue
        # at once: Flower takes no key twice, and only this says that it has it
        write_enrolment(enrolment.model_copy(update={"node_id": made}), folder=deployment.enrolled)
        log.info("%s: registered, node %s", name, made)
    for name in silent:
        log.error("%s cannot be registered: Flower does not answer", name)


def _registered(names: Iterable[str], *, deployment: Deployment) -> Iterator[tuple[str, str | MotetError]]:
    """The id of each one's node, or why there is none."""
    keys, home = {name: deployment.enrolled / f"{name}.pub" for name in names}, deployment.flower_home
    if len(keys) > 1:
        yield from flower_commands.register_all(keys, home=home)
        return
    for name, path in keys.items():
        try:
            yield name, flower_commands.register(path, name=name, home=home)
        except RunError as error:
            yield name, error


def _let_go(enrolment: Enrolment, *, deployment: Deployment, known: Mapping[str, Node] | None) -> bool:
    node_id = enrolment.node_id
    if node_id is None:
        return False
    try:
        listed = known if known is not None else flower_commands.nodes(home=deployment.flower_home)
        if node_id in listed and listed[node_id].status != "unregistered":
            flower_commands.unregister(node_id, home=deployment.flower_home)
    except MotetError as error:
        log.error("%s cannot be let go of: %s", enrolment.name, error)
        return False
    return True
