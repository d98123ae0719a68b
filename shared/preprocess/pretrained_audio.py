"""Pretrained audio networks: recordings become one vector each, for caching once or for training.

in        a Waveform; a Checkpoint of wav2vec2's or AST's kind
out       what the checkpoint's own feature extractor makes of a recording, float32; vectors [B, E]
relies on pretrained_network.py for layers that every sample's gradient can be followed through
"""

import functools
from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from shared.errors import ModelError
from shared.media import Waveform
from shared.preprocess import RawValue, digest_of, wrong_kind
from shared.preprocess.audio import resampled
from shared.preprocess.pretrained import Checkpoint, may_import_transformers
from shared.preprocess.pretrained_network import load_network
from shared.preprocess.pretrained_tokens import with_tables
from shared.settings import Settings


@runtime_checkable
class Extractor(Protocol):
    """What transformers calls a feature extractor, of recordings."""

    sampling_rate: int

    def __call__(
        self, samples: npt.NDArray[np.float32], *, sampling_rate: int, return_tensors: str
    ) -> Mapping[str, npt.NDArray[np.float32]]:
        """What a network takes of one recording."""
        ...


class PretrainedAudioOptions(Settings):
    """How recordings go through a pretrained network."""

    seconds: float = Field(
        default=2.0, ge=0.1, le=60, description="longer is cut, shorter is padded with silence, before any frames"
    )


class ExtractorPreprocessor:
    """Recordings as a checkpoint's own feature extractor makes them: samples or frames, each recording by itself."""

    def __init__(self, options: PretrainedAudioOptions, *, checkpoint: Checkpoint) -> None:
        self.options, self.checkpoint = options, checkpoint
        self.digest = digest_of("extractor", version=1, settings=options, more={"weights": checkpoint.digest})
        rate_hz = _extractor(checkpoint).sampling_rate
        blank = fixed_length(torch.zeros(rate_hz), sample_rate_hz=rate_hz, to_hz=rate_hz, seconds=options.seconds)
        self.shape = tuple(self._extracted(blank).shape)

    def read(self, value: RawValue) -> Float[Tensor, "..."]:
        """The recording, mixed to mono, at the network's rate, cut or padded, as its extractor gives it."""
        if not isinstance(value, Waveform):
            raise wrong_kind(value, wanted="a waveform")
        samples = torch.as_tensor(value.samples, dtype=torch.float32).mean(dim=0)
        rate_hz = _extractor(self.checkpoint).sampling_rate
        return self._extracted(
            fixed_length(samples, sample_rate_hz=value.sample_rate_hz, to_hz=rate_hz, seconds=self.options.seconds)
        )

    def finish(self, values: Float[Tensor, "B ..."]) -> Float[Tensor, "B ..."]:
        """The numbers as they are."""
        return values

    def _extracted(self, samples: Float[Tensor, "N"]) -> Tensor:
        extractor = _extractor(self.checkpoint)
        found = extractor(samples.numpy(), sampling_rate=extractor.sampling_rate, return_tensors="np")
        return torch.as_tensor(found["input_values"][0], dtype=torch.float32)


class AudioNetwork(nn.Module):
    """A pretrained network's last states: their mean over time, or over the tokens that stand for the recording.

    Source: wav2vec 2.0: Baevski et al. 2020, arXiv:2006.11477; AST: Gong et al. 2021, arXiv:2104.01778, section 2.1.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self._tokens = with_tables(network)

    def forward(self, values: Float[Tensor, "B ..."]) -> Float[Tensor, "B E"]:
        """The vector of each recording."""
        states: Tensor = self.network(input_values=values).last_hidden_state
        return (states[:, : self._tokens] if self._tokens else states).mean(dim=1)


def audio_network(checkpoint: Checkpoint) -> AudioNetwork:
    """The checkpoint's network with a copy of the weights for its caller.

    Raises:
        ModelError: as `load_network`.
    """
    return AudioNetwork(load_network(checkpoint))


def fixed_length(samples: Float[Tensor, "N"], *, sample_rate_hz: int, to_hz: int, seconds: float) -> Float[Tensor, "R"]:
    """Samples at another rate, cut or padded with silence to so many seconds."""
    wanted = round(seconds * to_hz)
    samples = resampled(samples, sample_rate_hz=sample_rate_hz, to_hz=to_hz)[:wanted]
    return nn.functional.pad(samples, (0, wanted - len(samples)))


@functools.lru_cache(maxsize=4)
def _extractor(checkpoint: Checkpoint) -> Extractor:
    may_import_transformers()
    from transformers import AutoFeatureExtractor

    try:
        found: Extractor = AutoFeatureExtractor.from_pretrained(  # type: ignore[no-untyped-call]
            checkpoint.path, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{checkpoint.path}: no feature extractor that transformers can read: {error}") from None
    if not hasattr(found, "sampling_rate"):
        raise ModelError(f"{checkpoint.path}: its feature extractor is {type(found).__name__}; allowed: one for audio")
    return found
