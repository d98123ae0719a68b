"""Augmentation: in training a value is changed a little, by draws that belong to its sample alone.

in        values [B, *shape] of one modality, as its preprocessor finishes them, and a key for each sample
out       values of the same shape, read by the modality's encoder
relies on sample_draws.py: nothing is drawn for a batch as a whole, so that a sample's gradient stays its own

Changed copies of one record count as one: training.augment_multiplicity averages their gradients before clipping.

| what reaches the model    | options                                                                                |
| pictures [C, S, S]        | rotate, scale, shift, flip, flip_upright; brightness, contrast, saturation, noise      |
| clips [T, C, S, S]        | as pictures, the same for all frames of a clip                                         |
| frames of sound [F, T]    | gain_db, noise_db, echo_db, echo_ms; time_masks, time_mask, band_masks, band_mask      |
| windows of sensors [C, L] | gain, noise, shift, time_mask, drop_channel                                            |
| token numbers [L]         | word_dropout                                                                           |
| vectors [F], [T, E]       | noise, drop                                                                            |
"""

import torch

from shared.config import EncoderSettings
from shared.errors import ModelError
from shared.model.augment.base import Augmentation
from shared.model.augment.clip import ClipAugmentation, FrameVectorAugmentation
from shared.model.augment.frames import FrameAugmentation, FrameOptions, FrameScale
from shared.model.augment.picture import PictureAugmentation, PictureOptions
from shared.model.augment.signal import SignalAugmentation, SignalOptions
from shared.model.augment.text import TextAugmentation, TokenOptions
from shared.model.augment.vector import VectorAugmentation, VectorOptions
from shared.model.registry import checked_options
from shared.preprocess import Preprocessor
from shared.preprocess.audio import AudioPreprocessor
from shared.preprocess.image import ImagePreprocessor
from shared.preprocess.pretrained_text import TokenPreprocessor
from shared.preprocess.video import VideoPreprocessor
from shared.schema import Kind

__all__ = ["Augmentation", "build_augmentation"]


def build_augmentation(
    settings: EncoderSettings, *, modality: str, kind: Kind, preprocessor: Preprocessor
) -> Augmentation:
    """How the run changes a modality's values in training.

    Raises:
        ModelError: an option that does not fit what reaches the model.
    """
    shape, of = preprocessor.shape, f"augment of modality {modality!r}"
    match kind, len(shape):
        case ("image", 3) | ("video", 4):
            picture = checked_options(PictureOptions, settings.augment, of=of)
            of_frames = preprocessor.pictures if isinstance(preprocessor, VideoPreprocessor) else preprocessor
            pixels = of_frames.options if isinstance(of_frames, ImagePreprocessor) else None
            center, spread = (pixels.center, pixels.spread) if pixels else (0.0, 1.0)
            each = PictureAugmentation if kind == "image" else ClipAugmentation
            colours = of_frames.colours if isinstance(of_frames, ImagePreprocessor) else None
            return each(picture, modality=modality, center=center, spread=spread, channels=shape[-3], colours=colours)
        case "audio", 2:
            frames = checked_options(FrameOptions, settings.augment, of=of)
            return FrameAugmentation(frames, modality=modality, scale=_scale_of(preprocessor))
        case "signal", 2:
            return SignalAugmentation(checked_options(SignalOptions, settings.augment, of=of), modality=modality)
        case _, 1 if _is_tokens(preprocessor, kind=kind):
            return TextAugmentation(checked_options(TokenOptions, settings.augment, of=of), modality=modality)
        case "video", 2:
            return FrameVectorAugmentation(checked_options(VectorOptions, settings.augment, of=of), modality=modality)
        case _, 1:
            return VectorAugmentation(checked_options(VectorOptions, settings.augment, of=of), modality=modality)
    raise ModelError(f"{of}: values of kind {kind} and shape {list(shape)} reach the model; allowed: none for these")


def _is_tokens(preprocessor: Preprocessor, *, kind: Kind) -> bool:
    """Whether token numbers reach the model, and not a vector."""
    if isinstance(preprocessor, TokenPreprocessor):
        return True
    with torch.no_grad():
        return kind == "text" and not preprocessor.finish(preprocessor.read("")[None]).is_floating_point()


def _scale_of(preprocessor: Preprocessor) -> FrameScale:
    if not isinstance(preprocessor, AudioPreprocessor):
        raise ModelError("augment: frames of sound of an unknown scale reach the model; allowed: none for these")
    options = preprocessor.options
    return FrameScale(
        center=options.center,
        spread=options.spread,
        hop_ms=options.hop_ms,
        is_log_mel=options.features == "log-mel",
    )
