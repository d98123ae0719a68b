"""Errors: what went wrong, where, what is allowed and what to do next; to the network only a code.

in        faults found at any door: files, settings, messages, weights
out       one exception whose text stays on the machine it was raised on, and whose `code` may travel
relies on nothing

    MotetError
    |-- ConfigError          settings-invalid    a scenario, run or site file
    |-- ManifestError        manifest-invalid    a data folder
    |-- MediaFault           manifest-invalid    one file or value of a data folder; gathered into a ManifestError
    |-- ModelError           model-invalid       a model that cannot be built or trained sample by sample
    |-- PrivacyError         privacy-invalid     a mechanism or budget parameter outside its range
    |-- BudgetError          refused             a request that the owner's budget does not cover
    |-- PermissionRefused    refused             a request that the owner's settings do not permit
    |-- ReplayedRequest      replayed            another request for a round that is over at this site
    |-- LedgerError          ledger-invalid      a ledger that cannot be read or written
    |-- WireError            message-invalid     a message that does not have the agreed form
    |-- VersionMismatch      version-mismatch    the other side runs another Motet
    `-- RunError             run-failed          a run folder, engine or federation that cannot go on
"""

from collections.abc import Sequence
from dataclasses import dataclass


class MotetError(Exception):
    """A fault that a person can mend; `code` is all that may leave the machine it was raised on."""

    code = "internal"


class ConfigError(MotetError):
    """A scenario, run or site file holds something that is not allowed."""

    code = "settings-invalid"


class MediaFault(MotetError):
    """One file, or one value read from it, is not what the data folder may hold."""

    code = "manifest-invalid"

    def __init__(self, *, field: str, came: str, allowed: str) -> None:
        self.field, self.came, self.allowed = field, came, allowed
        super().__init__(f"{field} is {came}; allowed: {allowed}")


class ModelError(MotetError):
    """A model cannot be built from its settings, or has no per-sample gradient."""

    code = "model-invalid"


class PrivacyError(MotetError):
    """A parameter of a privacy mechanism lies outside its range."""

    code = "privacy-invalid"


class BudgetError(MotetError):
    """A request would pass the owner's privacy budget; nothing was read."""

    code = "refused"


class PermissionRefused(MotetError):
    """A request asks for what the owner's settings do not permit; nothing was read."""

    code = "refused"


class ReplayedRequest(MotetError):
    """A request for a round that was answered otherwise, or is over; nothing was read."""

    code = "replayed"


class LedgerError(MotetError):
    """A ledger file is missing, damaged or of another format."""

    code = "ledger-invalid"


class WireError(MotetError):
    """A message does not have the agreed form."""

    code = "message-invalid"


class VersionMismatch(MotetError):
    """Server and site run versions of Motet that do not work together."""

    code = "version-mismatch"


class RunError(MotetError):
    """A run folder, an engine or a federation cannot go on."""

    code = "run-failed"


@dataclass(frozen=True)
class Fault:
    """One thing wrong in one place: what came and what is allowed there."""

    place: str
    """`line 17` of the manifest, or a file's name."""
    field: str
    came: str
    allowed: str

    def __str__(self) -> str:
        return f"{self.place}: {self.field} is {self.came}; allowed: {self.allowed}"


class ManifestError(MotetError):
    """A data folder has faults; all of them are in the text, and nothing was loaded."""

    code = "manifest-invalid"

    def __init__(self, *, folder: str, manifest: str, num_rows: int, faults: Sequence[Fault], shown: int = 50) -> None:
        self.folder, self.manifest, self.num_rows, self.faults = folder, manifest, num_rows, tuple(faults)
        count = f"{len(faults)} fault{'' if len(faults) == 1 else 's'} in {num_rows} row{'' if num_rows == 1 else 's'}"
        lines = [f"{manifest}: {count}, nothing was loaded", *(f"  {fault}" for fault in faults[:shown])]
        if len(faults) > shown:
            lines.append(f"  ... and {len(faults) - shown} more")
        lines.append(f"Check again with: motet check {folder}")
        super().__init__("\n".join(lines))
