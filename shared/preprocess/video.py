"""Video preprocessing: any clip becomes so many frames, each prepared as a picture is.

in        Clip from media/
out       [T, *shape] from read and finish, where `shape` is that of one picture: uint8 squares, then floats, or vectors
          of a frozen network
relies on a preprocessor of pictures; no statistics over clips
"""

from typing import Literal

import torch
from jaxtyping import Shaped
from pydantic import Field
from torch import Tensor

from shared.media import Clip
from shared.preprocess import Preprocessor, RawValue, digest_of, wrong_kind
from shared.settings import Settings


class VideoOptions(Settings):
    """Which frames of a clip are looked at."""

    frames: int = Field(default=8, ge=1, le=256, description="how many; of a clip with fewer some are taken twice")
    pick: Literal["even", "start", "centre"] = Field(
        default="even",
        description="even: what is seen in the middle of equal parts of the clip; start, centre: one after the other",
    )


class VideoPreprocessor:
    """Frames of a clip, each as a preprocessor of pictures has it."""

    def __init__(self, options: VideoOptions, *, pictures: Preprocessor) -> None:
        self.options, self.pictures = options, pictures
        self.shape = (options.frames, *pictures.shape)
        self.digest = digest_of("video", version=1, settings=options, more={"pictures": pictures.digest})

    def read(self, value: RawValue) -> Shaped[Tensor, "T *shape"]:
        """The frames that are looked at, one decoded at a time, in the compact form of a picture."""
        if not isinstance(value, Clip):
            raise wrong_kind(value, wanted="a clip")
        numbers = picked(value, options=self.options)
        made = {number: self.pictures.read(picture) for number, picture in value.read(set(numbers))}
        return torch.stack([made[number] for number in numbers])

    def finish(self, values: Shaped[Tensor, "B T *shape"]) -> Shaped[Tensor, "B T *finished"]:
        """Each frame finished as a picture; a frozen network runs here, once for each frame."""
        return self.pictures.finish(values.flatten(0, 1)).reshape(len(values), *self.shape)


def picked(clip: Clip, *, options: VideoOptions) -> list[int]:
    """Numbers of the frames that are looked at, in order; the last one again where a clip has no more."""
    there, wanted = len(clip.times_s), options.frames
    if options.pick == "even":
        part = clip.duration_s / wanted
        return [clip.number_at((place + 0.5) * part) for place in range(wanted)]
    first = max(0, there - wanted) // 2 if options.pick == "centre" else 0
    return [min(first + place, there - 1) for place in range(wanted)]
