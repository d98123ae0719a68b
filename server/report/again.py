"""Again: the reports of a run that has ended, written anew from its record.

in        a run folder with report.json, and audit.json where an audit was made since
out       report.html, or the three files of the privacy report
relies on html.py and privacy.py; report.json is left as the run wrote it
"""

from pathlib import Path

from pydantic import ValidationError

from server.records import Audit, RunRecord
from server.report.html import HTML_NAME, read_record, render
from server.report.ledger_rows import NamedLedger
from server.report.privacy import NAMES, privacy_texts, write_privacy
from server.settings import write_atomically
from shared.errors import ConfigError, RunError

AUDIT_FILE = "audit.json"


def write_again(run: Path, *, privacy: bool, out: Path | None) -> tuple[Path, ...]:
    """Writes the report, or the privacy report, of a run; paths of what was written, the page first.

    Args:
        run: folder of a run that has ended.
        privacy: the privacy report, and not the run's.
        out: folder to write into, made if it is not there; the run folder if not given.

    Raises:
        RunError: no report to write again, or a file in the folder is damaged.
    """
    record = with_audit(read_record(run), folder=run)
    folder = out or run
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{folder}: cannot be made: {error}; name another folder with --out") from None
    if privacy:
        return write_privacy(record, folder)
    write_atomically(folder / HTML_NAME, render(record).encode())
    return (folder / HTML_NAME,)


def pages_of(record: RunRecord, *, folder: Path) -> dict[str, tuple[bytes, ...]]:
    """Name of every page that is in a run folder -> what may stand in it: with an audit made since, and without."""
    audited = with_audit(record, folder=folder)
    made: dict[str, tuple[bytes, ...]] = {}
    has_privacy = any((folder / name).is_file() for name in NAMES)
    for each in (record,) if audited is record else (record, audited):
        texts = {HTML_NAME: render(each), **(privacy_texts(each) if has_privacy else {})}
        for name, text in texts.items():
            made[name] = (*made.get(name, ()), text.encode())
    return made


def with_audit(record: RunRecord, *, folder: Path) -> RunRecord:
    """The record with the audit that was made after the run, where there is one."""
    audit = read_audit(folder) if record.audit is None else None
    return record if audit is None else record.model_copy(update={"audit": audit})


def read_audit(folder: Path) -> Audit | None:
    """RUN/audit.json; None where no audit was made.

    Raises:
        RunError: the file is damaged.
    """
    path = folder / AUDIT_FILE
    if not path.is_file():
        return None
    try:
        return Audit.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise RunError(f"{path}: not readable ({error.error_count()} faults); make the audit again") from None


def named_ledger(text: str) -> NamedLedger:
    """`SITE=FILE`, or `FILE` alone.

    Raises:
        ConfigError: there is no such file.
    """
    site, equals, path = text.partition("=")
    named = NamedLedger(Path(path), site) if equals and not Path(text).is_file() else NamedLedger(Path(text))
    if not named.path.is_file():
        raise ConfigError(f"{named.path}: no such file; give a copy of a site's ledger: --ledger SITE=FILE")
    return named
