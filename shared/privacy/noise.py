"""Noise: random numbers that nobody can foretell, for noise, for the draw of batches, and for the draw of sites.

in        the operating system's random numbers; or, in simulations, a seed
out       uniform, normal and whole numbers, read by client/private_training.py, client/sampling.py, server/central.py
relies on AES-256 in counter mode being a cipher, and on nobody reading this process's memory
"""

import hashlib
import math
import os
import secrets

import numpy as np
import numpy.typing as npt
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from shared.config import NoiseKind
from shared.errors import PrivacyError
from shared.privacy.discrete_gaussian import discrete_gaussian

# Numbers made at a time: few enough to stay in the processor's cache.
PIECE = 1 << 15
_ZEROS = memoryview(bytes(8 * PIECE))


class RandomSource:
    """A stream of random numbers under one key: the key stream of AES-256 in counter mode.

    Equal keys give equal numbers, for the same calls in the same order. A copy of the process would give the same
    numbers a second time, so a source works only in the process that made it.

    Source: NIST SP 800-38A, section 6.5; the counter starts at zero, and every source has a key of its own.
    """

    def __init__(self, key: bytes, *, counter: bytes = bytes(16)) -> None:
        """Starts the stream of a key of 32 bytes at a counter of 16."""
        self._cipher = Cipher(algorithms.AES256(key), modes.CTR(counter)).encryptor()
        self._process = os.getpid()

    def uniform(self, num: int) -> Float64[Tensor, "N"]:
        """Numbers, each at least 0 and below 1, in steps of 2^-53."""
        # PRIVACY: 53 bits reach 1 - 2^-53 and never 1, so that a chance of 1 always and one of 0 never comes true.
        # test_uniform_numbers_are_uniform_and_below_one
        words = (self._words(num) >> np.uint64(11)).view(np.int64)
        return torch.from_numpy(words).to(torch.float64).mul_(2.0**-53)

    def normal(self, shape: tuple[int, ...], *, std: float, kind: NoiseKind = "float64") -> Float[Tensor, "..."]:
        """Independent Gaussian numbers of mean 0 and the given standard deviation, of the dtype that `kind` names.

        They reach 9.34 deviations: a float32 draw of torch's own ends at 5.77, which costs more than a delta of 1e-5
        allows over the weights and steps of a run. "float32" takes 60 % of the time and three quarters of the random
        bits; its numbers lie on a coarser grid.

        Raises:
            PrivacyError: std is negative or not finite; or whole numbers are asked for, which `discrete_normal` draws.

        Source: Box and Muller 1958. Ours differs: the uniform number under the radius has 63 bits and keeps the full
        relative precision of its float at the small end, where the tail comes from.
        """
        self._check(std)
        if kind == "discrete":
            raise PrivacyError('kind is "discrete"; normal draws "float64" or "float32"; use discrete_normal')
        dtype = torch.float64 if kind == "float64" else torch.float32
        numbers = torch.empty(math.prod(shape), dtype=dtype)
        for start in range(0, len(numbers), PIECE):
            piece = numbers[start : start + PIECE]
            half = (len(piece) + 1) // 2
            radius = self._radius(half, dtype=dtype).mul_(std)
            angle = self._angle(half, dtype=dtype)
            torch.cos(angle, out=piece[:half]).mul_(radius)
            rest = len(piece) - half
            torch.sin(angle[:rest], out=piece[half:]).mul_(radius[:rest])
        return numbers.reshape(shape)

    def discrete_normal(self, shape: tuple[int, ...], *, std: float) -> Int64[Tensor, "..."]:
        """Independent whole numbers from the discrete Gaussian: n with a chance proportional to exp(-n^2 / (2 std^2)).

        Its variance is std^2 or a little less, by under one part in a million for std above 1.

        Raises:
            PrivacyError: std is negative, not finite, or above 2^46.
        """
        self._check(std)
        return torch.from_numpy(discrete_gaussian(math.prod(shape), std=std, words=self._words)).reshape(shape)

    def seed(self) -> int:
        """A seed for a generator of somebody else's, such as torch's for dropout; never for noise that protects."""
        return int(self._words(1)[0]) >> 2

    def _radius(self, num: int, *, dtype: torch.dtype) -> Tensor:
        """Lengths of standard normal vectors in the plane, computed in float64 and then rounded.

        In float32 one u in 2^25 would round to 1, whose length is 0: two numbers would go out without any noise.
        """
        words = torch.from_numpy((self._words(num) >> np.uint64(1)).view(np.int64)).double()
        # PRIVACY: u = (word + 1) / 2^63 in (0, 1] goes down to 2^-63. test_the_tail_is_as_heavy_as_it_should_be; and is
        # 1 once in 2^54 draws. test_no_length_is_lost_to_rounding
        return words.add_(1.0).mul_(2.0**-63).log_().mul_(-2.0).sqrt_().to(dtype)

    def _angle(self, num: int, *, dtype: torch.dtype) -> Tensor:
        """Angles of standard normal vectors in the plane, in radians."""
        if dtype == torch.float64:
            return self.uniform(num).mul_(2.0 * math.pi)
        words = np.frombuffer(self._bytes(4 * num), dtype=np.uint32) >> np.uint32(8)
        return torch.from_numpy(words.view(np.int32)).to(dtype).mul_(2.0 * math.pi * 2.0**-24)

    def _words(self, num: int) -> npt.NDArray[np.uint64]:
        return np.frombuffer(self._bytes(8 * num), dtype=np.uint64)

    def _bytes(self, num: int) -> bytes:
        # PRIVACY: a forked copy would give noise that is known already. test_a_forked_copy_gives_no_numbers
        if os.getpid() != self._process:
            raise PrivacyError("a random source was carried into another process; make a new one there")
        return self._cipher.update(_ZEROS[:num] if num <= len(_ZEROS) else bytes(num))

    @staticmethod
    def _check(std: float) -> None:
        if not 0 <= std < math.inf:
            raise PrivacyError(f"std is {std}; allowed: 0 or above, finite")


def secret_source() -> RandomSource:
    """A stream under a key of the operating system's; no seed gives its numbers back."""
    # PRIVACY: all 256 bits of the key are secret. test_secret_sources_differ
    return RandomSource(secrets.token_bytes(32))


def reproducible_source(seed: int, *, purpose: str) -> RandomSource:
    """A stream that the same seed and purpose give back: for simulations, where it protects nobody.

    Two purposes, such as the noise of two sites, get unrelated numbers from one seed.
    """
    return RandomSource(hashlib.sha256(f"{seed}/{purpose}".encode()).digest())
