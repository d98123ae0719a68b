"""Bundle: the folder from which `flwr run` makes what it delivers, from the Motet that is installed.

in        the packages client, server and shared, wherever this program runs from
out       DIR/app/motet: their code and pyproject.toml with Flower's part of it; nothing else
relies on server/code_digest.py for which files are the program
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

import tomli_w

from server.code_digest import FOLDERS, ROOT, SUFFIXES
from shared.version import VERSION

_NAME = "motet"


def make_app(folder: Path) -> Path:
    """The app's folder, made anew: a file of an older Motet in it would be delivered."""
    app, patterns = folder / _NAME, set[str]()
    shutil.rmtree(app, ignore_errors=True)
    for package in FOLDERS:
        for path in sorted((ROOT / package).rglob("*")):
            if path.suffix in SUFFIXES and path.is_file():
                to = app / path.relative_to(ROOT)
                to.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, to)
                # Flower refuses a pattern that no file matches
                patterns.add(f"{package}/**/*{path.suffix}")
    (app / "pyproject.toml").write_text(tomli_w.dumps(app_settings(sorted(patterns))), encoding="utf-8")
    return app


def app_settings(patterns: Sequence[str]) -> dict[str, object]:
    """What Flower reads, for the files that match the patterns; else as in Motet's own pyproject.toml."""
    app = {
        "publisher": _NAME,
        "fab-include": list(patterns),
        "components": {"serverapp": "server.app:app", "clientapp": "client.app:app"},
        "config": {"run-folder": ""},
    }
    about = {"name": _NAME, "version": VERSION, "description": "Motet", "license": "Apache-2.0"}
    return {"project": about, "tool": {"flwr": {"app": app}}}
