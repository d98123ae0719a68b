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
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from shared.config import NoiseKind
from shared.errors import PrivacyError
from shared.privacy.discrete_gaussian import discrete_gaussian

# Numbers made at a time: few enough to stay in the processor's cache.
PIECE = 1 << 15
# What the cipher adds its key stream to; larger ones would take cache from the numbers.
_ZEROS = memoryview(bytes(1 << 16))
# What the cipher wants behind the last byte that it writes, so that whole blocks fit; in words.
_SPARE = 2
# Arrays without axes: numpy takes half the time to see what they are that it takes with a float of Python's.
_ONE, _ELEVEN = np.array(1, dtype=np.uint64), np.array(11, dtype=np.uint64)
_HALF, _MINUS_TWO = np.array(0.5), np.array(-2.0)
_STEP_53, _STEP_63 = np.array(2.0**-53), np.array(2.0**-63)
_HALF_TURN = np.array(math.pi * 2.0**-64)
_TURN = np.array(math.pi * 2.0**-31, dtype=np.float32)
Numbers = npt.NDArray[np.float64] | npt.NDArray[np.float32]


class RandomSource:
    """A stream of random numbers under one key: the key stream of AES-256 in counter mode.

    Equal keys give equal numbers, for the same calls in the same order. A copy of the process would give the same
    numbers a second time, so a source works only in the process that made it.

    Source: NIST SP 800-38A, section 6.5; the counter starts at zero, and every source has a key of its own.
    """

    def __init__(self, key: bytes, *, counter: bytes = bytes(16)) -> None:
        """Starts the stream of a key of 32 bytes at a counter of 16."""
        self._start = key, counter
        self._process = os.getpid()

    @cached_property
    def _cipher(self) -> CipherContext:
        """Made for the first number: in a run without noise, half of all sources draw none."""
        # kept no longer than it is needed
        key, counter = vars(self).pop("_start")
        return Cipher(algorithms.AES256(key), modes.CTR(counter)).encryptor()

    def uniform(self, num: int) -> Float64[Tensor, "N"]:
        """Numbers, each at least 0 and below 1, in steps of 2^-53."""
        numbers = np.empty(num)
        for start in range(0, num, PIECE):
            words = self._words(min(PIECE, num - start))
            # PRIVACY: 53 bits reach 1 - 2^-53 and never 1, so that a chance of 1 always and one of 0 never comes true.
            # test_uniform_numbers_are_uniform_and_below_one
            np.right_shift(words, _ELEVEN, out=words)
            np.multiply(words.view(np.int64), _STEP_53, out=numbers[start : start + PIECE])
        return torch.from_numpy(numbers)

    def normal(self, shape: tuple[int, ...], *, std: float, kind: NoiseKind = "float64") -> Float[Tensor, "..."]:
        """Independent Gaussian numbers of mean 0 and the given standard deviation, of the dtype that `kind` names.

        They reach 9.34 deviations: a float32 draw of torch's own ends at 5.77, which costs more than a delta of 1e-5
        allows over the weights and steps of a run. "float32" takes two thirds of the time and three quarters of the
        random bits; its numbers lie on a coarser grid.

        Raises:
            PrivacyError: std is negative or not finite; or whole numbers are asked for, which `discrete_normal` draws.

        Source: Box and Muller 1958. Ours differs: the uniform number under the radius has 63 bits and keeps the full
        relative precision of its float at the small end, where the tail comes from.
        """
        _check_continuous(std, kind)
        numbers = np.empty(shape, dtype=kind)
        _fill([self], numbers.reshape(-1), scale=np.array(std, dtype=kind), kind=kind)
        return torch.from_numpy(numbers)

    def normal_into(self, out: Float[Tensor, "..."], *, std: float, kind: NoiseKind = "float64") -> None:
        """Fills `out`, contiguous and on the CPU, with what `normal` would give, rounded to its dtype.

        Raises:
            PrivacyError: as `normal` does.
        """
        _check_continuous(std, kind)
        _fill([self], out.detach().view(-1).numpy(), scale=np.array(std, dtype=kind), kind=kind)

    def discrete_normal(self, shape: tuple[int, ...], *, std: float) -> Int64[Tensor, "..."]:
        """Independent whole numbers from the discrete Gaussian: n with a chance proportional to exp(-n^2 / (2 std^2)).

        Its variance is std^2 or a little less, by under one part in a million for std above 1.

        Raises:
            PrivacyError: std is negative, not finite, or above 2^46.
        """
        _check(std)
        return torch.from_numpy(discrete_gaussian(math.prod(shape), std=std, words=self._words)).reshape(shape)

    def integers(self, num: int) -> Int64[Tensor, "N"]:
        """Whole numbers of 64 bits, each as likely as any other."""
        return torch.from_numpy(self._words(num).view(np.int64))

    def seed(self) -> int:
        """A seed for a generator of somebody else's, such as torch's for dropout; never for noise that protects."""
        return int(self._words(1)[0]) >> 2

    def _words(self, num: int) -> npt.NDArray[np.uint64]:
        words = np.empty(num + _SPARE, dtype=np.uint64)
        self._draw(words.view(np.uint8).data, 8 * num)
        return words[:num]

    def _draw(self, memory: memoryview, num_bytes: int) -> None:
        """Writes the next bytes of the stream to the start of memory that goes on for `_SPARE` words more."""
        # PRIVACY: a forked copy would give noise that is known already. test_a_forked_copy_gives_no_numbers
        if os.getpid() != self._process:
            raise PrivacyError("a random source was carried into another process; make a new one there")
        for start in range(0, num_bytes, len(_ZEROS)):
            self._cipher.update_into(_ZEROS[: num_bytes - start], memory[start:])


def normal_rows(
    sources: Sequence[RandomSource], out: Float[Tensor, "K P"], *, stds: Sequence[float], kind: NoiseKind = "float64"
) -> None:
    """Fills each row of `out` with what its source's `normal((P,))` would give, rounded to the dtype of `out`.

    Short rows are made many at a time, which spares them the fixed cost of some twenty calls each.

    Args:
        out: float32 or float64, on the CPU; its rows may lie apart.
        stds: one of each source.

    Raises:
        PrivacyError: not one source and one std for every row; a std is negative or not finite; or kind is "discrete".
            Nothing has been drawn then.
    """
    # PRIVACY: a row without a source would stay as it was. test_rows_need_a_source_and_a_scale_each
    if not len(sources) == len(stds) == len(out):
        raise PrivacyError(
            f"{len(sources)} sources and {len(stds)} stds for {len(out)} rows; allowed: one of each a row"
        )
    for std in stds:
        _check_continuous(std, kind)
    _fill(sources, out.detach().numpy(), scale=np.array(stds, dtype=kind).reshape(-1, 1), kind=kind)


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


def _fill(sources: Sequence[RandomSource], numbers: Numbers, *, scale: Numbers, kind: NoiseKind) -> None:
    """Fills `numbers` [P], or each row of [K, P] from a source of its own; `scale` has no axes, or is [K, 1]."""
    rows, width = len(sources), numbers.shape[-1]
    together = max(1, min(rows, PIECE // max(1, width)))
    pairs = together * ((min(width, PIECE) + 1) // 2)
    # words for the stream, two of a pair; then lengths and tangents, or lengths in float64 and in float32, and angles
    memory = np.empty(4 * pairs + _SPARE, dtype=np.int64)
    make = _float64_pairs if kind == "float64" else _float32_pairs
    for first in range(0, rows, together):
        group = slice(first, first + together)
        of_group, scale_of_group = (numbers[group], scale[group]) if numbers.ndim == 2 else (numbers, scale)
        for start in range(0, width, PIECE):
            make(sources[group], of_group[..., start : start + PIECE], memory=memory, scale=scale_of_group)


def _drawn(
    sources: Sequence[RandomSource], *, num_words: int, num_bytes: int, memory: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """The next `num_bytes` of each source, `num_words` words apart."""
    stream = memory.view(np.uint8).data
    for each, source in enumerate(sources):
        # the next row is drawn over what the cipher may leave behind this one
        source._draw(stream[8 * num_words * each :], num_bytes)
    return memory[: len(sources) * num_words]


def _squares(words: npt.NDArray[np.int64], *, out: npt.NDArray[np.float64]) -> None:
    """Squared lengths of standard normal vectors in the plane; leaves the words changed.

    In float64 for float32 numbers too: there one u in 2^25 would round to 1, whose length is 0, and two numbers would
    go out without any noise.
    """
    unsigned = words.view(np.uint64)
    np.right_shift(unsigned, _ONE, out=unsigned)
    # PRIVACY: u = (word + 1) / 2^63 in (0, 1] goes down to 2^-63. test_the_tail_is_as_heavy_as_it_should_be; and is
    # 1 once in 2^54 draws. test_no_length_is_lost_to_rounding
    np.multiply(words, _STEP_63, out=out)
    np.add(out, _STEP_63, out=out)
    np.log(out, out=out)
    np.multiply(out, _MINUS_TWO, out=out)


def _float64_pairs(
    sources: Sequence[RandomSource], piece: Numbers, *, memory: npt.NDArray[np.int64], scale: Numbers
) -> None:
    """First the cosines, then the sines, of angles whose halves have the tangent t: 2 / (1 + t^2) - 1, 2t / (1 + t^2).

    numpy has a fast tangent in float64, and no fast cosine.
    """
    *rows, width = piece.shape
    half, rest = (width + 1) // 2, width // 2
    words = _drawn(sources, num_words=2 * half, num_bytes=16 * half, memory=memory).reshape(*rows, 2 * half)
    shares, _, lengths, tangents = memory.view(np.float64)[: 4 * len(sources) * half].reshape(4, *rows, half)
    _squares(words[..., :half], out=lengths)
    np.sqrt(lengths, out=lengths)
    np.multiply(lengths, scale, out=lengths)
    np.multiply(words[..., half:], _HALF_TURN, out=tangents)
    np.tan(tangents, out=tangents)
    np.multiply(tangents, tangents, out=shares)
    np.multiply(shares, _HALF, out=shares)
    np.add(shares, _HALF, out=shares)
    np.divide(lengths, shares, out=shares)
    np.subtract(shares, lengths, out=piece[..., :half], casting="same_kind")
    np.multiply(tangents[..., :rest], shares[..., :rest], out=piece[..., half:], casting="same_kind")


def _float32_pairs(
    sources: Sequence[RandomSource], piece: Numbers, *, memory: npt.NDArray[np.int64], scale: Numbers
) -> None:
    """First the cosines, then the sines, of angles of 32 bits, each rounded to the 24 bits of a float."""
    *rows, width = piece.shape
    half, rest, pairs = (width + 1) // 2, width // 2, len(sources) * ((width + 1) // 2)
    row_words = half + (half + 1) // 2
    words = _drawn(sources, num_words=row_words, num_bytes=12 * half, memory=memory).reshape(*rows, row_words)
    squares = memory.view(np.float64)[2 * pairs : 3 * pairs].reshape(*rows, half)
    lengths, angles = memory.view(np.float32)[6 * pairs : 8 * pairs].reshape(2, *rows, half)
    waves = memory.view(np.float32)[:pairs].reshape(*rows, half)
    _squares(words[..., :half], out=squares)
    np.sqrt(squares, out=lengths, dtype=np.float32, casting="same_kind")
    np.multiply(lengths, scale, out=lengths)
    np.multiply(
        words.view(np.int32)[..., 2 * half : 3 * half], _TURN, out=angles, dtype=np.float32, casting="same_kind"
    )
    np.cos(angles, out=waves)
    np.multiply(waves, lengths, out=piece[..., :half])
    np.sin(angles, out=waves)
    np.multiply(waves[..., :rest], lengths[..., :rest], out=piece[..., half:])
