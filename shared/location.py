"""Location: a file name from a manifest becomes the path of a regular file inside the folder, or a fault.

in        a string that anybody may have written
out       a real path (no links left in it) below the folder
relies on nothing in the string: what it says is judged before the file system is asked about it

# PRIVACY: a manifest cannot make a site read outside the folder its owner named. test_no_string_leads_out_of_the_folder
"""

import os
import posixpath
import stat
from pathlib import Path

from shared.errors import MediaFault
from shared.findings import shown
from shared.media.file import judge_status

MAX_NAME_CHARACTERS = 1024
_ALLOWED = "a file inside the folder, written relative to it with / between folders"


class Locator:
    """Finds the files of one folder. Parents are resolved once each, so that ten thousand rows cost little."""

    def __init__(self, folder: Path) -> None:
        self._root = os.path.realpath(folder)
        self._inside = self._root.rstrip(os.sep) + os.sep
        self._parents: dict[str, str] = {}

    def find(self, name: str) -> Path:
        """The real path of a regular, non-empty file inside the folder; it is not opened.

        Raises:
            MediaFault: the name leads elsewhere, or to something else.
        """
        parent, _, base = _relative(name).rpartition("/")
        path = self._parent(parent, name=name) + base
        try:
            status = os.lstat(path)
            if stat.S_ISLNK(status.st_mode):
                path = self._resolve(path, name=name)
                status = os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            raise MediaFault(field="file", came=f"{shown(name)}, which is missing", allowed=_ALLOWED) from None
        except OSError as error:
            came = f"{shown(name)}, which cannot be reached ({error.strerror})"
            raise MediaFault(field="file", came=came, allowed=_ALLOWED) from None
        try:
            judge_status(status)
        except MediaFault as fault:
            raise MediaFault(field="file", came=f"{shown(name)}, {fault.came}", allowed=fault.allowed) from None
        return Path(path)

    def _parent(self, parent: str, *, name: str) -> str:
        """The real path of a parent folder, with a separator at its end."""
        if parent not in self._parents:
            self._parents[parent] = self._resolve(self._inside + parent, name=name).rstrip(os.sep) + os.sep
        return self._parents[parent]

    def _resolve(self, path: str, *, name: str) -> str:
        real = os.path.realpath(path)
        if real != self._root and not real.startswith(self._inside):
            came = f"{shown(name)}, a link out of the folder"
            raise MediaFault(field="file", came=came, allowed="a file that lies in the folder itself")
        return real


def _relative(name: str) -> str:
    """The name without `.` and empty parts.

    Raises:
        MediaFault: the name by itself is not one of a file inside the folder.
    """
    reason = None
    if len(name) > MAX_NAME_CHARACTERS:
        reason = f"longer than {MAX_NAME_CHARACTERS} characters"
    elif not name.isprintable():
        reason = "with characters that cannot be printed"
    elif name.startswith("/") or name[1:2] == ":":
        reason = "an absolute path"
    elif "\\" in name:
        reason = "written with \\"
    elif ".." in name.split("/"):
        reason = "which leads upwards"
    elif (plain := posixpath.normpath(name)) == "." or name.endswith("/"):
        reason = "a folder"
    if reason is not None:
        raise MediaFault(field="file", came=f"{shown(name)}, {reason}", allowed=_ALLOWED)
    return plain
