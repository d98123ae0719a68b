"""Signals: windows of equal length, and numbers that describe them on a public scale."""

import numpy as np
import pytest
import torch

from shared.preprocess.signal import (
    SignalOptions,
    SignalPreprocessor,
    StatisticsOptions,
    StatisticsPreprocessor,
    num_statistics,
    reference_windows,
    statistics,
)


def wave(cycles: float, *, length: int = 64, size: float = 1.0, offset: float = 0.0) -> torch.Tensor:
    return offset + size * torch.sin(2 * torch.pi * cycles * torch.arange(length) / length)[None, None]


@pytest.mark.parametrize("steps", [1, 5, 8, 100])
def test_every_recording_becomes_a_window_of_the_promised_length(steps: int) -> None:
    door = SignalPreprocessor(SignalOptions(length=8, scale=2.0), channels=3)
    values = np.arange(steps * 3, dtype=np.float32).reshape(steps, 3)

    window = door.read(values)

    kept = min(steps, 8)
    assert window.shape == door.shape == (3, 8)
    torch.testing.assert_close(window[:, :kept], torch.from_numpy(values[:kept].T / 2))
    assert window[:, kept:].count_nonzero() == 0


def test_normalisation_by_window_is_over_the_steps_that_are_there() -> None:
    door = SignalPreprocessor(SignalOptions(length=8, znorm=True), channels=2)
    window = door.read(np.array([[1.0, 5.0], [3.0, 5.0], [5.0, 5.0], [7.0, 5.0]], np.float32))

    torch.testing.assert_close(window[0, :4].mean(), torch.tensor(0.0))
    torch.testing.assert_close(window[0, :4].std(correction=0), torch.tensor(1.0))
    assert window[1].count_nonzero() == 0
    assert window[:, 4:].count_nonzero() == 0


def test_outliers_are_clipped_if_asked() -> None:
    door = SignalPreprocessor(SignalOptions(length=4, clip=3.0), channels=1)
    assert door.read(np.array([[9.0], [-9.0], [1.0]], np.float32)).tolist() == [[3.0, -3.0, 1.0, 0.0]]


def test_statistics_say_what_they_promise() -> None:
    numbers = statistics(wave(4, size=2.0, offset=0.5), bands=4)[0]
    assert len(numbers) == num_statistics(1, bands=4) == 11
    mean, deviation, _, lowest, median, largest, _ = numbers[:7].tolist()

    assert mean == pytest.approx(0.5, abs=1e-5)
    assert deviation == pytest.approx(np.log(2 / 2**0.5), abs=1e-2)
    assert (lowest, largest) == pytest.approx((-1.5, 2.5), abs=1e-4)
    assert median == pytest.approx(0.5, abs=0.2)


@pytest.mark.parametrize(("cycles", "band"), [(2, 0), (12, 1), (20, 2), (30, 3)])
def test_a_rhythm_stands_in_its_band(cycles: int, band: int) -> None:
    assert int(statistics(wave(cycles), bands=4)[0, 7:11].argmax()) == band


def test_channels_that_move_together_are_told_from_those_against_each_other() -> None:
    one = wave(4)
    together, against = torch.cat([one, one], dim=1), torch.cat([one, -one], dim=1)
    assert statistics(together, bands=2)[0, -1] == pytest.approx(1.0, abs=1e-3)
    assert statistics(against, bands=2)[0, -1] == pytest.approx(-1.0, abs=1e-3)


@pytest.mark.parametrize(("length", "bands"), [(4, 16), (5, 3), (128, 8)])
def test_statistics_are_finite_for_still_short_and_huge_signals(length: int, bands: int) -> None:
    door = StatisticsPreprocessor(StatisticsOptions(length=length, bands=bands), channels=2)
    windows = torch.stack([torch.zeros(2, length), torch.ones(2, length), torch.full((2, length), 1e6)])

    numbers = door.finish(windows)

    assert numbers.shape == (3, *door.shape)
    assert numbers.isfinite().all()
    assert numbers.abs().max() <= 4
    assert door.finish(windows[:0]).shape == (0, *door.shape)


def test_the_ruler_of_generated_signals_is_always_the_same_and_brings_numbers_to_unit_scale() -> None:
    first, again = (reference_windows(channels=3, length=128) for _ in range(2))
    assert torch.equal(first, again)
    door = StatisticsPreprocessor(StatisticsOptions(length=128), channels=3)
    numbers = door.finish(first)

    assert numbers.mean(dim=0).abs().max() < 1
    assert 0.3 < numbers.std(dim=0).median() < 1.5
    assert door.digest == StatisticsPreprocessor(StatisticsOptions(length=128), channels=3).digest


def test_constants_of_the_run_take_the_place_of_the_ruler() -> None:
    plain = StatisticsOptions(length=16, bands=2, center=(0.0,), spread=(2.0,), clip_statistics=0.0)
    door = StatisticsPreprocessor(plain, channels=1)
    window = wave(3, length=16)[0].T.numpy()

    values = door.read(window)[None]

    torch.testing.assert_close(door.finish(values), statistics(values, bands=2) / 2)
    assert door.digest != StatisticsPreprocessor(StatisticsOptions(length=16, bands=2), channels=1).digest


def test_an_array_of_another_form_is_refused() -> None:
    with pytest.raises(TypeError, match=r"an array of \[time, 3\]"):
        SignalPreprocessor(SignalOptions(), channels=3).read(np.zeros((5, 2), np.float32))
