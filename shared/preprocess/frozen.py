"""Frozen networks as preprocessing: a value goes once through public weights, and the vector that comes out is kept.

in        an image or a text
out       float32 [E], the network's embedding, cached by a digest that covers its weights
relies on pretrained.py for the weights; no gradient ever reaches them, so they cost no privacy and do not travel
"""

import functools
import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable

import torch
from jaxtyping import Float, Int, Shaped, UInt8
from pydantic import Field
from torch import Tensor

from shared.errors import ModelError
from shared.preprocess import RawValue, digest_of, in_pieces, wrong_kind
from shared.preprocess.image import ImageOptions, ImagePreprocessor
from shared.preprocess.pretrained import Checkpoint, read_network, read_tokenizer
from shared.settings import Settings

EFFICIENTNET_WIDTH = 1280
REMEMBERED = 4096
"""vectors kept in this process's memory, some 20 MB: sites of one simulation often hold the same picture or sentence"""
_remembered: OrderedDict[bytes, Tensor] = OrderedDict()
_lock = threading.Lock()
"""several folders may be loaded at once"""


class FrozenTextOptions(Settings):
    """How texts go through a frozen network."""

    max_tokens: int = Field(default=64, ge=3, le=512, description="the text is cut after so many of its own tokens")


class FrozenImageOptions(ImageOptions):
    """How pictures go through a frozen network: its own size and constants."""

    size: int = Field(default=224, ge=32, le=1024, description="side of the square, in pixels")
    center: float = 127.0
    spread: float = Field(default=128.0, gt=0)


class FrozenTextPreprocessor:
    """Texts as the mean over tokens of a frozen transformer's last layer."""

    def __init__(self, options: FrozenTextOptions, *, checkpoint: Checkpoint) -> None:
        self.options = options
        self.checkpoint = checkpoint
        self.shape = (checkpoint.width,)
        self.digest = digest_of("frozen-text", version=1, settings=options, more={"weights": checkpoint.digest})

    def read(self, value: RawValue) -> Int[Tensor, "2 L"]:
        """The checkpoint's own token numbers, and 1 where there is one."""
        if not isinstance(value, str):
            raise wrong_kind(value, wanted="a text")
        tokenizer = read_tokenizer(self.checkpoint)
        numbers = tokenizer(value, truncation=True, max_length=self.options.max_tokens)["input_ids"]
        both = torch.zeros(2, self.options.max_tokens, dtype=torch.int64)
        both[0, : len(numbers)] = torch.tensor(numbers, dtype=torch.int64)
        both[1, : len(numbers)] = 1
        return both

    def finish(self, values: Int[Tensor, "B 2 L"]) -> Float[Tensor, "B E"]:
        """The frozen network's embedding of each text."""
        return _embed_once(values, run=self._embed, shape=self.shape, network=self.digest)

    def _embed(self, values: Int[Tensor, "B 2 L"]) -> Float[Tensor, "B E"]:
        longest = max(1, int(values[:, 1].sum(dim=1).max()))
        numbers, there = values[:, 0, :longest], values[:, 1, :longest]
        states = read_network(self.checkpoint)(input_ids=numbers, attention_mask=there).last_hidden_state
        weight = there[:, :, None].float()
        return torch.as_tensor((states * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1))


class FrozenImagePreprocessor:
    """Pictures as the mean over places of EfficientNet-Lite0's last features.

    Source: Tan and Le 2019, arXiv:1905.11946, in the Lite form (no squeeze-and-excitation, ReLU6).
    """

    def __init__(self, options: FrozenImageOptions, *, checkpoint: Checkpoint) -> None:
        if options.mode != "RGB":
            raise ModelError(f"preprocess.mode is {options.mode!r}; allowed: 'RGB', which the frozen weights expect")
        self.pictures = ImagePreprocessor(options)
        self.checkpoint = checkpoint
        self.shape = (EFFICIENTNET_WIDTH,)
        self.digest = digest_of("frozen-image", version=1, settings=options, more={"weights": checkpoint.digest})

    def read(self, value: RawValue) -> UInt8[Tensor, "3 S S"]:
        """The picture in the network's size, one byte a pixel and channel."""
        return self.pictures.read(value)

    def finish(self, values: UInt8[Tensor, "B 3 S S"]) -> Float[Tensor, "B E"]:
        """The frozen network's embedding of each picture."""
        return _embed_once(values, run=self._embed, shape=self.shape, network=self.digest)

    def _embed(self, values: UInt8[Tensor, "B 3 S S"]) -> Float[Tensor, "B E"]:
        pixels = self.pictures.finish(values)
        return torch.as_tensor(_read_efficientnet(self.checkpoint)(pixels).mean(dim=(2, 3)))


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


@functools.lru_cache(maxsize=1)
def _read_efficientnet(checkpoint: Checkpoint) -> Callable[[Tensor], Tensor]:
    try:
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError:
        raise ModelError(
            "the package with this network is not installed; install it with: "
            "pip install --no-deps efficientnet-lite-pytorch==0.1.0"
        ) from None
    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(checkpoint.path, map_location="cpu", weights_only=True))
    network.requires_grad_(False)
    network.eval()
    features: Callable[[Tensor], Tensor] = network.extract_features
    return features
