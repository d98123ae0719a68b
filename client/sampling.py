"""Sampling: which records enter a step, each by a coin of its own; and the generators whose draws must stay secret.

in        the number of records at hand, the public sampling rate
out       row numbers, read by private_training.py; generators for it
relies on the operating system's random numbers
"""

import secrets

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

# Where torch keeps the 624 words of its Mersenne Twister in a generator's state, each in eight bytes.
STATE_WORDS = slice(3, 3 + 624)


def poisson_batch(num_records: int, *, sample_rate: float, generator: torch.Generator) -> Int[Tensor, "B"]:
    """Rows of one step: each of `num_records` independently with probability `sample_rate`; often none.

    Source: Mironov et al. 2019, arXiv:1908.10530, section 3: the sampling that the accountant assumes. Shuffled
    batches of a fixed size would be another mechanism with another, larger epsilon.
    """
    # PRIVACY: one coin a record, in float64 so that its chance is the stated one to 1e-16.
    # test_every_record_enters_by_a_coin_of_its_own
    coins = torch.rand(num_records, generator=generator, dtype=torch.float64)
    return (coins < sample_rate).nonzero().flatten()


def secret_generator() -> torch.Generator:
    """A generator whose whole state comes from the operating system; no seed gives its numbers back.

    torch keeps only 32 bits of a CPU generator's seed, `.seed()` included, so that all noise a seed can make could be
    tried through in hours. Here all 19,968 bits of the state are drawn instead.
    What it does not give: the Mersenne Twister is no cipher. Who saw 624 of its raw words could foretell the rest; they
    are seen only through the sum of unknown gradients and noise.
    """
    generator = torch.Generator()
    state = generator.get_state()
    words = np.frombuffer(secrets.token_bytes(4 * 624), dtype=np.uint32).astype(np.uint64)
    # PRIVACY: every word of the state is secret, not only 32 bits of a seed.
    # test_secret_generators_differ_beyond_their_seed
    state.numpy().view(np.uint64)[STATE_WORDS] = words
    generator.set_state(state)
    return generator


def reproducible_generator(seed: int, *, purpose: str) -> torch.Generator:
    """A generator that the same seed and purpose give back: for simulations, where it protects nobody.

    Two purposes, such as the noise of two sites, get unrelated numbers from one seed.
    """
    generator = torch.Generator()
    state = generator.get_state()
    entropy = [seed, *purpose.encode()]
    state.numpy().view(np.uint64)[STATE_WORDS] = np.random.SeedSequence(entropy).generate_state(624).astype(np.uint64)
    generator.set_state(state)
    return generator
