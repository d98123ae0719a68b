"""No space: files that cannot grow, or a small file system that is full; for tests of what is left on a disk then."""

import contextlib
import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

SIZE_KIB = 4096


@contextlib.contextmanager
def no_space_beyond(num_bytes: int) -> Iterator[None]:
    """Inside, no file of this process grows beyond so many bytes: writing more is an OSError, EFBIG."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """A file system of few bytes in the place of a folder, with what was in it; it is as it was before at the end."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a file system")
    held = shutil.copytree(folder, folder.with_name(f"{folder.name}-held"), symlinks=True)
    options = f"size={SIZE_KIB}k,mode={folder.stat().st_mode & 0o777:o}"
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(folder)], check=False)
    if done.returncode != 0:
        pytest.skip("a file system cannot be mounted here")
    try:
        shutil.copytree(held, folder, symlinks=True, dirs_exist_ok=True)
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path, *, but: int = 0) -> None:
    """Not a byte more fits on the file system of a folder than are left, in whole pages."""
    with contextlib.suppress(OSError), (folder / "filler").open("wb", buffering=0) as filler:
        while shutil.disk_usage(folder).free > but and filler.write(b"\0" * 4096):
            pass
    assert shutil.disk_usage(folder).free <= but
