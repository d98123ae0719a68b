"""Noise, silence, loudness and slopes of recordings: each step does to a made-up sound what its name says."""

from collections.abc import Mapping
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from shared.errors import ConfigError
from shared.media import Waveform
from shared.preprocess.audio import (
    AudioOptions,
    AudioPreprocessor,
    AudioStatisticsPreprocessor,
    MfccOptions,
    load_torchaudio,
    with_deltas,
)
from shared.preprocess.audio_clean import AudioCleaningOptions, denoised, integrated_loudness, levelled, trimmed
from shared.settings import parse_settings

RATE = 8_000


def noise(seconds: float, *, size: float = 0.01) -> Tensor:
    return torch.randn(round(seconds * RATE), generator=torch.Generator().manual_seed(0)) * size


def tone(seconds: float, *, frequency_hz: float = 997.0, size: float = 0.5, rate: int = RATE) -> Tensor:
    return size * torch.sin(2 * torch.pi * frequency_hz * torch.arange(round(seconds * rate)) / rate)


def quiet(seconds: float) -> Tensor:
    return torch.zeros(round(seconds * RATE))


def options(**table: object) -> AudioCleaningOptions:
    return parse_settings(AudioCleaningOptions, table, place="here")


def decibels(samples: Tensor) -> float:
    return float(10 * (samples.square().mean() + 1e-20).log10())


@pytest.mark.parametrize("how", ["stationary", "adaptive"])
def test_a_spectral_gate_lowers_the_noise_and_leaves_a_sound_that_comes_and_goes(how: str) -> None:
    clean = torch.cat([quiet(0.6), noise(0.3, size=0.4), quiet(1.6)])
    noisy = clean + noise(2.5).flip(0)
    done = denoised(noisy, options=options(denoise=how), sample_rate_hz=RATE)

    assert done.shape == noisy.shape
    before = slice(0, round(0.4 * RATE))
    assert decibels(done[before]) < decibels(noisy[before]) - 10
    assert decibels(done - clean) < decibels(clean) - 8
    half = denoised(noisy, options=options(denoise=how, denoise_strength=0.5), sample_rate_hz=RATE)
    assert decibels(done[before]) < decibels(half[before]) < decibels(noisy[before])


def test_the_gate_does_not_look_at_the_level() -> None:
    noisy = torch.cat([noise(0.3), tone(0.2), noise(0.3)])
    loud, soft = (
        denoised(noisy * size, options=options(denoise="stationary"), sample_rate_hz=RATE) for size in (1, 1e-2)
    )
    torch.testing.assert_close(loud, soft * 100, atol=1e-3, rtol=1e-2)


def test_silence_before_and_after_is_trimmed_up_to_the_margin() -> None:
    sound = torch.cat([quiet(0.5), tone(0.3), quiet(0.2), tone(0.3), quiet(0.5)]) + noise(1.8, size=1e-3)
    ends = trimmed(sound, options=options(trim="ends", trim_margin_ms=40), sample_rate_hz=RATE)
    pauses = trimmed(sound, options=options(trim="pauses", trim_margin_ms=40), sample_rate_hz=RATE)

    assert len(ends) / RATE == pytest.approx(0.8 + 2 * 0.04, abs=0.021)
    assert len(pauses) / RATE == pytest.approx(0.6 + 4 * 0.04, abs=0.041)
    assert torch.equal(ends, sound[round(0.46 * RATE) :][: len(ends)])


@pytest.mark.parametrize("trim", ["ends", "pauses"])
def test_a_sound_without_silence_stays_whole(trim: str) -> None:
    for sound in (tone(0.5), quiet(0.5), quiet(0.0), tone(0.001)):
        assert torch.equal(trimmed(sound, options=options(trim=trim), sample_rate_hz=RATE), sound)


@pytest.mark.parametrize(("below_db", "seconds"), [(40, 0.3), (60, 0.6)])
def test_the_limit_below_the_loudest_frame_is_kept_to(below_db: float, seconds: float) -> None:
    sound = torch.cat([quiet(0.3), tone(0.3, size=0.5 * 10 ** (-50 / 20)), tone(0.3), quiet(0.3)])
    trim = options(trim="ends", trim_margin_ms=0, trim_below_db=below_db)
    assert len(trimmed(sound, options=trim, sample_rate_hz=RATE)) / RATE == pytest.approx(seconds, abs=0.021)


def test_steady_noise_counts_as_silence_under_speech() -> None:
    """At 20 dB the noise lies above the limit of 40 dB below the loudest frame, and below the floor."""
    sound = torch.cat([quiet(0.5), tone(0.3), quiet(0.5)]) + noise(1.3, size=0.035)
    assert len(trimmed(sound, options=options(trim="ends", trim_margin_ms=0), sample_rate_hz=RATE)) / RATE < 0.35


@pytest.mark.parametrize("rate", [16_000, 44_100, 48_000])
def test_a_full_scale_tone_has_the_loudness_of_the_standard(rate: int) -> None:
    """ITU-R BS.1770-4, annex 1: a sine of 997 Hz at 0 dB of full scale in one channel is -3.01 LKFS, to a tenth."""
    assert integrated_loudness(tone(1, size=1.0, rate=rate), sample_rate_hz=rate) == pytest.approx(-3.01, abs=0.1)


def test_loudness_is_torchaudios() -> None:
    sound = torch.cat([tone(0.5, frequency_hz=200), quiet(0.3), tone(0.4, frequency_hz=1900, size=0.05)]) + noise(1.2)
    theirs = float(load_torchaudio().functional.loudness(sound[None], RATE))
    assert integrated_loudness(sound, sample_rate_hz=RATE) == pytest.approx(theirs, abs=0.02)


@pytest.mark.parametrize("size", [0.9, 0.01])
def test_every_level_makes_loud_and_soft_equal(size: float) -> None:
    sound = tone(1, size=size)
    levels: dict[Literal["rms", "peak", "lufs"], float] = {"rms": 0.1 * 2**0.5, "peak": 0.9, "lufs": 10 ** (-9.0 / 20)}
    for level, largest in levels.items():
        done = levelled(sound, options=options(level=level, loudness_lufs=-12.0), sample_rate_hz=RATE)
        assert float(done.abs().max()) == pytest.approx(largest, rel=0.03)


def test_slopes_are_finite_differences() -> None:
    frames = torch.from_numpy(np.random.default_rng(0).normal(size=(3, 20))).float()
    rows = with_deltas(frames, times=2, over=3)

    assert rows.shape == (9, 20)
    assert torch.equal(rows[:3], frames)
    torch.testing.assert_close(rows[3:6, 1:-1], (frames[:, 2:] - frames[:, :-2]) / 2)
    torch.testing.assert_close(rows[6:, 1:-1], (rows[3:6, 2:] - rows[3:6, :-2]) / 2)
    torch.testing.assert_close(rows[3:6, 0], (frames[:, 1] - frames[:, 0]) / 2)
    line = 3.0 * torch.arange(30.0)[None]
    torch.testing.assert_close(
        with_deltas(line, times=2, over=9)[:, 10], torch.tensor([30.0, 3.0, 0.0]), atol=1e-5, rtol=0
    )


def test_slopes_are_further_rows_of_bands_coefficients_and_statistics() -> None:
    sound = Waveform(samples=tone(0.3)[None].numpy(), sample_rate_hz=RATE)
    table = {"seconds": 0.3, "bands": 8, "coefficients": 4}
    for kind, rows in ((AudioOptions, 8), (MfccOptions, 4)):
        plain, steep = (AudioPreprocessor(parse_settings(kind, {**table, "deltas": n}, place="here")) for n in (0, 2))
        assert steep.shape == (3 * rows, plain.shape[1])
        assert torch.equal(steep.read(sound)[:rows], plain.read(sound))
    numbers = AudioStatisticsPreprocessor(AudioOptions(seconds=0.3, bands=8, deltas=1))
    assert numbers.finish(numbers.read(sound)[None]).shape == (1, *numbers.shape) == (1, 48)


STEPS: list[dict[str, object]] = [
    {"denoise": "stationary"}, {"denoise": "adaptive"}, {"trim": "ends"}, {"trim": "pauses"}, {"level": "rms"},
    {"level": "peak"}, {"level": "lufs"}, {"deltas": 1}, {"features": "mfcc", "deltas": 2, "coefficients": 4},
    {"denoise": "adaptive", "trim": "pauses", "level": "lufs", "deltas": 2},
]  # fmt: skip


@pytest.mark.parametrize("table", STEPS)
def test_every_option_has_its_digest_and_no_recording_breaks_it(table: Mapping[str, object]) -> None:
    small = {"seconds": 0.2, "bands": 8, "sample_rate_hz": RATE}
    plain, door = (
        AudioPreprocessor(parse_settings(AudioOptions, {**small, **more}, place="here")) for more in ({}, table)
    )
    assert door.digest != plain.digest

    half_silent = torch.cat([quiet(0.3), tone(0.1)])
    sounds = [quiet(0.3), torch.ones(1), torch.zeros(1), tone(0.01), tone(0.5, size=1.0), tone(0.5, size=1e-12)]
    for sound in (*sounds, half_silent, torch.full((900,), -1.0), 1e6 * noise(0.3)):
        value = Waveform(samples=sound[None].numpy(), sample_rate_hz=RATE)
        frames = door.read(value)
        assert frames.shape == door.shape
        assert frames.isfinite().all()
        assert torch.equal(frames, door.read(value))


@pytest.mark.parametrize("rate", [4_000, 11_025, 48_000])
def test_the_steps_work_at_every_rate(rate: int) -> None:
    table = {
        "denoise": "stationary",
        "trim": "ends",
        "level": "lufs",
        "seconds": 0.2,
        "bands": 8,
        "sample_rate_hz": rate,
    }
    door = AudioPreprocessor(parse_settings(AudioOptions, table, place="here"))
    assert door.read(Waveform(samples=tone(0.3, rate=rate)[None].numpy(), sample_rate_hz=rate)).isfinite().all()


def test_a_slope_needs_a_middle() -> None:
    with pytest.raises(ConfigError, match="even number of frames has no middle; allowed: odd"):
        parse_settings(AudioOptions, {"deltas": 1, "delta_frames": 4}, place="here")
