"""Filters, windows, spectra and wavelets of signals: each does to a made-up recording what its name says."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pytest
import torch

from shared.errors import ConfigError, ModelError
from shared.preprocess.signal import (
    SignalOptions,
    SignalPreprocessor,
    StatisticsOptions,
    StatisticsPreprocessor,
    reference_windows,
)
from shared.preprocess.signal_filter import FilterOptions, filtered
from shared.preprocess.signal_transform import most_levels, spectrum, wavelet_energies
from shared.settings import parse_settings

TIME = np.arange(512)
SLOW, FAST = np.sin(2 * np.pi * 0.01 * TIME), np.sin(2 * np.pi * 0.2 * TIME)
MIDDLE = slice(100, -100)


def passed(values: npt.NDArray[np.float64], **table: object) -> npt.NDArray[np.float64]:
    options = parse_settings(FilterOptions, table, place="here")
    done: npt.NDArray[np.float64] = filtered(values[None], options=options)[0]
    return done


def test_a_high_pass_removes_offset_and_drift_and_keeps_what_is_fast() -> None:
    np.testing.assert_allclose(passed(5 + SLOW + FAST, high_pass=0.05)[MIDDLE], FAST[MIDDLE], atol=2e-3)
    np.testing.assert_allclose(passed(np.full(512, 9.8), high_pass=0.05), 0, atol=1e-9)


def test_a_low_pass_keeps_what_is_slow() -> None:
    np.testing.assert_allclose(passed(5 + SLOW + FAST, low_pass=0.05)[MIDDLE], (5 + SLOW)[MIDDLE], atol=5e-3)


def test_both_edges_together_keep_what_lies_between() -> None:
    between = np.sin(2 * np.pi * 0.05 * TIME)
    got = passed(3 + 0.5 * SLOW + between + FAST, high_pass=0.025, low_pass=0.1)
    np.testing.assert_allclose(got[MIDDLE], between[MIDDLE], atol=2e-2)


def test_half_of_the_amplitude_is_left_at_an_edge_and_nothing_is_delayed() -> None:
    tone = np.sin(2 * np.pi * 0.1 * TIME)
    for table in ({"high_pass": 0.1}, {"low_pass": 0.1}, {"high_pass": 5.0, "rate_hz": 50.0}):
        np.testing.assert_allclose(passed(tone, **table)[MIDDLE], 0.5 * tone[MIDDLE], atol=2e-3)


def test_edges_are_checked_against_the_rate_and_each_other() -> None:
    with pytest.raises(ConfigError, match=r"low_pass is 0.5; allowed: below 0.5, half of rate_hz"):
        parse_settings(FilterOptions, {"low_pass": 0.5}, place="here")
    with pytest.raises(ConfigError, match=r"high_pass is 9.0; allowed with low_pass 8.0: less than that"):
        parse_settings(FilterOptions, {"low_pass": 8.0, "high_pass": 9.0, "rate_hz": 50.0}, place="here")


@pytest.mark.parametrize(("part", "first"), [("start", 0), ("centre", 3), ("end", 6)])
def test_the_part_says_which_steps_of_a_longer_recording_count(part: str, first: int) -> None:
    options = parse_settings(SignalOptions, {"length": 4, "part": part}, place="here")
    door = SignalPreprocessor(options, channels=1)
    ramp = np.arange(10, dtype=np.float32)[:, None]
    assert door.read(ramp)[0].tolist() == [first, first + 1, first + 2, first + 3]
    assert door.read(ramp[:3])[0].tolist() == [0, 1, 2, 0]


@pytest.mark.parametrize("window", ["hann", "hamming", "blackman"])
def test_a_window_fades_to_the_mean_and_gathers_a_tone_between_two_frequencies(window: str) -> None:
    tone = (7 + np.sin(2 * np.pi * 10.5 / 128 * np.arange(128))).astype(np.float32)[:, None]
    doors = [
        SignalPreprocessor(parse_settings(SignalOptions, {"window": name}, place="here"), channels=1)
        for name in ("none", window)
    ]
    plain, faded = (door.read(tone) for door in doors)

    assert faded[0, [0, -1]].tolist() == pytest.approx([7, 7], abs=0.1)
    leaks = [torch.fft.rfft(values[0] - values[0].mean()).abs()[30] for values in (plain, faded)]
    assert leaks[1] < 0.25 * leaks[0]


def test_the_spectrum_stands_up_at_the_tones_frequency() -> None:
    tone = torch.from_numpy(0.5 + np.sin(2 * np.pi * 6 / 64 * np.arange(64))).float()[None, None]
    numbers = spectrum(torch.cat([tone, 2 * tone], dim=1), highest=0.5)[0].reshape(2, 33)

    assert numbers[:, 0].tolist() == pytest.approx([0.5, 1.0], abs=1e-5)
    assert numbers[:, 1:].argmax(dim=1).tolist() == [5, 5]
    assert numbers[0, 6].item() == pytest.approx(np.log(64**0.5 / 2), abs=1e-3)  # N / 2 over the root of N
    assert (numbers[1, 6] - numbers[0, 6]).item() == pytest.approx(np.log(2), abs=1e-3)
    assert spectrum(tone, highest=0.25).shape == (1, 17)


@pytest.mark.parametrize("wavelet", ["haar", "db2", "db4", "sym4", "coif1"])
def test_wavelet_energies_add_up_and_order_the_scales(wavelet: str) -> None:
    noise = torch.from_numpy(np.random.default_rng(0).normal(3, 1, (4, 2, 128))).float()
    numbers = wavelet_energies(noise, wavelet=wavelet, levels=3).reshape(4, 2, 5)  # type: ignore[arg-type]

    torch.testing.assert_close(numbers[:, :, 0], noise.mean(dim=2))
    energy = (numbers[:, :, 1:].exp() - 1e-3).square().sum(dim=2)
    torch.testing.assert_close(energy, noise.var(dim=2, correction=0), atol=1e-3, rtol=1e-3)
    for cycles, scale in ((2, 0), (52, 3)):
        tone = torch.from_numpy(np.sin(2 * np.pi * cycles / 128 * np.arange(128))).float()[None, None]
        assert int(wavelet_energies(tone, wavelet=wavelet, levels=3)[0, 1:].argmax()) == scale  # type: ignore[arg-type]


def test_no_more_levels_than_the_window_allows() -> None:
    assert (most_levels(128, wavelet="db2"), most_levels(12, wavelet="db4"), most_levels(4, wavelet="db4")) == (5, 0, 0)
    with pytest.raises(ModelError, match=r"levels is 4; allowed for 12 time steps and db2: at most 2; take"):
        StatisticsPreprocessor(StatisticsOptions(features="wavelet", length=12), channels=1)
    StatisticsPreprocessor(StatisticsOptions(features="wavelet", length=12, levels=2), channels=1)


@pytest.mark.parametrize("features", ["spectrum", "wavelet", "all"])
def test_features_have_the_promised_width_and_a_public_scale(features: str) -> None:
    options = parse_settings(StatisticsOptions, {"features": features, "length": 50, "levels": 3}, place="here")
    door = StatisticsPreprocessor(options, channels=2)
    made_up = door.finish(reference_windows(channels=2, length=50))

    assert made_up.shape == (512, *door.shape)
    assert made_up.median(dim=0).values.abs().max() < 0.06
    assert made_up.abs().max() <= 4
    parts = {"spectrum": 2 * 26, "wavelet": 2 * 5, "statistics": 2 * 15 + 1}
    assert door.shape == ((sum(parts.values()) if features == "all" else parts[features]),)


@pytest.mark.parametrize(
    "table",
    [
        {"high_pass": 0.05}, {"low_pass": 0.2}, {"high_pass": 0.05, "low_pass": 0.2, "filter_order": 8},
        {"window": "hann"}, {"part": "centre"}, {"features": "spectrum"}, {"features": "wavelet", "levels": 2},
        {"features": "all", "levels": 2, "high_pass": 0.01, "window": "blackman", "znorm": True},
    ],
)  # fmt: skip
def test_every_option_has_its_digest_and_no_recording_breaks_it(table: Mapping[str, object]) -> None:
    plain = StatisticsPreprocessor(StatisticsOptions(length=32), channels=2)
    door = StatisticsPreprocessor(parse_settings(StatisticsOptions, {"length": 32, **table}, place="here"), channels=2)
    assert door.digest != plain.digest

    draw = np.random.default_rng(0)
    recordings = [np.zeros((64, 2)), np.full((64, 2), -1e4), np.full((64, 2), 3e38) * draw.choice([-1, 1], (64, 2))]
    recordings += [draw.normal(size=(steps, 2)) for steps in (1, 2, 3, 31, 64)]
    for recording in recordings:
        values = recording.astype(np.float32)
        window = door.read(values)
        assert window.shape == (2, 32)
        torch.testing.assert_close(window, door.read(values.copy()), atol=0, rtol=0, equal_nan=True)
        if np.abs(values).max() < 1e30:
            assert window.isfinite().all()
            assert door.finish(window[None]).isfinite().all()
    assert door.finish(torch.zeros(0, 2, 32)).shape == (0, *door.shape)
