"""Tux Paint's stamps as they come: found, unpacked if need be, read into a list.

in        Debian's package tuxpaint-stamps-default: the .deb, an unpacked or installed folder, or apt
out       Stamps, one a drawing, with its written and its spoken names by language
relies on the package's own naming: NAME.png or NAME.svg, NAME.txt, NAME_desc_LANGUAGE.ogg
"""

import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from shared.errors import ConfigError

LANGUAGES = ("be", "bg", "ca", "da", "el", "es", "fr", "ro", "ru")
PACKAGE = "tuxpaint-stamps-default"
INSTALLED = Path("/usr/share/tuxpaint/stamps")
_HELP = (
    f"give --from with the .deb of {PACKAGE} (https://packages.debian.org/{PACKAGE}) or with the folder it was "
    f"unpacked into, or install it: apt-get install {PACKAGE}"
)


@dataclass(frozen=True, eq=False)
class Stamp:
    """One drawing that has a written name in at least one of LANGUAGES."""

    key: str
    """path under the stamps folder, without suffix"""
    category: str
    """first folder of the key"""
    drawing: Path
    """.png where there is one, .svg otherwise"""
    names: dict[str, tuple[str, Path | None]]
    """language -> name as written, and as spoken where somebody spoke it"""
    english: str
    """the name that the others were translated from; "" where there is none"""


@contextmanager
def stamps_folder(source: Path | None) -> Iterator[Path]:
    """The stamps folder of a .deb, of an unpacked folder or, for None, of the installed or downloaded package.

    Raises:
        ConfigError: there are no stamps in `source`, or the tools to get at them are missing.
    """
    with tempfile.TemporaryDirectory(prefix="motet-tuxpaint-") as name:
        scratch = Path(name)
        if source is None and INSTALLED.is_dir():
            yield INSTALLED
        elif source is None:
            _run("apt-get", "download", PACKAGE, folder=scratch)
            yield _unpack(next(scratch.glob("*.deb"), scratch / "package.deb"), into=scratch / "unpacked")
        elif source.suffix == ".deb" and source.is_file():
            yield _unpack(source.resolve(), into=scratch / "unpacked")
        else:
            yield _inside(source)


def _unpack(package: Path, *, into: Path) -> Path:
    into.mkdir()
    _run("dpkg-deb", "-x", str(package), str(into), folder=into)
    return _inside(into)


def _inside(folder: Path) -> Path:
    for inner in ("usr/share/tuxpaint/stamps", "tuxpaint/stamps", "stamps", "."):
        stamps = folder / inner
        if next(stamps.glob("*/**/*_desc_*.ogg"), None) is not None:
            return stamps
    raise ConfigError(f"{folder}: no stamps with spoken names in it; {_HELP}")


def _run(program: str, *arguments: str, folder: Path) -> None:
    path = shutil.which(program)
    if path is None:
        raise ConfigError(f"{program} is not on this machine; {_HELP}")
    done = subprocess.run([path, *arguments], cwd=folder, capture_output=True, text=True, check=False)  # noqa: S603 fixed programs
    if done.returncode != 0:
        raise ConfigError(f"{program} {' '.join(arguments)} failed: {done.stderr.strip()[-300:]}; {_HELP}")


def copyright_of(stamps: Path) -> str:
    """The package's copyright file, or "" where only the stamps themselves were given."""
    path = stamps.parents[1] / "doc" / PACKAGE / "copyright"
    return path.read_text(encoding="utf-8").strip() if path.is_file() else ""


def read_stamps(stamps: Path) -> list[Stamp]:
    """All drawings with a written name, in order of their keys."""
    found = []
    files = {path.relative_to(stamps).as_posix(): path for path in sorted(stamps.rglob("*")) if path.is_file()}
    keys = {name.rpartition(".")[0] for name in files if name.endswith((".png", ".svg"))}
    for key in sorted(keys):
        text = files[f"{key}.txt"].read_text(encoding="utf-8", errors="replace") if f"{key}.txt" in files else ""
        written = _written_names(text)
        names = {
            language: (written[language], files.get(f"{key}_desc_{language}.ogg"))
            for language in LANGUAGES
            if language in written
        }
        if names:
            drawing = files.get(f"{key}.png") or files[f"{key}.svg"]
            category, english = key.partition("/")[0], text.partition("\n")[0].strip()
            found.append(Stamp(key=key, category=category, drawing=drawing, names=names, english=english))
    return found


def _written_names(text: str) -> dict[str, str]:
    found = re.findall(r"^([A-Za-z_@]+)\.utf8[ \t]*=[ \t]*(\S.*?)\s*$", text, flags=re.MULTILINE)
    return {language: name for language, name in found if language in LANGUAGES}
