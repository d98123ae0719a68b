"""Tests of shared/privacy/noise.py: nobody can foretell the numbers, and they have the distribution they should.

Statistical tests run on fixed keys, so they never fail by chance; each states how many keys in a million would fail it.
"""

import math
import os
import random

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy import stats

from shared.config import NoiseKind
from shared.errors import PrivacyError
from shared.privacy.noise import RandomSource, normal_rows, reproducible_source, secret_source

FALSE_ALARM = 1e-6
Numbers = npt.NDArray[np.float64]
KINDS: tuple[NoiseKind, ...] = ("float64", "float32", "discrete")
CONTINUOUS: tuple[NoiseKind, ...] = ("float64", "float32")


class FixedBytes(RandomSource):
    """Answers with one byte for ever, or with words whose highest bits are zero."""

    def __init__(self, *, byte: int | None = None, cleared_bits: int = 0) -> None:
        super().__init__(bytes(32))
        self.byte, self.cleared_bits = byte, cleared_bits

    def _draw(self, memory: memoryview, num_bytes: int) -> None:
        super()._draw(memory, num_bytes)
        drawn = np.frombuffer(memory, dtype=np.uint8)[:num_bytes]
        if self.cleared_bits:
            drawn.view(np.uint64)[:] >>= np.uint64(self.cleared_bits)
        if self.byte is not None:
            drawn[:] = self.byte


def source(purpose: str = "test") -> RandomSource:
    return reproducible_source(0, purpose=purpose)


def draw(kind: NoiseKind, num: int, *, std: float, purpose: str = "test") -> Numbers:
    drawn = source(purpose)
    numbers = drawn.discrete_normal((num,), std=std) if kind == "discrete" else drawn.normal((num,), std=std, kind=kind)
    return numbers.double().numpy()


def variance_is_plausible(numbers: Numbers, std: float) -> bool:
    total = float(np.square(numbers / std).sum())
    low, high = stats.chi2.ppf([FALSE_ALARM / 2, 1 - FALSE_ALARM / 2], df=len(numbers))
    return bool(low < total < high)


def looks_normal(numbers: Numbers, std: float) -> bool:
    return bool(stats.kstest(numbers / std, "norm").pvalue > FALSE_ALARM)


def looks_uniform(numbers: Numbers) -> bool:
    return bool(stats.kstest(numbers, "uniform").pvalue > FALSE_ALARM)


def test_the_words_are_the_key_stream_of_aes_256_in_counter_mode() -> None:
    """NIST SP 800-38A, appendix F.5.5: the output blocks of CTR-AES256."""
    key = bytes.fromhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
    known = RandomSource(key, counter=bytes(range(0xF0, 0x100)))
    blocks = "0bdf7df1591716335e9a8b15c860c502 5a6e699d536119065433863c8f657b94 1bc12c9c01610d5d0d8bd6a3378eca62"
    words = np.frombuffer(bytes.fromhex(blocks.replace(" ", "")), dtype=np.uint64)

    assert known.uniform(6).tolist() == [int(word >> np.uint64(11)) / 2**53 for word in words]


def test_secret_sources_differ() -> None:
    """Two equal keys of 256 bits would be an error, not bad luck; seeds of global generators do not matter."""
    drawn: list[set[float]] = []
    for _ in range(2):
        torch.manual_seed(0)
        np.random.seed(0)
        random.seed(0)
        drawn.append(set(secret_source().uniform(100).tolist()))

    assert not drawn[0] & drawn[1]


def test_reproducible_sources_agree_by_seed_and_purpose_only() -> None:
    def numbers(seed: int, purpose: str) -> list[float]:
        return reproducible_source(seed, purpose=purpose).normal((50,), std=1.0).tolist()

    mine = numbers(1, "noise of site a")
    torch.manual_seed(5)

    assert numbers(1, "noise of site a") == mine
    others = [numbers(2, "noise of site a"), numbers(1, "noise of site b"), numbers(11, "/noise of site a")]
    assert all(not set(mine) & set(other) for other in others)


def test_global_generators_are_left_alone() -> None:
    before = torch.get_rng_state(), repr(np.random.get_state())
    for kind in KINDS:
        draw(kind, 100, std=3.0)

    assert torch.equal(torch.get_rng_state(), before[0])
    assert repr(np.random.get_state()) == before[1]


def test_no_number_comes_twice() -> None:
    drawn = source()
    numbers = torch.cat([drawn.normal((40_000,), std=1.0) for _ in range(3)])

    assert len(set(numbers.tolist())) == 120_000


def test_a_forked_copy_gives_no_numbers() -> None:
    """It would give the very noise that its parent adds as well."""
    drawn = secret_source()
    child = os.fork()
    if not child:
        try:
            drawn.uniform(1)
        except PrivacyError:
            os._exit(7)
        os._exit(0)

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert len(drawn.uniform(1)) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_have_the_promised_scale(kind: NoiseKind) -> None:
    """One key in a million fails; a standard deviation 5 % off either way is rejected."""
    std = 0.91 if kind != "discrete" else 1.3 * 2**20
    numbers = draw(kind, 40_000, std=std)

    assert variance_is_plausible(numbers, std)
    assert not variance_is_plausible(numbers * 1.05, std)
    assert not variance_is_plausible(numbers / 1.05, std)


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_are_normal(kind: NoiseKind) -> None:
    """Kolmogorov and Smirnov; one key in a million fails. A shift or a scale 5 % off is rejected."""
    std = 0.91 if kind != "discrete" else 1.3 * 2**20
    numbers = draw(kind, 300_000, std=std)

    assert looks_normal(numbers, std)
    assert not looks_normal(numbers * 1.05, std)
    assert not looks_normal(numbers + 0.05 * std, std)


@pytest.mark.parametrize("kind", KINDS)
def test_the_tail_is_as_heavy_as_it_should_be(kind: NoiseKind) -> None:
    """How many of four million pass 4 and 5 deviations; one key in 500,000 fails. Tails 5 % thinner are rejected."""
    num, std = 4_000_000 if kind != "discrete" else 1_000_000, 2.0**20
    sizes = np.abs(draw(kind, num, std=std)) / std

    def is_plausible(beyond: float, values: Numbers) -> bool:
        found = int((values > beyond).sum())
        return bool(stats.binomtest(found, num, 2 * stats.norm.sf(beyond)).pvalue > FALSE_ALARM)

    assert is_plausible(4.0, sizes)
    assert is_plausible(5.0, sizes)
    assert not is_plausible(4.0, sizes / 1.1)


@pytest.mark.parametrize("cleared_bits", [16, 40])
@pytest.mark.parametrize("kind", CONTINUOUS)
def test_the_far_tail_is_as_heavy_as_it_should_be(kind: NoiseKind, cleared_bits: int) -> None:
    """With the first 16 or 40 bits of each word zero only draws beyond 4.7 or 7.4 deviations are left, spread as a
    Gaussian's are. One key in a million fails; a uniform number of 24 or 32 bits would have nothing there."""
    numbers = FixedBytes(cleared_bits=cleared_bits).normal((32_768,), std=1.0, kind=kind).double().numpy()
    squares = numbers[:16_384] ** 2 + numbers[16_384:] ** 2

    assert squares.min() > 2 * cleared_bits * math.log(2) - 1e-4
    assert looks_uniform(np.exp(-squares / 2) * 2.0**cleared_bits)
    assert not looks_uniform(np.exp(-squares / 2 * 1.05) * 2.0**cleared_bits)


@pytest.mark.parametrize("kind", CONTINUOUS)
def test_both_ends_of_the_words_give_finite_numbers(kind: NoiseKind) -> None:
    """The largest number there can be, and words of ones, whose radius is zero."""
    assert FixedBytes(byte=0).normal((2,), std=2.0, kind=kind).tolist() == [pytest.approx(2 * 9.3453, rel=1e-4), 0.0]
    assert FixedBytes(byte=255).normal((2,), std=2.0, kind=kind).abs().max() < 1e-3


@pytest.mark.parametrize(("kind", "error"), [("float64", 1e-14), ("float32", 2e-6)])
def test_numbers_are_the_sides_of_their_lengths_and_angles(kind: NoiseKind, error: float) -> None:
    """Against Python's own logarithm, cosine and sine of the words, one by one, where both are known; eight angles
    are multiples of a quarter turn or next to one."""
    drawn, num, quarter = RandomSource(bytes(32)), 10_000, 1 << 62
    stream = bytearray(drawn._words(2 * num).tobytes()[: (16 if kind == "float64" else 12) * num])
    bits = 64 if kind == "float64" else 32
    sides = (0, 1, quarter, quarter + 1, 2 * quarter - 1, 2 * quarter, 3 * quarter - 1, 4 * quarter - 1)
    angles = np.frombuffer(stream, dtype=f"uint{bits}", offset=8 * num)
    angles[:8] = np.array(sides, dtype=np.uint64) >> np.uint64(64 - bits)

    class Planted(RandomSource):
        def _draw(self, memory: memoryview, num_bytes: int) -> None:
            memory[:num_bytes] = stream

    made = Planted(bytes(32)).normal((2 * num,), std=1.0, kind=kind).double().numpy()
    lengths = [math.sqrt(-2 * math.log(((int(word) >> 1) + 1) / 2**63)) for word in np.frombuffer(stream, "u8", num)]
    turns = [2 * math.pi * (int(word) - (int(word) >> (bits - 1) << bits)) / 2**bits for word in angles]
    cosines = np.array([length * math.cos(turn) for length, turn in zip(lengths, turns, strict=True)])
    sines = np.array([length * math.sin(turn) for length, turn in zip(lengths, turns, strict=True)])

    np.testing.assert_allclose(made, np.concatenate([cosines, sines]), rtol=0, atol=error)


@pytest.mark.parametrize("kind", CONTINUOUS)
def test_directions_are_uniform(kind: NoiseKind) -> None:
    """Kolmogorov and Smirnov; one key in a million fails. An arc 1 % short, and half a circle twice, are rejected."""
    cosines, sines = draw(kind, 10 * 32_768, std=1.0).reshape(10, 2, 16_384).swapaxes(0, 1)
    turns = (np.arctan2(sines, cosines) / (2 * math.pi) + 0.5).reshape(-1)

    assert looks_uniform(turns)
    assert not looks_uniform(turns * 0.99)
    assert not looks_uniform(np.arctan2(sines, np.abs(cosines)).reshape(-1) / (2 * math.pi) + 0.5)


@pytest.mark.parametrize("kind", CONTINUOUS)
def test_the_two_numbers_of_a_pair_are_unrelated(kind: NoiseKind) -> None:
    """Neither they nor their squares, nor neighbours; six keys in a million fail. A correlation of 2 % is rejected."""
    first, second = draw(kind, 800_000, std=1.0).reshape(-1, 2, 400).swapaxes(0, 1).reshape(2, -1)
    # a piece of 32,768 numbers has the cosines in its first half and the sines in its second
    pieces = draw(kind, 20 * 32_768, std=1.0).reshape(20, 2, 16_384)
    cosines, sines = pieces[:, 0].reshape(-1), pieces[:, 1].reshape(-1)
    bound = -stats.norm.ppf(FALSE_ALARM / 2) / math.sqrt(len(cosines))

    def correlation(left: Numbers, right: Numbers) -> float:
        return abs(float(np.corrcoef(left, right)[0, 1]))

    assert correlation(cosines, sines) < bound
    assert correlation(cosines**2, sines**2) < bound
    assert correlation(cosines[:-1], cosines[1:]) < bound
    assert correlation(first, second) < bound
    assert correlation(cosines, sines + 0.02 * cosines) > bound


def test_uniform_numbers_are_uniform_and_below_one() -> None:
    """One key in a million fails; a range 1 % short is rejected."""
    numbers = source().uniform(300_000).numpy()

    assert looks_uniform(numbers)
    assert not looks_uniform(numbers * 0.99)
    assert FixedBytes(byte=255).uniform(1).item() == 1 - 2**-53
    assert FixedBytes(byte=0).uniform(1).item() == 0.0


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 5), (32_769,), (2, 40_001)])
def test_every_shape_is_filled(shape: tuple[int, ...]) -> None:
    strict, fast = source().normal(shape, std=1.0), source().normal(shape, std=1.0, kind="float32")
    whole = source().discrete_normal(shape, std=1e6)

    assert strict.shape == fast.shape == whole.shape == shape
    assert (strict.dtype, fast.dtype, whole.dtype) == (torch.float64, torch.float32, torch.int64)
    assert all(bool((numbers != 0).all()) for numbers in (strict, fast, whole))


@pytest.mark.parametrize("kind", CONTINUOUS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("width", [0, 1, 7, 32_769])
def test_a_tensor_is_filled_with_the_numbers_that_would_be_drawn_anew(
    kind: NoiseKind, dtype: torch.dtype, width: int
) -> None:
    drawn, filled = source(), source()
    rows = torch.zeros(3, width, dtype=dtype)
    for row in (0, 2):
        filled.normal_into(rows[row], std=1.3, kind=kind)

    assert not rows[1].any()
    for row in (0, 2):
        assert torch.equal(rows[row], drawn.normal((width,), std=1.3, kind=kind).to(dtype))


@pytest.mark.parametrize("kind", CONTINUOUS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("rows", "width"), [(0, 5), (3, 0), (5, 7), (7, 10_001), (2, 40_000)])
def test_rows_are_filled_each_from_its_source_and_with_its_scale(
    kind: NoiseKind, dtype: torch.dtype, rows: int, width: int
) -> None:
    stds = [0.1 + row for row in range(rows)]
    both = torch.zeros(rows, width + 2, dtype=dtype)
    sources, alone = ([source(f"row {row}") for row in range(rows)] for _ in range(2))
    for _ in range(2):  # the second time the streams have gone on
        normal_rows(sources, both[:, :width], stds=stds, kind=kind)

        for each, std, row in zip(alone, stds, both, strict=True):
            assert torch.equal(row[:width], each.normal((width,), std=std, kind=kind).to(dtype))
    assert not both[:, width:].any()


def test_rows_without_a_possible_scale_are_refused() -> None:
    rows = torch.zeros(2, 3)
    with pytest.raises(PrivacyError, match="allowed"):
        normal_rows([source(), source()], rows, stds=[1.0, -1.0])
    with pytest.raises(PrivacyError, match="discrete_normal"):
        normal_rows([source(), source()], rows, stds=[1.0, 1.0], kind="discrete")

    assert not rows.any()


@pytest.mark.parametrize(("num_sources", "num_stds"), [(1, 2), (3, 2), (2, 1), (2, 3)])
def test_rows_need_a_source_and_a_scale_each(num_sources: int, num_stds: int) -> None:
    """A row left without a source would go out without noise."""
    with pytest.raises(PrivacyError, match="one of each a row"):
        normal_rows([source()] * num_sources, torch.zeros(2, 3), stds=[1.0] * num_stds)


def test_no_noise_is_exactly_zero() -> None:
    assert not source().normal((5,), std=0.0).any()
    assert not source().discrete_normal((5,), std=0.0).any()


@pytest.mark.parametrize("std", [-1.0, math.nan, math.inf])
def test_an_impossible_scale_is_refused(std: float) -> None:
    with pytest.raises(PrivacyError, match="allowed"):
        source().normal((1,), std=std)
    with pytest.raises(PrivacyError, match="allowed"):
        source().discrete_normal((1,), std=std)


def test_whole_numbers_are_drawn_by_their_own_method() -> None:
    with pytest.raises(PrivacyError, match="discrete_normal"):
        source().normal((1,), std=1.0, kind="discrete")


def test_a_seed_for_others_fits_where_seeds_go() -> None:
    seeds = [source(purpose).seed() for purpose in "abcdef"]

    assert len(set(seeds)) == 6
    assert all(0 <= seed < 2**62 for seed in seeds)


@pytest.mark.parametrize("kind", CONTINUOUS)
def test_no_length_is_lost_to_rounding(kind: NoiseKind, monkeypatch: pytest.MonkeyPatch) -> None:
    """A uniform number just below 1, which float32 would round to 1, gives a short length and not none."""
    drawn = RandomSource(bytes(32))

    def draw_words_near_the_largest(memory: memoryview, num_bytes: int) -> None:
        memory[:num_bytes] = bytes([0x5A]) * num_bytes  # angles; the five words in front are for lengths
        memory[:40] = np.full(5, 2**64 - 2**24, dtype=np.uint64).tobytes()

    monkeypatch.setattr(drawn, "_draw", draw_words_near_the_largest)

    numbers = drawn.normal((10,), std=1.0, kind=kind).double()

    lengths = (numbers[:5].square() + numbers[5:].square()).sqrt()
    torch.testing.assert_close(lengths, torch.full((5,), (2 * 2.0**-40) ** 0.5, dtype=torch.float64), rtol=1e-3, atol=0)
