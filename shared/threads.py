"""Threads: on how many torch computes something, where that is not what it would take.

in        how many numbers an operation goes through
out       one thread for a few numbers, as many as ever for more
relies on torch's setting being one of the thread that calls

Torch shares operations from 32,768 numbers on between threads. For an update of that size this saves some ten
microseconds where every core is free, and costs the time until another thread gets its turn where one is not:
milliseconds, measured on two busy cores, for each site and operation.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

FEW_NUMBERS = 2**20


@contextmanager
def threads_for(num_numbers: int) -> Iterator[None]:
    """Operations on so many numbers, or on fewer, are not shared between threads where it would not pay."""
    before = torch.get_num_threads()
    if before == 1 or num_numbers > FEW_NUMBERS:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
