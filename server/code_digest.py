"""Code digest: which program made a report, as one number that whoever has the program can compute again.

in        the program's own files beside this one
out       a SHA-256; equal digests, equal programs
relies on nothing; only what both sides of a federation run is counted, so that a bundle has its checkout's digest
"""

import hashlib
from pathlib import Path

FOLDERS = ("client", "server", "shared")
SUFFIXES = (".py", ".toml")
ROOT = Path(__file__).resolve().parents[1]


def code_digest(root: Path = ROOT) -> str:
    """SHA-256 over names and contents of the .py and .toml files of client/, server/ and shared/."""
    total = hashlib.sha256()
    paths = [path for folder in FOLDERS for path in (root / folder).rglob("*") if path.suffix in SUFFIXES]
    for path in sorted(paths):
        name, content = path.relative_to(root).as_posix(), path.read_bytes()
        # both hashed apart, so that no name can run into a content
        total.update(hashlib.sha256(name.encode()).digest() + hashlib.sha256(content).digest())
    return total.hexdigest()
