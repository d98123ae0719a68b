"""Ray cluster: a run on machines that their owner has joined with `ray start`; each is asked before it gets a site.

in        the address of the cluster, the site files, the run folder, what workers must be told
out       a connection on which Flower's simulation goes on; or an error that names the machine and what it lacks
relies on the address being that of a cluster whose starters trust each other: whoever reaches it can run code there
"""

import contextlib
import fcntl
import hashlib
import logging
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast  # Ray is untyped in part

from client.site import read_site
from shared.errors import RunError
from shared.manifest import MANIFEST_NAMES
from simulations.engine.ray_node import content, faults_here, program

PAGE = "docs/many-machines.md"
CORES_PER_SITE = 1
_CONNECT_S, _JOIN_S, _FREE_S, _ANSWER_S = 5.0, 45.0, 15.0, 120.0
_JOIN = """
import sys, ray
try:
    ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
    ray.shutdown()
except Exception as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


def check_cluster(address: str) -> None:
    """A cluster answers at an address and takes this program in; tried in a process that can be given up.

    Ray itself refuses another release of Ray or Python, a wrong token, and a machine that is not part of the cluster.
    Some of its refusals end the process, or wait for a minute; hence another one.

    Raises:
        RunError: there is none, or it does not; within a minute.
    """
    host, port = address.rsplit(":", 1)
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S).close()
    except OSError as error:
        raise RunError(
            f"--ray-address {address}: nothing answers there ({error}); how to start a cluster: {PAGE}"
        ) from None
    with contextlib.suppress(subprocess.TimeoutExpired):
        tried = subprocess.run(  # noqa: S603  our own words, no shell
            [sys.executable, "-c", _JOIN, address], env=_quiet(os.environ), timeout=_JOIN_S,
            check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        if tried.returncode == 0:
            return
        lines = [line for line in tried.stderr.splitlines() if line.strip()]
        said = "\n  ".join(lines[-6:]) or f"ended by {tried.returncode}"
        raise RunError(f"--ray-address {address}: Ray refuses to join\n  {said}\nWhat it asks for: {PAGE}")
    raise RunError(f"--ray-address {address}: what answers is no Ray cluster, or has not let us in in {_JOIN_S:.0f} s")


def _quiet(environment: Mapping[str, str]) -> dict[str, str]:
    return {**environment, "RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}


@contextlib.contextmanager
def joined(address: str, *, variables: Mapping[str, str], sites: Sequence[Path], folder: Path) -> Iterator[None]:
    """Part of a cluster, whose machines were found fit for the run; the cluster itself goes on after it.

    Args:
        variables: environment of every worker, on whichever machine; what other machines' users set is theirs.
        sites: the site files.
        folder: of the run; every machine must see it under the same path.

    Raises:
        RunError: a machine runs another program, or does not see the same files, or no core is free.
    """
    check_cluster(address)
    import ray

    # Flower does not call this again once it is done, and passes no variables of ours to workers
    ray.init(address=address, runtime_env={"env_vars": dict(variables)}, logging_level=logging.ERROR)
    try:
        nodes = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
        _check_cores(nodes)
        _check_nodes(nodes, sites=sites, folder=folder)
        yield
    finally:
        ray.shutdown()  # of this program's part; a cluster is ended only by those who started it


def _named(node: Mapping[str, Any]) -> str:
    return f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']}, node {node['NodeID'][:8]})"


def _check_cores(nodes: Sequence[Mapping[str, Any]]) -> None:
    """Flower starts a worker for each core of the cluster, and waits without end for one that others hold."""
    if not any(_cores(node["Resources"]) >= CORES_PER_SITE for node in nodes):
        raise RunError("no machine of the Ray cluster offers a core; start one with: ray start --num-cpus NUMBER")
    deadline = time.monotonic() + _FREE_S  # what a run before this one held is given back soon after its end
    while (held := _held(nodes)) and time.monotonic() < deadline:
        time.sleep(0.5)
    if held:
        raise RunError("\n".join(["cores of the Ray cluster are held by another job; wait for its end", *held]))


def _held(nodes: Sequence[Mapping[str, Any]]) -> list[str]:
    from ray._private.state import available_resources_per_node

    free = available_resources_per_node()  # type: ignore[no-untyped-call]
    return [
        f"  {_named(node)}: {_cores(free.get(node['NodeID'], {})):g} of {_cores(node['Resources']):g} cores free"
        for node in nodes
        if _cores(free.get(node["NodeID"], {})) < _cores(node["Resources"])
    ]


def _cores(resources: Mapping[str, float]) -> float:
    return resources.get("CPU", 0.0)


def _check_nodes(nodes: Sequence[Mapping[str, Any]], *, sites: Sequence[Path], folder: Path) -> None:
    """Every machine that will work for sites is asked, all at once."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    contents = _contents(_paths(sites))
    with _locked_file(folder) as (locked, digest):
        contents[str(locked)] = digest
        asked = {"expected_program": program(), "contents": contents, "locked": str(locked)}
        # without a core of its own: what is asked is asked of a machine that is busy, too
        question = ray.remote(num_cpus=0, max_retries=0)(cast(Any, faults_here))
        answers = {
            question.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            ).remote(**asked): node
            for node in nodes
            if _cores(node["Resources"]) >= CORES_PER_SITE
        }  # fmt: skip
        ready, _ = ray.wait(list(answers), num_returns=len(answers), timeout=_ANSWER_S)
        faults = [
            f"  {_named(node)}: {fault}"
            for answer, node in answers.items()
            for fault in (_answer(answer) if answer in ready else [f"no answer in {_ANSWER_S:.0f} s"])
        ]
    if faults:
        raise RunError(
            "\n".join(["machines of the Ray cluster cannot work for this run; nothing was trained", *faults])
        )


def _answer(answer: Any) -> list[str]:
    import ray

    try:
        faults: list[str] = ray.get(answer)
    except ray.exceptions.RayError as error:
        # the last line of what Ray tells is the error itself: usually that there is no Motet to import
        return [f"Motet does not run there; install the same release: {str(error).strip().splitlines()[-1]}"]
    return faults if len(faults) <= 5 else [*faults[:5], f"and {len(faults) - 5} more of the kind"]


def _paths(sites: Sequence[Path]) -> list[Path]:
    """All that a site reads at the path that its owner gave: settings, rows, extensions, frozen networks."""
    found: dict[Path, None] = {}
    for site in sites:
        settings = read_site(site)
        manifests = [settings.data / name for name in MANIFEST_NAMES if (settings.data / name).is_file()]
        found |= dict.fromkeys([site.resolve(), settings.data, *manifests, *settings.parts, *settings.checkpoints])
    return list(found)


def _contents(paths: Sequence[Path]) -> dict[str, str]:
    try:
        return {str(path): content(path) for path in paths}
    except OSError as error:
        raise RunError(f"{error.filename}: {error.strerror}, on the machine that starts the run") from None


@contextlib.contextmanager
def _locked_file(folder: Path) -> Iterator[tuple[Path, str]]:
    """A new file of the run folder and its digest, locked by this process as SQLite locks a ledger."""
    path, inside = folder.resolve() / f"cluster-{secrets.token_hex(8)}", secrets.token_bytes(16)
    try:
        with path.open("xb") as file:
            file.write(inside)
            file.flush()
            os.fsync(file.fileno())
            # nothing here may open the file again: closing any handle of it gives this lock up
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield path, hashlib.sha256(inside).hexdigest()
    finally:
        path.unlink(missing_ok=True)
