"""Held memory: this process keeps blocks that a round frees for the next one, and looks through its start-up no more.

in        the beginning of a run in this process
out       the same results; less time spent on asking the system for memory and on looking for garbage
relies on nothing: where the C library is another than glibc, memory is kept or given back as it likes
"""

import ctypes
import gc
import platform
from collections.abc import Iterator
from contextlib import contextmanager

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
"""numbers of glibc's malloc.h"""
_KEPT = {_TRIM_THRESHOLD: 2**31 - 1, _TOP_PAD: 64 * 2**20, _MMAP_THRESHOLD: 32 * 2**20}


def keep_freed_memory() -> bool:
    """Freed blocks of up to 32 MiB stay with the process, to its end; whether the C library can be told so."""
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # a tuple, so that one that is refused does not keep the others from being asked for
    return all(tuple(mallopt(option, value) == 1 for option, value in _KEPT.items()))


@contextmanager
def without_search() -> Iterator[None]:
    """No search for garbage while modules are imported, and none among what they have made, ever after.

    Imports make a million objects that stay to the end; looking through them time and again is an eighth of start-up.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()


@contextmanager
def without_what_is_there() -> Iterator[None]:
    """What exists now is left out when garbage is collected, until the context ends."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
