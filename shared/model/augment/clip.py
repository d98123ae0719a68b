"""Clip augmentation: the frames of one clip are turned, mirrored and lit alike; vectors of frames lose numbers.

in        float [B, T, C, S, S] around zero, or [B, T, E] of a frozen network, and a key for each sample
out       values of the same shape
relies on picture.py and vector.py, which draw once for each sample: a clip's frames stand to them as one value
"""

from jaxtyping import Float, Int
from torch import Tensor

from shared.model.augment.picture import PictureAugmentation
from shared.model.augment.vector import VectorAugmentation


class ClipAugmentation(PictureAugmentation):
    """One affine map and one change of light for all frames of a clip; noise of its own in every pixel.

    Source: as `PictureAugmentation`; the same for all frames: Simonyan and Zisserman 2014, arXiv:1406.2199, section 5.
    """

    def changed(self, values: Float[Tensor, "B T C S S"], keys: Int[Tensor, "B"]) -> Float[Tensor, "B T C S S"]:
        """The clips, each changed by its key."""
        return super().changed(values.flatten(1, 2), keys).view(values.shape)

    def greys(self, values: Float[Tensor, "B TC S S"]) -> Float[Tensor, "B TC S S"]:
        """Each frame's own grey, not that of the clip."""
        frames = values.reshape(len(values), -1, self.channels, *values.shape[2:])
        return frames.mean(dim=2, keepdim=True).expand_as(frames).flatten(1, 2)


class FrameVectorAugmentation(VectorAugmentation):
    """Noise and numbers left out in the vectors of all frames."""

    def changed(self, values: Float[Tensor, "B T E"], keys: Int[Tensor, "B"]) -> Float[Tensor, "B T E"]:
        """The clips, each changed by its key."""
        return super().changed(values.flatten(1), keys).view(values.shape)
