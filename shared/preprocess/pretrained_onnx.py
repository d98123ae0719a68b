"""Networks in ONNX files, run as they are: openwakeword's speech embedding.

in        a Waveform; the checkpoint out of openwakeword's package
out       float32 [96], the mean embedding of a recording
relies on shared/onnx_network.py, which computes forwards only: such a network can be frozen, and nothing else
"""

import functools
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from shared.media import Waveform
from shared.onnx_network import OnnxNetwork
from shared.preprocess import RawValue, digest_of, wrong_kind
from shared.preprocess.audio import resampled
from shared.preprocess.pretrained import Checkpoint
from shared.settings import Settings

WAKEWORD_WIDTH = 96
SAMPLE_RATE_HZ = 16_000
_WINDOW, _STEP = 76, 8
"""frames of 10 ms that one embedding looks at, and from one to the next"""


class WakewordOptions(Settings):
    """How recordings go through openwakeword's speech embedding."""

    seconds: float = Field(default=2.0, ge=1, le=60, description="longer is cut, shorter is repeated")


class WakewordPreprocessor:
    """Recordings as mel frames, then as the mean of the embeddings of overlapping windows of 0.76 seconds.

    Source: Lin et al. 2020, arXiv:2002.01322; frames, windows and scaling as in openwakeword 0.5.1, utils.py.
    """

    def __init__(self, options: WakewordOptions, *, checkpoint: Checkpoint) -> None:
        self.options, self.checkpoint = options, checkpoint
        self.shape = (WAKEWORD_WIDTH,)
        self.digest = digest_of("wakeword", version=1, settings=options, more={"weights": checkpoint.digest})

    def read(self, value: RawValue) -> Float[Tensor, "T 32"]:
        """The recording's frames."""
        if not isinstance(value, Waveform):
            raise wrong_kind(value, wanted="a waveform")
        samples = torch.as_tensor(value.samples, dtype=torch.float32).mean(dim=0)
        samples = resampled(samples, sample_rate_hz=value.sample_rate_hz, to_hz=SAMPLE_RATE_HZ)
        # silence behind a short word would be most of the mean, and the same for all words
        wanted = round(self.options.seconds * SAMPLE_RATE_HZ)
        samples = samples.repeat(-(-wanted // max(1, len(samples))))[:wanted]
        samples = torch.nn.functional.pad(samples, (0, wanted - len(samples)))
        # the network takes numbers on the scale of 16-bit samples
        scaled = (samples.clamp(-1, 1) * 32767).round().numpy()
        frames = _run(self.checkpoint.path / "melspectrogram.onnx", scaled[None])
        return torch.as_tensor(frames.reshape(-1, 32) / 10 + 2)

    def finish(self, values: Float[Tensor, "B T 32"]) -> Float[Tensor, "B 96"]:
        """The mean embedding of each recording."""
        if not len(values):
            return torch.zeros(0, WAKEWORD_WIDTH)
        windows = values.unfold(1, _WINDOW, _STEP).transpose(2, 3)
        path = self.checkpoint.path / "embedding_model.onnx"
        # one recording at a time: its embedding must not depend on those beside it, not by a bit
        found = [
            _run(path, np.ascontiguousarray(one.numpy()[..., None])).reshape(-1, WAKEWORD_WIDTH) for one in windows
        ]
        return torch.stack([torch.as_tensor(each).mean(dim=0) for each in found])


@functools.lru_cache(maxsize=8)
def _network(path: Path) -> OnnxNetwork:
    return OnnxNetwork(path)


def _run(path: Path, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """What the network of one input in a file gives."""
    network = _network(path)
    return network({network.inputs[0]: values})
