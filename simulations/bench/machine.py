"""Machine: on what and with what a benchmark was run.

in        the system, the installed packages, git
out       Machine, versions, commit; parts of BenchResult
relies on nothing being secret in a processor's name
"""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from shared.version import VERSION
from simulations.bench.results import Machine

_PACKAGES = ("torch", "opacus", "flwr", "ray", "numpy", "dp-accounting")


def machine() -> Machine:
    """This machine as it is now."""
    return Machine(
        processor=_processor(),
        cores=os.cpu_count() or 1,
        memory_bytes=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        system=f"{platform.system()} {platform.machine()}",
        load=round(os.getloadavg()[0], 2),
    )


def versions() -> dict[str, str]:
    """Motet, Python and the packages that times depend on."""
    found = {"motet": VERSION, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def commit(root: Path) -> str:
    """The commit that is checked out; empty where this is no clone."""
    return _git(root, "rev-parse", "HEAD")


def tree_is_clean(root: Path) -> bool:
    """Whether the files are those of the commit."""
    return not _git(root, "status", "--porcelain", "--untracked-files=no") and bool(commit(root))


def _git(root: Path, *words: str) -> str:
    try:
        done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=True)  # noqa: S603, S607
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = (line.split(":", 1)[1] for line in info.read_text().splitlines() if line.startswith("model name"))
        return next(names, platform.processor()).strip()
    return platform.processor() or platform.machine()
