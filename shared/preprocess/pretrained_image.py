"""Pretrained vision transformers: pictures become one vector each, for caching once or for training.

in        an image; a Checkpoint of ViT's kind, or EfficientNet-Lite0's
out       uint8 [3, S, S] from read, float32 [3, S, S] as the network was trained on from finish; vectors [B, E]
relies on pretrained_network.py for layers that every sample's gradient can be followed through
"""

import json

import torch
from jaxtyping import Float, UInt8
from pydantic import Field
from torch import Tensor, nn

from shared.errors import ModelError
from shared.preprocess import digest_of
from shared.preprocess.image import ImageOptions, ImagePreprocessor
from shared.preprocess.pretrained import Checkpoint
from shared.preprocess.pretrained_network import load_network
from shared.preprocess.pretrained_tokens import with_tables


class FrozenImageOptions(ImageOptions):
    """How pictures go through EfficientNet-Lite0: its own size and constants."""

    size: int = Field(default=224, ge=32, le=1024, description="side of the square, in pixels")
    center: float = 127.0
    spread: float = Field(default=128.0, gt=0)


class PretrainedImageOptions(ImageOptions):
    """How pictures go through a network from a folder; center and spread count where the folder names no others."""

    size: int = Field(default=0, ge=0, le=1024, description="side of the square, in pixels; 0: the checkpoint's own")


class RgbPreprocessor(ImagePreprocessor):
    """Pictures as a pretrained network takes them."""

    def __init__(self, options: ImageOptions, *, checkpoint: Checkpoint) -> None:
        if options.mode != "RGB":
            raise ModelError(f"preprocess.mode is {options.mode!r}; allowed: 'RGB', which the network expects")
        if options.adds_channel:
            raise ModelError(
                f"preprocess.segment_as is {options.segment_as!r}; allowed: 'mask' or 'crop', as the network expects "
                "three channels"
            )
        super().__init__(options)
        self.checkpoint = checkpoint


class PixelPreprocessor(RgbPreprocessor):
    """Pictures with the size and the constants that a checkpoint's folder names."""

    def __init__(self, options: PretrainedImageOptions, *, checkpoint: Checkpoint) -> None:
        own = checkpoint.image_size
        if options.size not in (0, own):
            raise ModelError(f"preprocess.size is {options.size}; allowed: {own}, which the checkpoint was made for")
        super().__init__(options.model_copy(update={"size": own}), checkpoint=checkpoint)
        mean, deviation = _constants(checkpoint, options=options)
        self._mean, self._deviation = mean[:, None, None], deviation[:, None, None]
        self.digest = digest_of("pixels", version=1, settings=self.options, more={"weights": checkpoint.digest})

    def finish(self, values: UInt8[Tensor, "B 3 S S"]) -> Float[Tensor, "B 3 S S"]:
        """Pixels around zero, channel by channel."""
        return (values.float() / 255 - self._mean) / self._deviation


class ImageNetwork(nn.Module):
    """A pretrained transformer's last state of the token that stands for the picture, or the mean over all tokens."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self._has_token = with_tables(network) > 0

    def forward(self, pixels: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B E"]:
        """The vector of each picture."""
        states: Tensor = self.network(pixel_values=pixels).last_hidden_state
        return states[:, 0] if self._has_token else states.mean(dim=1)


def image_network(checkpoint: Checkpoint) -> ImageNetwork:
    """The checkpoint's network with a copy of the weights for its caller.

    Raises:
        ModelError: as `load_network`.
    """
    return ImageNetwork(load_network(checkpoint))


def _constants(checkpoint: Checkpoint, *, options: ImageOptions) -> tuple[Float[Tensor, "3"], Float[Tensor, "3"]]:
    """Mean and deviation of each channel, for pixels from 0 to 1: public numbers beside the weights."""
    file = checkpoint.path / "preprocessor_config.json"
    try:
        told = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        mean, deviation = (told.get(name) for name in ("image_mean", "image_std"))
        if mean is None or deviation is None:
            mean, deviation = [options.center / 255] * 3, [options.spread / 255] * 3
        found = torch.tensor([mean, deviation], dtype=torch.float32).reshape(2, 3)
    except (OSError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise ModelError(f"{file}: image_mean and image_std are not three numbers each: {error}") from None
    return found[0], found[1]
