"""Threads: on how many torch computes something, where that is not what it would take.

in        how many numbers an operation goes through
out       one thread for a few numbers, as many as ever for more
relies on torch's setting being one of the thread that calls

Torch shares operations from 32,768 numbers on between threads. For an update of that size this saves some ten
microseconds where every core is free, and costs the time until another thread gets its turn where one is not:
milliseconds, measured on two busy cores, for each site and operation.
"""

from contextlib import AbstractContextManager, nullcontext
from types import TracebackType

import torch

FEW_NUMBERS = 2**20


def threads_for(num_numbers: int) -> AbstractContextManager[None]:
    """Operations on so many numbers, or on fewer, are not shared between threads where it would not pay."""
    return nullcontext() if num_numbers > FEW_NUMBERS or torch.get_num_threads() == 1 else _OneThread()


class _OneThread:
    """No generator, which would cost each site of a round three times as much."""

    def __enter__(self) -> None:
        self._before = torch.get_num_threads()
        torch.set_num_threads(1)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        torch.set_num_threads(self._before)
