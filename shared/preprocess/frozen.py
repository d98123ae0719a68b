"""Frozen networks as preprocessing: a value goes once through public weights, and the vector that comes out is kept.

in        an image, a text or a recording
out       float32 [E], the network's embedding, cached by a digest that covers its weights
relies on pretrained_*.py for networks and what they take; no gradient ever reaches the weights, so they cost no privacy
          and do not travel
"""

import functools
import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from shared.preprocess import Preprocessor, RawValue, digest_of, in_pieces
from shared.preprocess.pretrained import Checkpoint
from shared.preprocess.pretrained_efficientnet import EFFICIENTNET_WIDTH, efficientnet
from shared.preprocess.pretrained_image import FrozenImageOptions, RgbPreprocessor
from shared.preprocess.pretrained_network import is_causal, read_network
from shared.preprocess.pretrained_text import PretrainedTextOptions, TextNetwork, TokenPreprocessor

REMEMBERED = 4096
"""vectors kept in this process's memory, some 20 MB: sites of one simulation often hold the same picture or sentence"""
_remembered: OrderedDict[bytes, Tensor] = OrderedDict()
_lock = threading.Lock()
"""several folders may be loaded at once"""


class FrozenPreprocessor:
    """Values as a frozen network's vector of each."""

    def __init__(self, inputs: Preprocessor, *, network: Callable[[], nn.Module], width: int) -> None:
        self.inputs = inputs
        self._network = functools.cache(network)
        self.shape = (width,)
        self.digest = hashlib.sha256(f"frozen 1 {inputs.digest}".encode()).hexdigest()

    def read(self, value: RawValue) -> Tensor:
        """The value as the network takes it, in its compact form."""
        return self.inputs.read(value)

    def finish(self, values: Shaped[Tensor, "B ..."]) -> Float[Tensor, "B E"]:
        """The frozen network's embedding of each value."""
        return _embed_once(values, run=self._embed, shape=self.shape, network=self.digest)

    def _embed(self, values: Shaped[Tensor, "B ..."]) -> Float[Tensor, "B E"]:
        vectors: Tensor = self._network()(self.inputs.finish(values))
        return vectors


class FrozenTextPreprocessor(FrozenPreprocessor):
    """Texts as the mean over tokens of a frozen transformer's last layer; of one that looks back only, the last's."""

    def __init__(self, options: PretrainedTextOptions, *, checkpoint: Checkpoint) -> None:
        super().__init__(
            TokenPreprocessor(options, checkpoint=checkpoint),
            network=lambda: _frozen_text(checkpoint),
            width=checkpoint.width,
        )
        self.checkpoint = checkpoint
        self.digest = digest_of("frozen-text", version=2, settings=options, more={"weights": checkpoint.digest})

    def _embed(self, values: Int[Tensor, "B L"]) -> Float[Tensor, "B E"]:
        longest = max(1, int((values > 0).sum(dim=1).max()))
        return super()._embed(values[:, :longest])


class FrozenImagePreprocessor(FrozenPreprocessor):
    """Pictures as the mean over places of EfficientNet-Lite0's last features."""

    def __init__(self, options: FrozenImageOptions, *, checkpoint: Checkpoint) -> None:
        super().__init__(
            RgbPreprocessor(options, checkpoint=checkpoint),
            network=lambda: _frozen_efficientnet(checkpoint),
            width=EFFICIENTNET_WIDTH,
        )
        self.digest = digest_of("frozen-image", version=2, settings=options, more={"weights": checkpoint.digest})


def _embed_once(
    values: Shaped[Tensor, "B ..."], *, run: Callable[[Tensor], Tensor], shape: tuple[int, ...], network: str
) -> Float[Tensor, "B E"]:
    """`run` over the rows that this process has not seen of late; the others' vectors are given again."""
    rows = values.contiguous().numpy()
    keys = [hashlib.sha256(network.encode() + row.tobytes()).digest() for row in rows]
    with _lock:
        known = {key: _remembered[key] for key in keys if key in _remembered}
    new = {key: index for index, key in enumerate(keys) if key not in known}
    made = in_pieces(values[list(new.values())], run=run, shape=shape)
    known.update(zip(new, made, strict=True))
    with _lock:
        for key, vector in known.items():
            _remembered[key] = vector
            _remembered.move_to_end(key)
        while len(_remembered) > REMEMBERED:
            _remembered.popitem(last=False)
    return torch.stack([known[key] for key in keys]) if keys else made


@functools.lru_cache(maxsize=2)
def _frozen_text(checkpoint: Checkpoint) -> TextNetwork:
    return TextNetwork(read_network(checkpoint), causal=is_causal(checkpoint), places_from=checkpoint.places_from)


@functools.lru_cache(maxsize=1)
def _frozen_efficientnet(checkpoint: Checkpoint) -> nn.Module:
    return efficientnet(checkpoint).requires_grad_(False)
