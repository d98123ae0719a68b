"""Video encoder: a clip's frames go through an encoder of pictures, and what it gives is pooled over time.

in        [B, T, *shape] from preprocess/video.py: T frames as the encoder of pictures takes them
out       embeddings [B, D]
relies on any registered encoder of pictures; on parts.py, by which engines count a clip's frames for one sample

    [run.model.encoders.clip]
    name = "video"
    options = { image = "cnn", image_channels = [8, 16], pool = "lstm" }
    preprocess = { frames = 8, size = 32 }

An encoder of pictures with public weights is frozen unless the run's mode says otherwise: its vector of each frame is
then computed once and kept, and what pools them is trained.
"""

from collections.abc import Mapping
from dataclasses import replace

from jaxtyping import Float
from pydantic import ConfigDict, model_validator
from torch import Tensor, nn

from shared.errors import ModelError
from shared.model.encoders.language import READ_ELSEWHERE
from shared.model.encoders.pooling import PoolingOptions, build_pooling
from shared.model.parts import as_parts, as_rows, mark_parts
from shared.model.registry import EncoderPart, EncoderPlace, checked_options, encoder_registry
from shared.preprocess.video import VideoOptions, VideoPreprocessor
from shared.schema import ModalitySchema
from shared.settings import Option

IMAGE_PREFIX = "image_"


class VideoEncoderOptions(PoolingOptions):
    """Which encoder the frames go through; its own options follow with `image_` before their names."""

    model_config = ConfigDict(extra="allow")

    image: str = "cnn"

    @property
    def image_options(self) -> dict[str, Option]:
        """Options of the encoder of pictures."""
        return {name.removeprefix(IMAGE_PREFIX): value for name, value in (self.model_extra or {}).items()}

    @model_validator(mode="after")
    def _others_are_of_the_image(self) -> "VideoEncoderOptions":
        unknown = [name for name in self.model_extra or {} if not name.startswith(IMAGE_PREFIX)]
        if unknown:
            own = ", ".join(type(self).model_fields)
            raise ValueError(f"{unknown}: no such settings; allowed: {own}, and those of `image` after 'image_'")
        return self


class ClipEncoder(nn.Module):
    """Each frame through one encoder of pictures, then all of a clip's through what pools them."""

    def __init__(self, image: nn.Module, pooling: nn.Module, *, frames: int) -> None:
        super().__init__()
        self.frames, self.image, self.pooling = frames, image, pooling
        # PRIVACY: all frames of a clip are of one sample, and its norm is that of their sum.
        # test_all_frames_of_a_clip_are_clipped_as_one_sample
        mark_parts(image, parts=frames)

    def forward(self, clips: Float[Tensor, "B T *shape"]) -> Float[Tensor, "B D"]:
        """The embedding of each clip."""
        embeddings: Tensor = self.pooling(as_parts(self.image(as_rows(clips)), parts=self.frames))
        return embeddings


@encoder_registry.register("video", options=VideoEncoderOptions, takes="video")
def video(place: EncoderPlace, options: VideoEncoderOptions) -> EncoderPart:
    """Frames through an encoder of pictures, pooled over time by their mean, a recurrent network or a transformer.

    Source: Donahue et al. 2014, arXiv:1411.4389 (lstm over a convolutional network); Karpathy et al. 2014,
    CVPR (frames fused late); Arnab et al. 2021, arXiv:2103.15691, section 3.3 (model 2: a transformer over
    frames). Ours differs: the mean of the states in the place of an answer at each frame, and the mean of the tokens in
    that of a class token.

    Raises:
        ModelError: the encoder of pictures or one of its options does not exist or fit, or it gives no embedding.
    """
    if options.image in READ_ELSEWHERE:
        allowed = [name for name in encoder_registry.names(takes="image") if name not in READ_ELSEWHERE]
        raise ModelError(
            f"encoder 'video': image is {options.image!r}, which gives words for a language model to read, and a frame "
            f"needs an embedding that can be pooled; allowed: {', '.join(allowed)}"
        )
    width = options.frame_width or place.width
    if options.pool == "transformer" and width % options.heads:
        raise ModelError(
            f"encoder 'video': heads is {options.heads}; allowed: a divisor of the frames' width, which is {width}"
        )
    frames, of_pictures = _split(place.preprocess_table)
    chosen = checked_options(VideoOptions, frames, of=f"preprocess of modality {place.modality!r}")
    inner = replace(place, schema=ModalitySchema(kind="image"), width=width, preprocess_table=of_pictures)
    image = encoder_registry.get(options.image, takes="image").build(inner, options.image_options)
    return EncoderPart(
        preprocessor=VideoPreprocessor(chosen, pictures=image.preprocessor),
        module=lambda: ClipEncoder(
            image.module(),
            build_pooling(width, frames=chosen.frames, width=place.width, options=options),
            frames=chosen.frames,
        ),
    )


def _split(table: Mapping[str, Option]) -> tuple[dict[str, Option], dict[str, Option]]:
    """Preprocessing options of clips, and those of the pictures in them."""
    own = {name: value for name, value in table.items() if name in VideoOptions.model_fields}
    return own, {name: value for name, value in table.items() if name not in own}
