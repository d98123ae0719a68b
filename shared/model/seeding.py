"""Seeding: the first weights of each part follow from the run's seed, whatever else the program has drawn.

in        the run's seed and the part's name
out       a block of code in which torch draws the same numbers every time
relies on weights being made on the CPU; weights need to be equal at all sites, not secret
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(seed: int, *, part: str) -> Iterator[None]:
    """Inside, torch's default generator starts from (seed, part); afterwards it is as it was before.

    Each part has numbers of its own, so a modality added to a run leaves the first weights of the others alone.
    """
    before = torch.default_generator.get_state()
    digest = hashlib.blake2b(f"{seed} {part}".encode(), digest_size=8).digest()
    try:
        # The generator's own method: torch.manual_seed would also reset accelerators, which nothing here restores.
        torch.default_generator.manual_seed(int.from_bytes(digest, "big") >> 1)
        yield
    finally:
        torch.default_generator.set_state(before)
