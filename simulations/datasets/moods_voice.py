"""Voices of the generated moods: a mood becomes loudness, pitch, tempo and brightness of a few hummed syllables.

in        a blend of moods (weights that sum to 1) and a person's own pitch
out       WAV bytes, 8 kHz, mono, 16 bit, 0.9 s
relies on nothing but numpy; the draws come from the caller's generator
"""

import io
import wave
from collections.abc import Mapping

import numpy as np

SAMPLE_RATE_HZ = 8000
DURATION_S = 0.9
_HARMONICS = 8

# loudness, semitones above the person's own pitch, semitones of rise, syllables per second, brightness, tremble
_SOUND: dict[str, tuple[float, float, float, float, float, float]] = {
    "joy": (0.75, 5.0, 3.0, 5.0, 0.75, 0.1),
    "anger": (1.0, 2.0, -4.0, 5.5, 0.95, 0.1),
    "surprise": (0.65, 7.0, 9.0, 2.8, 0.6, 0.1),
    "fear": (0.45, 8.0, 0.0, 4.5, 0.45, 1.0),
    "sadness": (0.25, -3.0, -5.0, 1.8, 0.15, 0.3),
    "calm": (0.4, -3.0, 0.0, 2.4, 0.25, 0.0),
}


def new_pitch_hz(generator: np.random.Generator) -> float:
    """A person's own pitch, 110 to 220 Hz."""
    return float(110.0 * 2.0 ** generator.uniform(0.0, 1.0))


def speak(blend: Mapping[str, float], *, pitch_hz: float, jitter: float, generator: np.random.Generator) -> bytes:
    """A voice whose features are the blend of its moods', each moved by `jitter` times a standard normal."""
    sound = sum(weight * np.array(_SOUND[mood]) for mood, weight in blend.items())
    spread = np.array([0.25, 4.0, 4.0, 1.0, 0.25, 0.3]) * jitter
    loudness, level, rise, tempo, brightness, tremble = sound + generator.normal(0.0, spread)
    time = np.arange(round(DURATION_S * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    shake = 0.6 * max(0.0, tremble) * np.sin(2 * np.pi * 9.0 * time + generator.uniform(0.0, 6.0))
    semitones = level + rise * (time / DURATION_S - 0.5) + shake
    phase = 2 * np.pi * np.cumsum(pitch_hz * 2.0 ** (semitones / 12)) / SAMPLE_RATE_HZ
    falloff = 2.2 - 1.6 * float(np.clip(brightness, 0.0, 1.0))
    tone = sum(np.sin(harmonic * phase) / harmonic**falloff for harmonic in range(1, _HARMONICS + 1))
    beat = np.pi * max(1.0, tempo) * time + generator.uniform(0.0, 0.5)
    syllables = np.abs(np.sin(beat)) ** 0.7
    hiss = generator.normal(0.0, 0.02, size=time.shape)
    samples = float(np.clip(loudness, 0.08, 1.1)) * 0.3 * tone * syllables / np.sqrt(1 + brightness**2) + 0.2 * hiss
    return _wav(np.clip(samples, -1.0, 1.0))


def _wav(samples: np.ndarray) -> bytes:
    content = io.BytesIO()
    with wave.open(content, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE_HZ)
        file.writeframes((samples * 32767).astype("<i2").tobytes())
    return content.getvalue()
