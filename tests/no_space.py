"""No space: files cannot grow beyond a size, as on a full disk; for tests of what is left on it then."""

import contextlib
import resource
from collections.abc import Iterator


@contextlib.contextmanager
def no_space_beyond(num_bytes: int) -> Iterator[None]:
    """Inside, no file of this process grows beyond so many bytes: writing more is an OSError, EFBIG."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
