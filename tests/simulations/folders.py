"""Looking into built folders, for the tests of the builders."""

import hashlib
import json
from pathlib import Path


def rows_of(folder: Path) -> list[dict[str, str]]:
    """Rows of a folder's metadata.jsonl."""
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text("utf-8").splitlines()]


def digest_of(folder: Path) -> str:
    """SHA-256 over the names and bytes of all files under a folder."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            digest.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()
