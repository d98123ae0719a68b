"""Sounds: frames of frequencies, from any rate and length, and a torchaudio that works beside any torch."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import Tensor

from shared.errors import ConfigError
from shared.media import Waveform
from shared.preprocess.audio import AudioOptions, AudioPreprocessor, AudioStatisticsPreprocessor, MfccOptions, resampled
from shared.settings import parse_settings


def tone(frequency_hz: float, *, sample_rate_hz: int = 16_000, seconds: float = 0.5, channels: int = 1) -> Waveform:
    time = np.arange(round(seconds * sample_rate_hz)) / sample_rate_hz
    wave = 0.5 * np.sin(2 * np.pi * frequency_hz * time)
    return Waveform(samples=np.tile(wave, (channels, 1)).astype(np.float32), sample_rate_hz=sample_rate_hz)


@pytest.mark.parametrize("sample_rate_hz", [8_000, 11_025, 16_000, 44_100, 44_099, 192_000])
@pytest.mark.parametrize("seconds", [0.001, 0.5, 3.0])
def test_every_recording_has_the_promised_shape(sample_rate_hz: int, seconds: float) -> None:
    for options in (AudioOptions(seconds=0.5, bands=16), MfccOptions(seconds=0.5, bands=16, coefficients=6)):
        door = AudioPreprocessor(options)
        frames = door.read(tone(440, sample_rate_hz=sample_rate_hz, seconds=seconds, channels=2))
        assert frames.shape == door.shape == (16 if options.features == "log-mel" else 6, 26)
        assert frames.isfinite().all()


def test_silence_and_full_scale_stay_within_a_few_units() -> None:
    door = AudioPreprocessor(AudioOptions(seconds=0.5))
    noise = np.random.default_rng(0).uniform(-1, 1, (1, 8000)).astype(np.float32)
    for samples in (np.zeros((1, 8000), np.float32), noise):
        assert door.read(Waveform(samples=samples, sample_rate_hz=16_000)).abs().max() < 4


def loudest(frames: Tensor) -> int:
    return int(frames.mean(dim=1).argmax())


def test_a_tone_stands_in_its_band_whatever_the_rate_of_the_file() -> None:
    door = AudioPreprocessor(AudioOptions(seconds=0.5))
    bands = [loudest(door.read(tone(1000, sample_rate_hz=rate))) for rate in (16_000, 22_050, 44_100, 44_099)]

    assert len(set(bands)) == 1
    assert loudest(door.read(tone(300))) < bands[0] < loudest(door.read(tone(4000)))


def test_resampling_keeps_a_tone_and_its_length() -> None:
    wave = torch.from_numpy(tone(500, sample_rate_hz=44_100).samples[0])
    expected = torch.from_numpy(tone(500).samples[0])
    got = resampled(wave, sample_rate_hz=44_100, to_hz=16_000)

    assert len(got) == len(expected)
    torch.testing.assert_close(got[200:-200], expected[200:-200], atol=2e-3, rtol=0)


def test_channels_are_mixed_and_the_rest_is_cut() -> None:
    door = AudioPreprocessor(AudioOptions(seconds=0.25))
    long = tone(700, channels=2)
    torch.testing.assert_close(door.read(long)[:, :-2], door.read(tone(700, seconds=0.25))[:, :-2])


def test_equal_level_takes_the_loudness_away_and_only_if_asked() -> None:
    loud = tone(700)
    quiet = Waveform(samples=loud.samples / 10, sample_rate_hz=16_000)
    equal = AudioPreprocessor(AudioOptions(seconds=0.5, level="rms"))
    as_it_came = AudioPreprocessor(AudioOptions(seconds=0.5))

    torch.testing.assert_close(equal.read(loud), equal.read(quiet), atol=0.05, rtol=0)
    assert (as_it_came.read(loud) - as_it_came.read(quiet)).abs().max() > 0.5


def test_coefficients_are_the_cosine_transform_of_the_bands() -> None:
    wave = tone(700)
    bands = AudioPreprocessor(AudioOptions(seconds=0.5, bands=8)).read(wave).double()
    all_of_them = AudioPreprocessor(MfccOptions(seconds=0.5, bands=8, coefficients=8)).read(wave).double()
    orthonormal = all_of_them * torch.tensor([8**0.5, *[1.0] * 7])[:, None]

    torch.testing.assert_close(orthonormal.norm(dim=0), bands.norm(dim=0), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(all_of_them[0], bands.mean(dim=0), atol=1e-4, rtol=1e-4)


def test_statistics_describe_each_band_and_take_no_samples_too() -> None:
    door = AudioStatisticsPreprocessor(AudioOptions(seconds=0.5, bands=8))
    frames = door.read(tone(700))[None]

    numbers = door.finish(frames)

    assert numbers.shape == (1, *door.shape) == (1, 24)
    torch.testing.assert_close(numbers[0, :8], frames[0].mean(dim=1))
    torch.testing.assert_close(numbers[0, 8:16], frames[0].std(dim=1, correction=0))
    assert door.finish(frames[:0]).shape == (0, 24)


@pytest.mark.parametrize("sample_rate_hz", [4_000, 48_000])
def test_no_band_is_left_without_a_frequency(sample_rate_hz: int) -> None:
    """torchaudio warns of an empty band, and warnings are errors here."""
    door = AudioPreprocessor(AudioOptions(seconds=0.1, bands=256, sample_rate_hz=sample_rate_hz, window_ms=2.0))
    noise = np.random.default_rng(0).normal(0, 0.1, (1, 4800)).astype(np.float32)
    assert door.read(Waveform(samples=noise, sample_rate_hz=sample_rate_hz)).mean(dim=1).min() > -1.9


def test_a_hop_longer_than_the_recording_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"hop_ms is 60.0; allowed: at most the 0.05 seconds"):
        parse_settings(AudioOptions, {"seconds": 0.05, "hop_ms": 60}, place="here")
    shortest = AudioStatisticsPreprocessor(AudioOptions(seconds=0.05, hop_ms=50.0))
    assert shortest.finish(shortest.read(tone(700))[None]).isfinite().all()


def test_transformers_and_torchaudio_work_in_one_new_process() -> None:
    """Beside a torch without CUDA, the published torchaudio fails to import, and transformers with it."""
    program = """
import torch
from shared.preprocess.audio import load_torchaudio
torchaudio = load_torchaudio()
from transformers import BertConfig, BertModel
config = BertConfig(vocab_size=9, hidden_size=4, num_hidden_layers=1, num_attention_heads=1, intermediate_size=4)
assert BertModel(config)(input_ids=torch.ones(1, 3, dtype=torch.long)).last_hidden_state.shape == (1, 3, 4)
wave = torch.randn(4000)
assert torchaudio.transforms.MelSpectrogram(n_mels=8)(wave).shape[0] == 8
assert torchaudio.transforms.MFCC(n_mfcc=4, melkwargs={"n_mels": 8})(wave).shape[0] == 4
assert torchaudio.functional.resample(wave, 8000, 4000).shape == (2000,)
assert load_torchaudio() is torchaudio
print("all work")
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "all work", done.stderr
