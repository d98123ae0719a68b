"""Pretrained encoders: public networks, frozen and computed once, or run inside the model to be trained or adapted.

in        what preprocess/frozen.py keeps of a value (mode "frozen"), or what the network itself takes ("train", "lora")
out       embeddings [B, D]
relies on preprocess/pretrained_*.py for networks of layers that every sample's gradient can be followed through

| kind  | from a package                                            | from a folder                               |
| text  | minilm                                                    | pretrained-text, frozen-transformers        |
| image | efficientnet-lite0, frozen-efficientnet-lite0             | pretrained-image                            |
| audio | openwakeword                                              | pretrained-audio                            |

A run that sets no mode has them frozen. Names that begin with "frozen-" are frozen for ever.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from shared.errors import ModelError
from shared.model.encoders.checkpoint import CheckpointOptions, chosen_checkpoint
from shared.model.encoders.projection import FixedVectorOptions, Projection
from shared.model.registry import EncoderPart, EncoderPlace, encoder_registry
from shared.preprocess import Preprocessor
from shared.preprocess.frozen import FrozenImagePreprocessor, FrozenPreprocessor, FrozenTextPreprocessor
from shared.preprocess.pretrained import Checkpoint, efficientnet_checkpoint, minilm_checkpoint, wakeword_checkpoint
from shared.preprocess.pretrained_audio import ExtractorPreprocessor, PretrainedAudioOptions, audio_network
from shared.preprocess.pretrained_efficientnet import EFFICIENTNET_WIDTH, efficientnet
from shared.preprocess.pretrained_image import (
    FrozenImageOptions,
    PixelPreprocessor,
    PretrainedImageOptions,
    RgbPreprocessor,
    image_network,
)
from shared.preprocess.pretrained_onnx import WakewordOptions, WakewordPreprocessor
from shared.preprocess.pretrained_text import PretrainedTextOptions, TokenPreprocessor, text_network


class PretrainedEncoder(nn.Module):
    """A pretrained network and a trained layer behind it; the network is in evaluation mode in training too."""

    def __init__(self, network: nn.Module, *, inputs: int, width: int, options: FixedVectorOptions) -> None:
        super().__init__()
        self.network = network
        self.projection = Projection(inputs, width=width, options=options)

    def train(self, mode: bool = True) -> "PretrainedEncoder":
        """Training changes nothing of the network's ways: what it would draw, all samples would share."""
        super().train(mode)
        self.network.train(False)
        return self

    def forward(self, values: Float[Tensor, "B ..."] | Tensor) -> Float[Tensor, "B D"]:
        """The embedding of each sample."""
        embeddings: Tensor = self.projection(self.network(values))
        return embeddings


def pretrained_part(
    place: EncoderPlace,
    *,
    frozen: Callable[[], Preprocessor],
    inputs: Preprocessor,
    network: Callable[[], nn.Module],
    network_width: int,
    options: FixedVectorOptions,
) -> EncoderPart:
    """An encoder whose network is computed once and kept, or stands in the model, as the run's mode has it.

    Args:
        place: of the encoder.
        frozen: makes the preprocessor that runs the network.
        inputs: the preprocessor that gives what the network takes.
        network: makes the network with weights of its own, for the model.
        network_width: of the network's vectors.
        options: of the trained layer.
    """
    if place.mode in (None, "frozen"):
        return EncoderPart(
            preprocessor=frozen(), module=lambda: Projection(network_width, width=place.width, options=options)
        )

    def module() -> nn.Module:
        made = PretrainedEncoder(network(), inputs=network_width, width=place.width, options=options)
        _freeze_unused(made, like=inputs)
        return made

    return EncoderPart(preprocessor=inputs, module=module)


@encoder_registry.register("minilm", options=FixedVectorOptions, takes="text")
def minilm(place: EncoderPlace, options: FixedVectorOptions) -> EncoderPart:
    """all-MiniLM-L6-v2 out of its package: 384 numbers a text.

    Source: Wang et al. 2020, arXiv:2002.10957; sentences: Reimers and Gurevych 2019, arXiv:1908.10084, section 3.
    """
    return _text_part(place, options, checkpoint=minilm_checkpoint())


@encoder_registry.register("pretrained-text", options=CheckpointOptions, takes="text")
def pretrained_text(place: EncoderPlace, options: CheckpointOptions) -> EncoderPart:
    """Any transformers text network in a folder: of BERT's kind its tokens' mean, of GPT's kind its last token.

    Source: Devlin et al. 2019, arXiv:1810.04805, section 3; Radford et al. 2018, section 3.2 (the last token).
    """
    return _text_part(place, options, checkpoint=chosen_checkpoint(options, of="encoder 'pretrained-text'"))


@encoder_registry.register("frozen-transformers", options=CheckpointOptions, takes="text")
def frozen_transformers(place: EncoderPlace, options: CheckpointOptions) -> EncoderPart:
    """`pretrained-text` that is frozen: computed once, and one trained layer.

    Source: as `pretrained-text`.
    """
    _only_frozen(place, name="frozen-transformers", why="name encoder 'pretrained-text', which has the same options")
    return _text_part(place, options, checkpoint=chosen_checkpoint(options, of="encoder 'frozen-transformers'"))


@encoder_registry.register("efficientnet-lite0", options=FixedVectorOptions, takes="image")
def efficientnet_lite0(place: EncoderPlace, options: FixedVectorOptions) -> EncoderPart:
    """EfficientNet-Lite0 trained on ImageNet, out of its package: 1280 numbers a picture, batch norm folded away.

    Source: Tan and Le 2019, arXiv:1905.11946, section 4, in the Lite form.
    """
    checkpoint, pictures = efficientnet_checkpoint(), place.preprocess(FrozenImageOptions)
    return pretrained_part(
        place,
        frozen=lambda: FrozenImagePreprocessor(pictures, checkpoint=checkpoint),
        inputs=RgbPreprocessor(pictures, checkpoint=checkpoint),
        network=lambda: efficientnet(checkpoint),
        network_width=EFFICIENTNET_WIDTH,
        options=options,
    )


@encoder_registry.register("frozen-efficientnet-lite0", options=FixedVectorOptions, takes="image")
def frozen_efficientnet(place: EncoderPlace, options: FixedVectorOptions) -> EncoderPart:
    """`efficientnet-lite0` that is frozen: computed once, and one trained layer.

    Source: as `efficientnet-lite0`.
    """
    _only_frozen(
        place, name="frozen-efficientnet-lite0", why="name encoder 'efficientnet-lite0', which has the same options"
    )
    return efficientnet_lite0(place, options)


@encoder_registry.register("pretrained-image", options=CheckpointOptions, takes="image")
def pretrained_image(place: EncoderPlace, options: CheckpointOptions) -> EncoderPart:
    """Any transformers vision transformer in a folder, such as ViT: the state of the token that stands for the picture.

    Source: Dosovitskiy et al. 2020, arXiv:2010.11929, section 3.1.
    """
    checkpoint = chosen_checkpoint(options, of="encoder 'pretrained-image'")
    pictures = PixelPreprocessor(place.preprocess(PretrainedImageOptions), checkpoint=checkpoint)
    return pretrained_part(
        place,
        frozen=lambda: FrozenPreprocessor(pictures, network=lambda: image_network(checkpoint), width=checkpoint.width),
        inputs=pictures,
        network=lambda: image_network(checkpoint),
        network_width=checkpoint.width,
        options=options,
    )


@encoder_registry.register("pretrained-audio", options=CheckpointOptions, takes="audio")
def pretrained_audio(place: EncoderPlace, options: CheckpointOptions) -> EncoderPart:
    """Any transformers audio network in a folder, such as wav2vec 2.0 or AST: the mean of its last states.

    Source: Baevski et al. 2020, arXiv:2006.11477, section 2; Gong et al. 2021, arXiv:2104.01778, section 2.1.
    """
    checkpoint = chosen_checkpoint(options, of="encoder 'pretrained-audio'")
    sounds = ExtractorPreprocessor(place.preprocess(PretrainedAudioOptions), checkpoint=checkpoint)
    return pretrained_part(
        place,
        frozen=lambda: FrozenPreprocessor(sounds, network=lambda: audio_network(checkpoint), width=checkpoint.width),
        inputs=sounds,
        network=lambda: audio_network(checkpoint),
        network_width=checkpoint.width,
        options=options,
    )


@encoder_registry.register("openwakeword", options=FixedVectorOptions, takes="audio")
def openwakeword(place: EncoderPlace, options: FixedVectorOptions) -> EncoderPart:
    """The speech embedding out of openwakeword's package, frozen: 96 numbers a recording.

    Source: Lin et al. 2020, arXiv:2002.01322.
    """
    _only_frozen(
        place, name="openwakeword", why="its network is an ONNX file, which onnxruntime can compute and not train"
    )
    sounds = WakewordPreprocessor(place.preprocess(WakewordOptions), checkpoint=wakeword_checkpoint())
    return EncoderPart(
        preprocessor=sounds, module=lambda: Projection(sounds.shape[0], width=place.width, options=options)
    )


def _text_part(place: EncoderPlace, options: FixedVectorOptions, *, checkpoint: Checkpoint) -> EncoderPart:
    texts = place.preprocess(PretrainedTextOptions)
    return pretrained_part(
        place,
        frozen=lambda: FrozenTextPreprocessor(texts, checkpoint=checkpoint),
        inputs=TokenPreprocessor(texts, checkpoint=checkpoint),
        network=lambda: text_network(checkpoint),
        network_width=checkpoint.width,
        options=options,
    )


def _only_frozen(place: EncoderPlace, *, name: str, why: str) -> None:
    if place.mode not in (None, "frozen"):
        raise ModelError(f"encoder {name!r}: mode is {place.mode!r}; allowed: 'frozen': {why}")


def _freeze_unused(encoder: PretrainedEncoder, *, like: Preprocessor) -> None:
    """Parameters that the embedding does not depend on ask for no gradient: noise would be all that they learn.

    Args:
        like: gives the shape of a value, whose numbers do not matter.
    """
    blank = torch.zeros(1, *like.shape, dtype=torch.int64 if isinstance(like, TokenPreprocessor) else torch.float32)
    named = list(encoder.named_parameters())
    with torch.enable_grad():
        total = encoder(blank + 1).sum()
        found = torch.autograd.grad(total, [parameter for _, parameter in named], allow_unused=True)
    for (_, parameter), gradient in zip(named, found, strict=True):
        parameter.requires_grad_(gradient is not None)
