"""Flower's commands: how its programs are called, what they say, and what their exits mean; all of it is in here.

in        addresses, files and settings of Motet's
out       command lines, variables and Flower's own configuration; the words of its programs as facts
relies on Flower 1.41 (FLOWER): the options of its programs, their exit codes and the JSON of `flwr --format json`
"""

import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from shared.errors import ConfigError, MotetError, RunError
from shared.keys import public_pem, read_public

FLOWER = "1.41"
LINK = "motet"
"""the name of the SuperLink in Flower's own configuration"""
_CONNECTION_EXIT = 305
"""SUPERNODE_CONNECTION_ERROR: the SuperLink does not take the node, or cannot be reached"""
_NOT_TAKEN = "[code: 2004]"
"""FLEET_NODE_ACTIVATION_FAILED; Flower says the same of an unknown key and of a node that is connected"""
_ENDED_ITSELF = "SuperNode terminated gracefully."
"""the SuperNode takes a 401 for a signal to end, and says no other word of it"""
_CANNOT_CONNECT, _HAS_CONNECTED = "Connection attempt failed, retrying", "Connection successful"
_HANDSHAKE = "SSL/TLS handshake error detected."
_NOTES = (
    *("Heads up from Flower!", "We detected legacy usage of this command", "settings from your pyproject.toml."),
    *("Flower will migrate any relevant settings", "Learn more: https://flower.ai/docs"),
)
"""lines about settings of another kind than Motet's, which only lead astray"""
_DECORATION = re.compile(r"\x1b\[[0-9;]*m|[\u2500-\u257f]")
"""colours and frames"""
_MOST_QUOTED = 400
_CALL_TIMEOUT_S, _KEY_TIMEOUT_S = 120.0, 0.5
_REGISTER, _SUPERLINK = (Path(__file__).with_name(f"flower_{name}.py") for name in ("register", "superlink"))
_KEPT = (
    *("PATH", "LANG", "LC_ALL", "TZ", "TMPDIR", "VIRTUAL_ENV", "MOTET_HOME", "HF_HOME"),
    *("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "LD_LIBRARY_PATH"),
)


@dataclass(frozen=True)
class Tls:
    """The server's certificate files."""

    ca: Path
    certificate: Path
    key: Path


@dataclass(frozen=True)
class Node:
    """A SuperNode as the SuperLink knows it."""

    node_id: str
    status: str
    """registered (never seen), online, offline, unregistered"""
    last_online: str | None
    """when it last came on line"""
    last_offline: str | None


@dataclass(frozen=True)
class FlowerRun:
    """A run as the SuperLink knows it."""

    run_id: str
    status: str
    """pending, starting, running, finished:completed, finished:failed, finished:stopped"""
    details: str

    @property
    def has_ended(self) -> bool:
        """Whether nothing more will come."""
        return self.status.startswith("finished")


def environment(home: Path, **more: str) -> dict[str, str]:
    """The variables of Flower's programs: no telemetry, no look for updates, nothing installed or downloaded.

    Args:
        home: FLWR_HOME, where they keep configuration and unpacked bundles.
        more: further variables.
    """
    # the rest of what this process was given is nobody else's, least of all delivered code's
    base = {name: os.environ[name] for name in _KEPT if name in os.environ}
    return {
        **base,
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONUNBUFFERED": "1",
        **more,
    }


def superlink(*, listen: str, port: int, tls: Tls, database: Path, secret: Path) -> tuple[str, ...]:
    """The SuperLink; its server app runs in a program of its own, so that a run outlives either of the two."""
    return (
        *(sys.executable, "-P", str(_SUPERLINK)),
        *("--host", listen, "--port", str(port)),
        *("--ssl-ca-certfile", str(tls.ca), "--ssl-certfile", str(tls.certificate), "--ssl-keyfile", str(tls.key)),
        "--enable-supernode-auth",
        "--disable-runtime-dependency-installation",
        *("--isolation", "process", "--database", str(database), "--superexec-auth-secret-file", str(secret)),
    )


def superexec(*, address: str, ca: Path, secret: Path) -> tuple[str, ...]:
    """What starts the server app of a run, beside the SuperLink on the same machine."""
    return (
        *_program("flower-superexec"),
        *("--runtime-api-address", address, "--root-certificates", str(ca)),
        *("--superexec-auth-secret-file", str(secret)),
    )


def supernode(*, server: str, ca: Path, key: Path, runtime_port: int, config: Mapping[str, str]) -> tuple[str, ...]:
    """The SuperNode, which connects out to the server and opens nothing but a port for its own processes."""
    said = " ".join(f"{name}={json.dumps(value)}" for name, value in config.items())
    return (
        *_program("flower-supernode"),
        *("--superlink", server, "--root-certificates", str(ca), "--auth-supernode-private-key", str(key)),
        *("--host", "127.0.0.1", "--port", str(runtime_port), "--node-config", said),
    )


def explain_stuck_node(said: str) -> str | None:
    """Why a SuperNode that runs has given up its connection, from the last of what it said; None where it has not.

    Flower takes a connection that is cut in the middle of a TLS handshake for a wrong certificate: the node leaves its
    loop, logs the exception, and then waits for a thread of its own for ever.
    """
    last: list[str] = []
    for line in reversed([line for line in said.splitlines() if line.strip()]):
        if "ERROR" not in line and "WARNING" not in line:
            break
        last.insert(0, line)
    # a heartbeat that fails logs the first line and not the second, and is tried again
    for first, *between, second in (last[at:] for at, line in enumerate(last) if _HANDSHAKE in line and last[at + 1 :]):
        if any(_HANDSHAKE not in line and "ERROR" in line for line in (*between, second)):
            return f"it has given up its connection, which was cut while it was being made ({first.strip()[-60:]})"
    return None


def is_retrying(said: str) -> bool:
    """Whether a SuperNode cannot connect at the moment, from the last of what it said."""
    return said.rfind(_CANNOT_CONNECT) > said.rfind(_HAS_CONNECTED)


def explain_node_exit(said: str) -> str | None:
    """Why a SuperNode ended unasked, from what it said since it was started; None where that is not known."""
    code = _exit_code(said)
    if code is None and _ENDED_ITSELF in said:
        return (
            "the server takes this node no longer: its key was revoked or has expired (motet server enrol), or "
            "somebody ended the SuperNode by hand"
        )
    if code == 302:
        return "its key cannot be read (Flower's exit code 302); it must be the one that `motet site init` made"
    if code != _CONNECTION_EXIT:
        return None
    last = said.rpartition(f"Exit Code: {_CONNECTION_EXIT}")[2]
    if _NOT_TAKEN in last:
        return (
            "the server does not take this node: its key is not enrolled or was revoked (motet server enrol), or the "
            "node was killed less than a minute ago and still counts as connected"
        )
    if "CERTIFICATE_VERIFY_FAILED" in last or "certificate verify failed" in last:
        return "the server's certificate is not of the authority in ca.crt, or not for that host name, or has expired"
    first = next((line.strip() for line in last.splitlines()[1:] if line.strip()), "no reason is given")
    return f"the server cannot be reached (Flower's exit code {_CONNECTION_EXIT}): {first[:200]}"


def explain_server_exit(said: str) -> str | None:
    """Why a SuperLink ended, from the last of what it said; None where that is not known."""
    if "address already in use" in said.rpartition("Starting Flower SuperLink")[2]:
        return "its port is in use by another program: end that one (`ss -ltnp` names it), or change port and listen"
    return None


def link_configuration(*, address: str, ca: Path) -> str:
    """FLWR_HOME/config.toml: where `flwr` finds the SuperLink."""
    return (
        f"[superlink]\ndefault = {json.dumps(LINK)}\n\n[superlink.{LINK}]\n"
        f"address = {json.dumps(address)}\nroot-certificates = {json.dumps(str(ca))}\n"
    )


def register(key: Path, *, name: str, home: Path) -> str:
    """Make a site's key known to the running SuperLink; the id of its node.

    Raises:
        RunError: Flower says no, or does not answer.
    """
    told = _flwr(["supernode", "register", str(key.absolute()), LINK, "--name", name], home=home)
    return str(told["node-id"])


def register_all(keys: Mapping[str, Path], *, home: Path) -> Iterator[tuple[str, str | MotetError]]:
    """As `register`, of many by one process: the id of each one's node, or why it has none, as soon as it is known.

    Names of which nothing comes were not reached: Flower has not answered in time, or not at all.
    """
    with tempfile.TemporaryFile() as asked:
        for name, path in keys.items():
            try:
                known = {"name": name, "key": public_pem(read_public(path)[0])}
            except ConfigError as error:
                yield name, error
                continue
            asked.write(json.dumps(known).encode() + b"\n")
        asked.seek(0)
        # past the folder of that file: what lies beside it would come before installed packages of the same names
        command = [sys.executable, "-P", str(_REGISTER), LINK]
        process = subprocess.Popen(  # noqa: S603  our own words, no shell
            command, env=environment(home), stdin=asked, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        timer = threading.Timer(_CALL_TIMEOUT_S + _KEY_TIMEOUT_S * len(keys), process.kill)
        timer.start()
        try:
            for line in process.stdout or ():
                told = _json(line)
                if told is not None and told.get("name") in keys:
                    why = RunError(f"Flower says: {told.get('error')}")
                    yield str(told["name"]), str(told["node-id"]) if "node-id" in told else why
        finally:
            timer.cancel()
            process.kill()
            process.communicate()


def unregister(node_id: str, *, home: Path) -> None:
    """Let the running SuperLink forget a node, which is turned away from then on; its key can never come back.

    Raises:
        RunError: Flower says no, or does not answer.
    """
    _flwr(["supernode", "unregister", node_id, LINK], home=home)


def nodes(*, home: Path) -> dict[str, Node]:
    """All nodes that the running SuperLink knows, by id.

    Raises:
        RunError: Flower does not answer.
    """
    told = _flwr(["supernode", "list", LINK, "--verbose"], home=home)
    found = [
        Node(
            node_id=str(each["node-id"]),
            status=str(each["status"]),
            last_online=_time(each.get("online-at")),
            last_offline=_time(each.get("offline-at")),
        )
        for each in _list(told, "nodes")
    ]
    return {node.node_id: node for node in found}


def submit(app: Path, *, config: Mapping[str, str], home: Path) -> str:
    """Start a run of an app on the running SuperLink; its id.

    Raises:
        RunError: Flower says no, or does not answer.
    """
    said = " ".join(f"{name}={json.dumps(value)}" for name, value in config.items())
    return str(_flwr(["run", str(app.absolute()), LINK, "--run-config", said], home=home)["run-id"])


def run_status(run_id: str, *, home: Path) -> FlowerRun:
    """How a run stands.

    Raises:
        RunError: Flower does not know it, or does not answer.
    """
    (found,) = _list(_flwr(["list", LINK, "--run-id", run_id], home=home), "runs")
    return FlowerRun(run_id=run_id, status=str(found["status"]), details=str(found.get("status-details", "")))


def stop_run(run_id: str, *, home: Path) -> None:
    """End a run before its time.

    Raises:
        RunError: Flower says no, or does not answer.
    """
    _flwr(["stop", run_id, LINK], home=home)


def _flwr(words: Sequence[str], *, home: Path) -> dict[str, object]:
    """What `flwr` answers as JSON."""
    home = home.absolute()
    command = [*_program("flwr"), *words, "--format", "json"]
    try:
        done = subprocess.run(  # noqa: S603  our own words, no shell
            command,
            cwd=home,  # where the user stands a folder may be called as the SuperLink is, which Flower takes for an app
            env=environment(home),
            capture_output=True,
            text=True,
            timeout=_CALL_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RunError(f"{shlex.join(command[:3])}: {error}") from None
    told = _json(done.stdout)
    if told is None or told.get("success") is not True:
        why = last_words(str(told.get("error-message")) if told else (done.stderr or done.stdout))
        raise RunError(
            f"Flower does not answer `flwr {shlex.join(words[:2])}`: {why or 'no words'}; is the server running (motet "
            "server start)?"
        )
    return told


def last_words(said: str) -> str:
    """The end of what a command of Flower's said, on one line, from the beginning of a word on; not its notes."""
    lines = [" ".join(_DECORATION.sub(" ", line).split()) for line in said.splitlines()]
    words = " ".join(line for line in lines if line and not any(note in line for note in _NOTES))
    return words if len(words) <= _MOST_QUOTED else f"... {words[-_MOST_QUOTED:].partition(' ')[2]}"


def _program(name: str) -> tuple[str, ...]:
    """The program that belongs to this very Python, wherever the user's PATH leads."""
    return (str(Path(sys.executable).with_name(name)),)


def _exit_code(said: str) -> int | None:
    found = re.findall(r"Exit Code: (\d+)", said)
    return int(found[-1]) if found else None


def _json(text: str) -> dict[str, object] | None:
    start = text.find("{")
    try:
        found = json.loads(text[start:]) if start >= 0 else None
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _list(told: Mapping[str, object], name: str) -> list[dict[str, object]]:
    found = told.get(name)
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []


def _time(said: object) -> str | None:
    return said if isinstance(said, str) and said not in ("", "N/A") else None
