"""Noise: random numbers that nobody can foretell, for noise, for the draw of batches, and for the draw of sites.

in        the operating system's random numbers; or, in simulations, a seed
out       uniform, normal and whole numbers, read by client/private_training.py, client/sampling.py, server/central.py
relies on AES-256 in counter mode being a cipher, and on nobody reading this process's memory

One thread makes the numbers, and the cipher keeps Python's lock: threads that draw at once wait for each other.
"""

import hashlib
import math
import os
import secrets
from collections.abc import Sequence

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
_ONE = np.uint64(1)
_BYTES_A_PAIR = {"float64": 16, "float32": 12}
# What the cipher wants behind the last byte that it writes, so that whole blocks fit.
_SPARE_BYTES = 16
Numbers = npt.NDArray[np.float64] | npt.NDArray[np.float32]


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
        words = self._words(num)
        # PRIVACY: 53 bits reach 1 - 2^-53 and never 1, so that a chance of 1 always and one of 0 never comes true.
        # test_uniform_numbers_are_uniform_and_below_one
        np.right_shift(words, np.uint64(11), out=words)
        return torch.from_numpy(np.multiply(words.view(np.int64), 2.0**-53))

    def normal(self, shape: tuple[int, ...], *, std: float, kind: NoiseKind = "float64") -> Float[Tensor, "..."]:
        """Independent Gaussian numbers of mean 0 and the given standard deviation, of the dtype that `kind` names.

        They reach 9.34 deviations: a float32 draw of torch's own ends at 5.77, which costs more than a delta of 1e-5
        allows over the weights and steps of a run. "float32" takes three quarters of the time and of the random bits;
        its numbers lie on a coarser grid.

        Raises:
            PrivacyError: std is negative or not finite; or whole numbers are asked for, which `discrete_normal` draws.

        Source: Box and Muller 1958. Ours differs: the uniform number under the radius has 63 bits and keeps the full
        relative precision of its float at the small end, where the tail comes from.
        """
        _check_continuous(std, kind)
        numbers = np.empty(shape, dtype=kind)
        _fill([self], numbers.reshape(1, -1), scale=std, kind=kind)
        return torch.from_numpy(numbers)

    def normal_into(self, out: Float[Tensor, "..."], *, std: float, kind: NoiseKind = "float64") -> None:
        """Fills `out`, on the CPU, with what `normal` would give, rounded to its dtype.

        Raises:
            PrivacyError: as `normal` does.
        """
        _check_continuous(std, kind)
        _fill([self], out.detach().view(1, -1).numpy(), scale=std, kind=kind)

    def discrete_normal(self, shape: tuple[int, ...], *, std: float) -> Int64[Tensor, "..."]:
        """Independent whole numbers from the discrete Gaussian: n with a chance proportional to exp(-n^2 / (2 std^2)).

        Its variance is std^2 or a little less, by under one part in a million for std above 1.

        Raises:
            PrivacyError: std is negative, not finite, or above 2^46.
        """
        _check(std)
        return torch.from_numpy(discrete_gaussian(math.prod(shape), std=std, words=self._words)).reshape(shape)

    def seed(self) -> int:
        """A seed for a generator of somebody else's, such as torch's for dropout; never for noise that protects."""
        return int(self._words(1)[0]) >> 2

    def _words(self, num: int) -> npt.NDArray[np.uint64]:
        memory = np.empty(8 * num + _SPARE_BYTES, dtype=np.uint8)
        self._draw(memory, 8 * num)
        return memory[: 8 * num].view(np.uint64)

    def _draw(self, memory: npt.NDArray[np.uint8], num_bytes: int) -> None:
        """Writes the next bytes of the stream to the start of memory that has `_SPARE_BYTES` more."""
        # PRIVACY: a forked copy would give noise that is known already. test_a_forked_copy_gives_no_numbers
        if os.getpid() != self._process:
            raise PrivacyError("a random source was carried into another process; make a new one there")
        self._cipher.update_into(_ZEROS[:num_bytes] if num_bytes <= len(_ZEROS) else bytes(num_bytes), memory.data)


def normal_rows(
    sources: Sequence[RandomSource], out: Float[Tensor, "K P"], *, stds: Sequence[float], kind: NoiseKind = "float64"
) -> None:
    """Fills each row of `out` with what its source's `normal((P,))` would give, rounded to the dtype of `out`.

    Short rows are made many at a time, which spares them the fixed cost of some twenty calls each.

    Args:
        out: on the CPU; the numbers of one row lie side by side.
        stds: one of each source.

    Raises:
        PrivacyError: a std is negative or not finite; or kind is "discrete". Nothing has been drawn then.
    """
    for std in stds:
        _check_continuous(std, kind)
    _fill(sources, out.detach().numpy(), scale=np.array(stds, dtype=kind).reshape(len(out), 1), kind=kind)


def secret_source() -> RandomSource:
    """A stream under a key of the operating system's; no seed gives its numbers back."""
    # PRIVACY: all 256 bits of the key are secret. test_secret_sources_differ
    return RandomSource(secrets.token_bytes(32))


def reproducible_source(seed: int, *, purpose: str) -> RandomSource:
    """A stream that the same seed and purpose give back: for simulations, where it protects nobody.

    Two purposes, such as the noise of two sites, get unrelated numbers from one seed.
    """
    return RandomSource(hashlib.sha256(f"{seed}/{purpose}".encode()).digest())


def _check(std: float) -> None:
    if not 0 <= std < math.inf:
        raise PrivacyError(f"std is {std}; allowed: 0 or above, finite")


def _check_continuous(std: float, kind: NoiseKind) -> None:
    _check(std)
    if kind == "discrete":
        raise PrivacyError('kind is "discrete"; normal draws "float64" or "float32"; use discrete_normal')


def _fill(sources: Sequence[RandomSource], numbers: Numbers, *, scale: float | Numbers, kind: NoiseKind) -> None:
    """Fills each row of `numbers` [K, P] from a source of its own; `scale` is one number or [K, 1]."""
    rows, width = numbers.shape
    longest = min(width, PIECE)
    together = max(1, min(rows, PIECE // max(1, width)))
    # a pair takes two words, or one and a half; the rest of them is for lengths rounded to float32
    memory = np.empty((together, longest + 1 + _SPARE_BYTES // 8), dtype=np.int64)
    scratch = None if numbers.dtype == kind else np.empty((together, longest), dtype=kind)
    make = _float64_pairs if kind == "float64" else _float32_pairs
    for first in range(0, rows, together):
        group = slice(first, min(first + together, rows))
        group_scale = scale[group] if isinstance(scale, np.ndarray) else scale
        for start in range(0, width, PIECE):
            piece = numbers[group, start : start + PIECE]
            made = piece if scratch is None else scratch[: piece.shape[0], : piece.shape[1]]
            half = (made.shape[1] + 1) // 2
            for source, row in zip(sources[group], memory[: len(made)].view(np.uint8), strict=True):
                source._draw(row, _BYTES_A_PAIR[kind] * half)
            make(memory[: len(made)], made, scale=group_scale)
            if scratch is not None:
                piece[...] = made


def _squares(words: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Squared lengths of standard normal vectors in the plane, in the memory of the words that they are made from.

    In float64 for float32 numbers too: there one u in 2^25 would round to 1, whose length is 0, and two numbers would
    go out without any noise.
    """
    unsigned, squares = words.view(np.uint64), words.view(np.float64)
    np.right_shift(unsigned, _ONE, out=unsigned)
    # PRIVACY: u = (word + 1) / 2^63 in (0, 1] goes down to 2^-63. test_the_tail_is_as_heavy_as_it_should_be; and is
    # 1 once in 2^54 draws. test_no_length_is_lost_to_rounding
    np.multiply(words, 2.0**-63, out=squares)
    squares += 2.0**-63
    np.log(squares, out=squares)
    squares *= -2.0
    return squares


def _float64_pairs(memory: npt.NDArray[np.int64], made: Numbers, *, scale: float | Numbers) -> None:
    """First the cosines, then the sines, of angles whose halves have the tangent t: 2 / (1 + t^2) - 1, 2t / (1 + t^2).

    numpy has a fast tangent in float64, and no fast cosine.
    """
    half, rest = (made.shape[1] + 1) // 2, made.shape[1] // 2
    lengths, words = _squares(memory[:, :half]), memory[:, half : 2 * half]
    np.sqrt(lengths, out=lengths)
    lengths *= scale
    tangents = words.view(np.float64)
    np.multiply(words, math.pi * 2.0**-64, out=tangents)
    np.tan(tangents, out=tangents)
    cosines = made[:, :half]
    np.multiply(tangents, tangents, out=cosines)
    cosines *= 0.5
    cosines += 0.5
    np.divide(lengths, cosines, out=cosines)
    np.multiply(tangents[:, :rest], cosines[:, :rest], out=made[:, half:])
    cosines -= lengths


def _float32_pairs(memory: npt.NDArray[np.int64], made: Numbers, *, scale: float | Numbers) -> None:
    """First the cosines, then the sines, of angles of 32 bits, each rounded to the 24 bits of a float."""
    half, rest = (made.shape[1] + 1) // 2, made.shape[1] // 2
    words = memory.view(np.int32)[:, 2 * half : 3 * half]
    lengths, angles = memory.view(np.float32)[:, 3 * half : 4 * half], words.view(np.float32)
    np.sqrt(_squares(memory[:, :half]), out=lengths, dtype=np.float32, casting="same_kind")
    lengths *= scale
    np.multiply(words, math.pi * 2.0**-31, out=angles, dtype=np.float32, casting="same_kind")
    cosines, sines = made[:, :half], made[:, half:]
    np.cos(angles, out=cosines)
    cosines *= lengths
    np.sin(angles[:, :rest], out=sines)
    sines *= lengths[:, :rest]
