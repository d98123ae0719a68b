"""Noise: random numbers that nobody can foretell, for noise, for the draw of batches, and for the draw of sites.

in        the operating system's random numbers; or, in simulations, a seed
out       uniform and normal numbers, read by client/private_training.py, client/sampling.py and server/central.py
relies on AES-256 in counter mode being a cipher, and on nobody reading this process's memory
"""

import hashlib
import math
import secrets

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from jaxtyping import Float
from torch import Tensor

from shared.config import NoiseKind

# Where a numpy word ends and a float64 mantissa begins.
_SHIFT, _SCALE = np.uint64(11), 2.0**-53


class RandomSource:
    """A stream of random numbers under one key: AES-256 in counter mode."""

    def __init__(self, key: bytes) -> None:
        """Starts the stream of a key of 32 bytes; equal keys give equal numbers."""
        self._cipher = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()

    def uniform(self, num: int) -> Float[Tensor, "N"]:
        """Float64 numbers, each at least 0 and below 1, in steps of 2^-53."""
        words = np.frombuffer(self._cipher.update(bytes(8 * num)), dtype=np.uint64)
        return torch.from_numpy((words >> _SHIFT).astype(np.float64) * _SCALE)

    def normal(self, shape: tuple[int, ...], *, std: float, kind: NoiseKind = "float64") -> Tensor:  # noqa: ARG002
        """Independent Gaussian numbers of mean 0 and the given standard deviation.

        Source: Box and Muller 1958.
        """
        num = math.prod(shape)
        half = (num + 1) // 2
        # 1 - u lies in (0, 1], where the logarithm is finite
        radius = (-2.0 * torch.log1p(-self.uniform(half))).sqrt()
        angle = 2.0 * math.pi * self.uniform(half)
        pairs = torch.cat([radius * angle.cos(), radius * angle.sin()])
        return std * pairs[:num].reshape(shape)

    def seed(self) -> int:
        """A seed for a generator of somebody else's, such as torch's for dropout; never for noise that protects."""
        return int.from_bytes(self._cipher.update(bytes(8)), "little") >> 2


def secret_source() -> RandomSource:
    """A stream under a key of the operating system's; no seed gives its numbers back."""
    # PRIVACY: all 256 bits of the key are secret. test_secret_sources_differ
    return RandomSource(secrets.token_bytes(32))


def reproducible_source(seed: int, *, purpose: str) -> RandomSource:
    """A stream that the same seed and purpose give back: for simulations, where it protects nobody.

    Two purposes, such as the noise of two sites, get unrelated numbers from one seed.
    """
    return RandomSource(hashlib.sha256(f"{seed}/{purpose}".encode()).digest())
