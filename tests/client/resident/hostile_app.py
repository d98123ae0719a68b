"""Hostile app: what code delivered by a server that means harm would try at a site; run as the SuperNode's user.

Each attempt returns what it got: "denied" where the machine kept it off, "hung up", or the code that the agent said.
Anything else is a success of the attack.
"""

import ctypes
import json
import os
import pickle
import signal
import socket
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from client.resident.carrier import ask
from client.resident.conversion import parts_of
from client.resident.frames import MAGIC
from client.resident.protocol import Parts
from shared.errors import WireError
from tests.client.asking import SITE_PRIVACY
from tests.client.resident.agents import RUN, counts_records, train_records
from tests.tiny import PRIVACY

Attempt = Callable[[Path, int], str]
ATTEMPTS: dict[str, tuple[Attempt, str]] = {}
"""name -> what is tried at a site's folder and its agent's process, and what must come of it"""
PTRACE_ATTACH = 16


def attempt(name: str, *, expected: str) -> Callable[[Attempt], Attempt]:
    def enter(function: Attempt) -> Attempt:
        ATTEMPTS[name] = (function, expected)
        return function

    return enter


def read(path: str) -> Attempt:
    def tried(site: Path, agent: int) -> str:
        target = Path(path.format(site=site, agent=agent))
        try:
            found = list(target.iterdir()) if target.is_dir() else target.read_bytes()[:40]
        except PermissionError:
            return "denied"
        return f"read {found!r}"

    return tried


for what, where in {
    "list the data": "{site}/data",
    "read the manifest": "{site}/data/metadata.jsonl",
    "read a row's value": "{site}/data/left-0.npy",
    "read the ledger": "{site}/ledger.sqlite",
    "read site.toml": "{site}/site.toml",
    "list the cache": "{site}/cache",
    "list the kept answers": "{site}/agent/answers",
    "read a kept answer": "{site}/agent/answers/r/000001.answer",
    "read the journal": "{site}/agent/journal.jsonl",
    "list the agent's folder": "{site}/agent",
    "read the agent's memory": "/proc/{agent}/mem",
    "read the agent's memory map": "/proc/{agent}/maps",
    "read the agent's environment": "/proc/{agent}/environ",
    "list the agent's open files": "/proc/{agent}/fd",
}.items():
    ATTEMPTS[what] = (read(where), "denied")


def change(action: Callable[[Path, int], object]) -> Attempt:
    def tried(site: Path, agent: int) -> str:
        try:
            action(site, agent)
        except PermissionError:
            return "denied"
        return "done"

    return tried


for what, action in {
    "write the ledger": lambda site, _: (site / "ledger.sqlite").open("r+b").close(),
    "take the ledger away": lambda site, _: (site / "ledger.sqlite").unlink(),
    "write site.toml": lambda site, _: (site / "site.toml").open("a").close(),
    "take the socket's place": lambda site, _: (site / "agent" / "socket").unlink(),
    "make a file beside the socket": lambda site, _: (site / "agent" / "new").touch(),
    "end the agent": lambda _, agent: os.kill(agent, signal.SIGKILL),
}.items():
    ATTEMPTS[what] = (change(action), "denied")


@attempt("trace the agent", expected="denied")
def trace(site: Path, agent: int) -> str:
    return "done" if ctypes.CDLL(None, use_errno=True).ptrace(PTRACE_ATTACH, agent, 0, 0) == 0 else "denied"


def say(site: Path, parts: Parts, *, kind: str = "train") -> str:
    try:
        reply = ask(kind, parts, agent=site / "agent" / "socket", answer_s=60.0)  # type: ignore[arg-type]
    except (WireError, OSError):
        return "hung up"
    return reply.code or "sent"


def raw(site: Path, *pieces: bytes) -> str:
    came = b""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(60)
        connection.connect(str(site / "agent" / "socket"))
        try:
            for piece in pieces:
                connection.sendall(piece)
            connection.shutdown(socket.SHUT_WR)
            while piece := connection.recv(1 << 16):
                came += piece
        except ConnectionError:
            return "hung up"
    return json.loads(came[20:])["code"] or "sent" if came else "hung up"


def header(**changes: object) -> str:
    """The header of a second round, with changes to the run's settings; `top` to the header itself."""
    table = json.loads(parts_of(train_records(number=2)).header or "")
    table |= changes.pop("top", {})
    for place, value in changes.items():
        part, _, field = place.partition("__")
        if field:
            table["run"][part][field] = value
        else:
            table["run"][part] = value
    return json.dumps(table)


def asking(text: str) -> Attempt:
    arrays = parts_of(train_records()).arrays
    return lambda site, _: say(site, Parts(header=text, arrays=arrays))


LINEAR = {"name": "linear"}
SETTINGS = {"path": "/etc"}
for what, text, code in [
    ("train without noise", header(privacy="none", statistics=None), "refused"),
    ("ask for an update without noise", header(privacy=SITE_PRIVACY, statistics=None), "refused"),
    ("ask by another unit", header(privacy={**PRIVACY, "unit": "subject"}), "refused"),
    ("ask for a higher epsilon", header(privacy={**PRIVACY, "epsilon": 1e6}), "refused"),
    ("ask for a million steps", header(training__local_steps=1_000_000), "message-invalid"),
    ("ask for more steps than are permitted", header(training__local_steps=100_000), "refused"),
    ("ask for more rows than are permitted", header(training__augment_multiplicity=64), "message-invalid"),
    ("ask for a million rounds", header(top={"planned_rounds": 1_000_000}), "message-invalid"),
    ("ask for more rounds than are permitted", header(top={"planned_rounds": 100_000}), "refused"),
    ("ask for a round after the last", header(top={"round_number": 4}), "refused"),
    ("ask in another run's name", header(top={"run_id": "other-study"}), "refused"),
    ("ask for another data set", header(top={"data_set": "south-2026"}), "message-invalid"),
    ("say that rows look otherwise", header(data__labels=["a", "b"]), "refused"),
    ("name a part that is not permitted", header(model__fusion={"name": "gated"}), "refused"),
    ("name a part that is not there", header(model__fusion={"name": "os.system"}), "refused"),
    ("name code", header(model__head={"name": "builtins:eval"}), "refused"),
    ("name an encoder's path", header(model__encoders={"left": {**LINEAR, "options": SETTINGS}}), "refused"),
    (
        "name a path in preprocessing",
        header(model__encoders={"left": {**LINEAR, "preprocess": SETTINGS}}),
        "model-invalid",
    ),
    ("name a path in augmentation", header(model__encoders={"left": {**LINEAR, "augment": SETTINGS}}), "model-invalid"),
    ("climb out of the folder by the run's id", header(top={"run_id": "../../etc/passwd"}), "message-invalid"),
    ("ask for a model that memorises", header(model__embedding_width=4096), "refused"),
    ("ask with a field of one's own", header(top={"send_rows": True}), "message-invalid"),
    ("nest a header endlessly", "[" * 500_000, "message-invalid"),
]:
    ATTEMPTS[what] = (asking(text), code)


@attempt("ask for rows", expected="message-invalid")
def ask_for_rows(site: Path, agent: int) -> str:
    head = b'{"agent_protocol": 1, "kind": "rows", "header": null}'
    return raw(site, MAGIC, struct.pack(">IQ", len(head), 0), head)


@attempt("send other weights for an answered round", expected="replayed")
def send_other_weights(site: Path, agent: int) -> str:
    return say(site, parts_of(train_records(value=0.5, attempt=1)))


@attempt("ask for counts twice over", expected="replayed")
def ask_for_counts(site: Path, agent: int) -> str:
    return say(site, parts_of(counts_records(attempt=7)), kind="query")


@attempt("send a pickle for weights", expected="message-invalid")
def send_a_pickle(site: Path, agent: int) -> str:
    head = json.dumps({"agent_protocol": 1, "kind": "train", "header": header()}).encode()
    body = pickle.dumps({"w": np.zeros(3)})
    return raw(site, MAGIC, struct.pack(">IQ", len(head), len(body)), head, body)


@attempt("announce ten gigabytes", expected="hung up")
def announce_ten_gigabytes(site: Path, agent: int) -> str:
    return raw(site, MAGIC, struct.pack(">IQ", 2, 10_000_000_000), b"{}")


@attempt("send weights that are no numbers", expected="message-invalid")
def send_nan(site: Path, agent: int) -> str:
    return say(site, parts_of(train_records(number=2, value=float("nan"))))


@attempt("send weights of another shape", expected="message-invalid")
def send_another_shape(site: Path, agent: int) -> str:
    return say(site, Parts(header=header(), arrays={"head.weight": np.zeros((9, 9), np.float32)}))


def main() -> None:
    """A round as it should be, then every attempt, then another such round; all outcomes as JSON."""
    site, agent = Path(sys.argv[1]), int(sys.argv[2])
    got = {"a round as it should be": say(site, parts_of(train_records()))}
    for name, (function, _) in ATTEMPTS.items():
        try:
            got[name] = function(site, agent)
        except Exception as error:  # noqa: BLE001  the test names the attempt
            got[name] = repr(error)
    got["the same round again"] = say(site, parts_of(train_records(attempt=5)))
    got["the next round"] = say(site, parts_of(train_records(RUN, number=2, attempt=5)))
    got["a round that is over, in another order"] = say(site, parts_of(train_records(value=0.5, attempt=9)))
    print(json.dumps(got))
