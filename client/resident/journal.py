"""Journal: what the agent was asked and what came of it, in lines of JSON on the owner's disk, without personal data.

in        each answered request; whatever the agent's code logs while it answers
out       FILE, and five older ones, readable for the agent's user alone; the same lines on standard error
relies on logging calls whose template is written in the code and whose values are arguments

No text is written that could quote a row: of a fault in data only its code, how many there are, and which command shows
them; of an unexpected failure its type and the line of code; of everything else that is logged the template without
its values. Refusals by the owner's settings or budget are written out: they speak of the request and of site.toml.
"""

import json
import logging
import logging.handlers
import os
import re
import sys
import threading
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

from shared.errors import (
    BudgetError,
    ConfigError,
    LedgerError,
    ManifestError,
    MediaFault,
    MotetError,
    PermissionRefused,
    ReplayedRequest,
    VersionMismatch,
    WireError,
)

Value = str | int | float | bool | None
SITE_LOG = "motet.site"
NUM_OLDER = 5
_LONGEST_TEXT = 500
_PLACEHOLDER, _WORD = re.compile(r"%[-#0 +.\d]*[a-zA-Z]"), re.compile(r"[A-Za-z]")
# PRIVACY: of these kinds alone, whose texts are made of settings, requests and the ledger.
# test_nothing_of_the_data_stands_in_anything_that_the_agent_writes
_WRITTEN_OUT = (PermissionRefused, BudgetError, ReplayedRequest, LedgerError, VersionMismatch, WireError)
ENTRY = "journal_entry"
"""in `extra` of a logging call: what is written in place of its text"""
_Raised = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


class JournalFormatter(logging.Formatter):
    """A record as one line of JSON, with nothing in it that could come from a row."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        entry: Mapping[str, Value] = getattr(record, ENTRY, None) or _of_log(record)
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        return json.dumps({"time": time, "level": record.levelname.lower(), **entry}, ensure_ascii=True)


class _OwnFile(logging.handlers.RotatingFileHandler):
    """A rotating file that nobody but its user reads, whatever the umask."""

    def _open(self):  # type: ignore[no-untyped-def]
        # PRIVACY: when runs come and what they cost is the owner's. test_the_journal_is_the_owners_alone_to_read
        descriptor = os.open(self.baseFilename, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
        os.fchmod(descriptor, 0o600)
        return os.fdopen(descriptor, self.mode, encoding=self.encoding)


class Journal:
    """Takes over all logging of the process until it is closed."""

    def __init__(self, path: Path, *, most_bytes: int) -> None:
        """Opens the file.

        Raises:
            OSError: it cannot be written.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        handlers: list[logging.Handler] = [
            _OwnFile(path, maxBytes=most_bytes, backupCount=NUM_OLDER, encoding="utf-8"),
            logging.StreamHandler(),
        ]
        for handler in handlers:
            handler.setFormatter(JournalFormatter())
        self._handlers, self._root, self._log = handlers, logging.getLogger(), logging.getLogger(SITE_LOG)
        self._before = (list(self._root.handlers), self._root.level, self._log.level)
        # warnings and loggers of libraries go the same way: their texts are theirs, and may quote a value
        logging.captureWarnings(capture=True)
        self._root.handlers[:] = handlers
        self._root.setLevel(logging.WARNING)
        self._log.setLevel(logging.INFO)
        self._hooks = (sys.excepthook, threading.excepthook)
        sys.excepthook = _log_uncaught
        threading.excepthook = lambda raised: _log_uncaught(raised.exc_type, raised.exc_value, raised.exc_traceback)

    def write(self, event: str, **values: Value) -> None:
        """One line; values that the caller knows to hold nothing of the data."""
        self._log.info(event, extra={ENTRY: {"event": event, **values}})

    def close(self) -> None:
        """Logging is as it was before."""
        self._root.handlers[:], self._root.level, self._log.level = self._before
        sys.excepthook, threading.excepthook = self._hooks
        logging.captureWarnings(capture=False)
        for handler in self._handlers:
            handler.close()


def described(error: BaseException) -> dict[str, Value]:
    """What may be written about an error."""
    if isinstance(error, _WRITTEN_OUT):
        return {"code": error.code, "said": str(error)[:_LONGEST_TEXT]}
    if isinstance(error, ManifestError):
        return {"code": error.code, "num_faults": len(error.faults), "shown_by": "motet check, with the folder in data"}
    if isinstance(error, MediaFault):
        return {"code": error.code, "num_faults": 1, "shown_by": "motet check, with the folder in data"}
    if isinstance(error, ConfigError):
        # a card's settings name labels
        return {"code": error.code, "shown_by": "motet agent start, or motet check with the folder in data"}
    said: dict[str, Value] = {"error": type(error).__qualname__, "at": _place(error.__traceback__)}
    return {"code": error.code, **said} if isinstance(error, MotetError) else said


def _of_log(record: logging.LogRecord) -> dict[str, Value]:
    errors = [
        each for each in (record.args if isinstance(record.args, tuple) else ()) if isinstance(each, BaseException)
    ]
    if record.exc_info and record.exc_info[1] is not None:
        errors.append(record.exc_info[1])
    entry: dict[str, Value] = {"event": "log", "logger": record.name}
    if record.name == SITE_LOG and isinstance(record.msg, str):
        # PRIVACY: the template, which stands in our code; never its values. test_the_values_of_a_log_line_are_left_out
        entry |= {"template": record.msg[:_LONGEST_TEXT]}
    entry |= {"at": f"{record.filename}:{record.lineno}"}
    for error in errors[:1]:
        entry |= described(error)
    return _without_idle(entry)


def _without_idle(entry: dict[str, Value]) -> dict[str, Value]:
    """A line less what tells its reader nothing: a template of placeholders, where the error says itself what it is."""
    if not {"said", "shown_by"} & entry.keys():
        return entry
    idle = {"at"} if _WORD.search(_PLACEHOLDER.sub("", str(entry.get("template", "")))) else {"at", "template"}
    return {name: value for name, value in entry.items() if name not in idle}


def _place(found: TracebackType | None) -> str:
    """The innermost line of code."""
    frames = traceback.extract_tb(found, limit=-1)
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "unknown"


def _log_uncaught(kind: type[BaseException], error: BaseException | None, found: TracebackType | None) -> None:
    raised = error if error is not None else kind()
    logging.getLogger(SITE_LOG).critical("uncaught", exc_info=(kind, raised, found))
