"""Audio: the bytes of one recording become a waveform.

in        bytes of a file whose ending names its format
out       Waveform: float32 samples [channels, frames] and their rate
relies on libsndfile's decoders; container.py finds what they pass over in silence

Rate, channels and length are read from the header and judged before a sample is decoded.
"""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from jaxtyping import Float32

from shared.errors import MediaFault
from shared.media.container import judge_ogg, judge_wav
from shared.media.content import content_name
from shared.media.file import read_file

MIN_SAMPLE_RATE_HZ = 4_000
MAX_SAMPLE_RATE_HZ = 192_000
MAX_AUDIO_S = 600
MAX_CHANNELS = 8
MAX_AUDIO_VALUES = 1 << 27

AUDIO_SUFFIXES = {
    ".flac": ("FLAC",),
    ".mp3": ("MP3",),
    ".ogg": ("OGG",),
    ".opus": ("OGG",),
    ".wav": ("WAV", "WAVEX"),
}
_SIGNATURES = {".flac": (b"fLaC",), ".ogg": (b"OggS",), ".opus": (b"OggS",), ".wav": (b"RIFF",), ".mp3": ()}


@dataclass(frozen=True)
class Waveform:
    """Sound as it was recorded, before any resampling; usual values lie in [-1, 1]."""

    samples: Float32[np.ndarray, "C N"]
    sample_rate_hz: int


def open_audio(path: Path) -> Waveform:
    """The recording in a file.

    Raises:
        MediaFault: it is not a whole recording of the format that its name says, of allowed rate, length and
            channels, with finite values.
    """
    return decode_audio(read_file(path)[0], suffix=path.suffix.lower())


def decode_audio(data: bytes, *, suffix: str) -> Waveform:
    """The recording in a file's bytes; `suffix` is the file's ending in small letters. See `open_audio`."""
    if suffix not in AUDIO_SUFFIXES:
        raise MediaFault(field="name", came=f"ending in {suffix!r}", allowed=", ".join(sorted(AUDIO_SUFFIXES)))
    wanted = AUDIO_SUFFIXES[suffix]
    if _SIGNATURES[suffix] and not data.startswith(_SIGNATURES[suffix]):
        raise _not_what_its_name_says(data, wanted=wanted[0])
    if suffix == ".wav":
        judge_wav(data)
    elif wanted == ("OGG",):
        judge_ogg(data)
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            if file.format not in wanted:
                raise _not_what_its_name_says(data, wanted=wanted[0])
            frames, rate = int(file.frames), int(file.samplerate)
            _judge_header(frames=frames, sample_rate_hz=rate, channels=int(file.channels))
            samples = file.read(dtype="float32", always_2d=True)
    except soundfile.SoundFileError as error:
        if suffix == ".mp3" and content_name(data) != "looks like MP3":
            raise _not_what_its_name_says(data, wanted="MP3") from None
        reason = str(error).rsplit(": ", maxsplit=1)[-1][:80]
        raise MediaFault(
            field="content", came=f"truncated or damaged ({reason})", allowed="a whole recording"
        ) from None
    if len(samples) < frames:
        came = f"truncated ({len(samples)} of {frames} samples)"
        raise MediaFault(field="content", came=came, allowed="a whole recording")
    if not np.isfinite(samples).all():
        raise MediaFault(field="samples", came="NaN or infinite at some time", allowed="finite numbers")
    return Waveform(samples=np.ascontiguousarray(samples.T), sample_rate_hz=rate)


def _judge_header(*, frames: int, sample_rate_hz: int, channels: int) -> None:
    if not MIN_SAMPLE_RATE_HZ <= sample_rate_hz <= MAX_SAMPLE_RATE_HZ:
        allowed = f"{MIN_SAMPLE_RATE_HZ} to {MAX_SAMPLE_RATE_HZ}"
        raise MediaFault(field="sample_rate_hz", came=str(sample_rate_hz), allowed=allowed)
    if not 1 <= channels <= MAX_CHANNELS:
        raise MediaFault(field="channels", came=str(channels), allowed=f"1 to {MAX_CHANNELS}")
    if frames < 1:
        raise MediaFault(field="samples", came="0", allowed="1 or more")
    if frames > MAX_AUDIO_S * sample_rate_hz or frames * channels > MAX_AUDIO_VALUES:
        came = f"{frames / sample_rate_hz:.0f} s" if frames < 1 << 60 else "not declared"
        allowed = f"at most {MAX_AUDIO_S} s and {MAX_AUDIO_VALUES} values over all channels"
        raise MediaFault(field="length", came=came, allowed=allowed)


def _not_what_its_name_says(data: bytes, *, wanted: str) -> MediaFault:
    return MediaFault(
        field="content", came=f"not {wanted} ({content_name(data)})", allowed=f"{wanted}, as the file's name says"
    )
