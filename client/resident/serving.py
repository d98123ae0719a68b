"""Serving: the resident agent itself, from the owner's settings to a socket that is answered until it is told to end.

in        the path of the owner's site file; requests on the socket
out       replies that client/answering.py let out; what happened, in the owner's journal and metrics
relies on listener.py for who may ask, on answering.py for what is answered, on answers.py for what is kept
"""

import contextlib
import json
import logging
import os
import resource
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from pydantic import Field

from client.answering import answer_query, answer_training
from client.resident.answers import NO_ANSWERS, Answers, KeptAnswers
from client.resident.exposure import refuse_exposed
from client.resident.forgetting import forget_many
from client.resident.frames import Frame
from client.resident.journal import Journal, Value
from client.resident.ledger_mark import read_mark, unforgetting
from client.resident.listener import Limits, Listener, user_ids
from client.resident.metrics import Metrics
from client.resident.passing import parts_within, records_within
from client.resident.protocol import AGENT_PROTOCOL, Kind, Parts, read_request, reply_frame
from client.site import SiteConfig, read_site
from shared.errors import ConfigError, LedgerError, MotetError, WireError
from shared.forms import RUN_ID
from shared.messages import PROTOCOL_VERSION
from shared.metrics_port import MetricsPort
from shared.privacy.ledger import Ledger
from shared.settings import Settings
from shared.version import VERSION

log = logging.getLogger("motet.site")
_BYTES_A_PARAMETER = 8
"""float32, and as much again for what a model is given beside its parameters"""
_ROOM_BYTES = 16 << 20
"""for the names"""
_LEAST_FREE_BYTES = 100 << 20
"""on the disks of the ledger and of what is kept; below it the agent is not well"""


class _Told(Settings):
    """What of a header the journal and the metrics take; all of it stands in requests or in replies that left."""

    run: str | None = Field(default=None, pattern=RUN_ID)
    round: int | None = None
    attempt: int | None = None
    epsilon: float | None = None


class Agent:
    """Answers requests, one at a time: training takes the machine, and two runs share one budget."""

    def __init__(
        self,
        site_file: Path,
        *,
        answers: Answers = NO_ANSWERS,
        journal: Journal | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        self._site_file, self._answers, self._journal = site_file, answers, journal
        self._metrics = metrics or Metrics(version=VERSION)
        self._one_at_a_time = threading.Lock()
        self._began = time.monotonic()
        self._busy_since: float | None = None

    def answer(self, frame: Frame) -> Frame:
        """The reply to a request; never an exception."""
        try:
            kind, parts = read_request(frame)
            if kind == "health":
                return reply_frame(Parts(header=json.dumps(self.health())))
            with self._one_at_a_time:
                return reply_frame(self._noted(kind, parts))
        except WireError as error:
            log.error("a request that is none: %s", error)
            return reply_frame(Parts(code=error.code))
        except Exception:
            # PRIVACY: whatever it is, its text must not travel. test_an_agent_that_fails_says_only_a_code
            log.exception("the agent failed")
            return reply_frame(Parts(code="internal"))

    def health(self) -> dict[str, object]:
        """What whoever may connect is told of the agent; nothing of the data or the budget."""
        busy = self._busy_since
        return {
            "agent_protocol": AGENT_PROTOCOL,
            "protocol_version": PROTOCOL_VERSION,
            "version": VERSION,
            "pid": os.getpid(),
            "uptime_s": round(time.monotonic() - self._began, 1),
            "busy_s": None if busy is None else round(time.monotonic() - busy, 1),
        }

    def checks(self) -> dict[str, bool]:
        """What must be so for the agent to answer a round -> whether it is."""
        found = {"settings": False, "ledger": False, "disk": False}
        with contextlib.suppress(MotetError, OSError):
            site = read_site(self._site_file)
            found["settings"] = True
            folders = (site.ledger.parent, site.agent.answers, site.agent.journal.parent)
            found["disk"] = all(shutil.disk_usage(folder).free >= _LEAST_FREE_BYTES for folder in folders)
        with contextlib.suppress(MotetError, OSError):
            _look_at_ledger(read_site(self._site_file))
            found["ledger"] = True
        return found

    def _noted(self, kind: Kind, parts: Parts) -> Parts:
        """The answer, written down; where none could be made, that."""
        began, outcome, epsilon = time.monotonic(), "internal", None
        self._busy_since = began
        self._metrics.began()
        try:
            answer = answer_query if kind == "query" else answer_training
            reply = parts_within(answer(records_within(parts), site_file=self._site_file, answers=self._answers))
            outcome = "sent" if reply.code is None else reply.code
            epsilon = _told(reply.header).epsilon
            return reply
        finally:
            self._busy_since = None
            forget_many()
            seconds = time.monotonic() - began
            self._metrics.answered(kind=kind, outcome=outcome, seconds=seconds, epsilon=epsilon)
            if isinstance(self._answers, KeptAnswers):
                self._metrics.holds(num_sent_again=self._answers.num_sent_again, kept_bytes=self._answers.num_bytes())
            if self._journal is not None:
                asked = _told(parts.header)
                values: dict[str, Value] = {"run": asked.run, "round": asked.round, "attempt": asked.attempt}
                self._journal.write(
                    "answer", kind=kind, **values, outcome=outcome, seconds=round(seconds, 3), epsilon=epsilon
                )


def _look_at_ledger(site: SiteConfig) -> None:
    """Whether a round could be charged; what is not there is not begun, for whoever only asks.

    Raises:
        LedgerError: it is damaged, was set back, or is gone after something was granted.
    """
    mark = read_mark(site.agent.answers, data_set=site.data_set)
    if mark is not None or site.ledger.exists():
        granted = [] if mark is None else [mark]
        unforgetting(site.ledger, granted=granted, folder=site.agent.answers, open_ledger=Ledger.existing)


def run_agent(site_file: Path) -> None:
    """Answer until SIGTERM or SIGINT; a round that is being trained then is finished first.

    Raises:
        ConfigError: the settings are not allowed, another user could read what is guarded, or a socket, folder or port
            cannot be used.
    """
    site = read_site(site_file)
    users = user_ids(site.agent.allowed_users)
    if not (folder := site.agent.socket.parent).exists():
        folder.mkdir(mode=0o711)  # who may ask must pass through it, and see nothing else in it
        folder.chmod(0o711)
    # PRIVACY: what the agent makes is its user's alone, and no picture of its memory is left when it fails.
    # test_what_the_agent_writes_is_its_users_alone
    os.umask(0o077)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    refuse_exposed(site, site_file=site_file, users=users)
    with contextlib.ExitStack() as opened:
        answers = KeptAnswers(site.agent.answers, most_runs=site.agent.kept_runs, most_rounds=site.agent.kept_rounds)
        opened.callback(answers.close)
        journal = opened.enter_context(_journal(site))
        try:
            _look_at_ledger(site)
        except LedgerError as error:
            # the owner reads it now, and not with the first round: nothing is granted until it is mended
            log.error("%s", error)
        metrics = Metrics(version=VERSION)
        agent = Agent(site_file, answers=answers, journal=journal, metrics=metrics)
        listener = Listener(site.agent.socket, others=users, limits=limits_of(site), answer=agent.answer)
        if site.agent.metrics_port is not None:
            server = MetricsPort(
                site.agent.metrics_port, registry=metrics.registry, checks=agent.checks, setting="agent.metrics_port"
            )
            opened.callback(server.close)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: listener.stop())
        journal.write("start", version=VERSION, pid=os.getpid())
        listener.serve()
        journal.write("stop", pid=os.getpid())


@contextlib.contextmanager
def _journal(site: SiteConfig) -> Iterator[Journal]:
    try:
        journal = Journal(site.agent.journal, most_bytes=site.agent.journal_bytes)
    except OSError as error:
        raise ConfigError(
            f"agent.journal: {site.agent.journal} cannot be written: {error.strerror}; name another file"
        ) from None
    try:
        yield journal
    finally:
        journal.close()


def _told(header: str | None) -> _Told:
    """What a header says of the run, the round and the budget; nothing where it says it in another way."""
    try:
        said = json.loads(header or "{}")
        privacy = said.get("privacy") or {}
        return _Told(
            run=said.get("run_id"),
            round=said.get("round_number"),
            attempt=said.get("attempt"),
            epsilon=privacy.get("epsilon"),
        )
    except (ValueError, AttributeError, RecursionError):
        return _Told()


def limits_of(site: SiteConfig) -> Limits:
    """As much as the largest model that the owner permits."""
    return Limits(most_body_bytes=_BYTES_A_PARAMETER * site.max_parameters + _ROOM_BYTES)
