"""Encoders: one modality's tensors become embeddings of the model's width.

in        [B, *shape] as the modality's preprocessor finishes them
out       embeddings [B, D], read by fusion/
relies on registry.py for names and options; docs/model.md lists all of them, with their sources and costs
"""

from collections.abc import Mapping

import torch
from torch import nn

from shared.config import RunConfig
from shared.errors import ModelError
from shared.model.encoders import audio as _audio  # noqa: F401  # each enters its encoders in the registry
from shared.model.encoders import conformer as _conformer  # noqa: F401
from shared.model.encoders import image as _image  # noqa: F401
from shared.model.encoders import language as _language  # noqa: F401
from shared.model.encoders import pretrained as _pretrained  # noqa: F401
from shared.model.encoders import recurrent as _recurrent  # noqa: F401
from shared.model.encoders import resnet as _resnet  # noqa: F401
from shared.model.encoders import signal as _signal  # noqa: F401
from shared.model.encoders import text as _text  # noqa: F401
from shared.model.encoders import vgg as _vgg  # noqa: F401
from shared.model.encoders import video as _video  # noqa: F401
from shared.model.encoders import vit as _vit  # noqa: F401
from shared.model.encoders.modes import in_mode
from shared.model.registry import EncoderPart, EncoderPlace, encoder_registry
from shared.model.seeding import seeded
from shared.preprocess import Preprocessor
from shared.preprocess.align import aligned_table
from shared.settings import Option


def preprocessor(run: RunConfig, modality: str) -> Preprocessor:
    """How the run turns one value of a modality into a tensor.

    Raises:
        ModelError: the run does not use the modality, or names a part or option that does not exist.
    """
    return _part(run, modality).preprocessor


def build_encoder(run: RunConfig, modality: str) -> nn.Module:
    """The module from [B, *shape] to [B, D] with its first weights, which follow from `run.seed`.

    Raises:
        ModelError: as `preprocessor`.
    """
    # the preprocessor beside it computes, so it stays real where only the size of a model is asked (device "meta")
    with torch.device("cpu"):
        part = _part(run, modality)
    settings = run.model.encoders[modality]
    with seeded(run.seed, part=f"encoders.{modality}"):
        return in_mode(
            part.module(), settings, width=run.model.embedding_width, of=f"encoder {settings.name!r} of {modality}"
        )


def _part(run: RunConfig, modality: str) -> EncoderPart:
    if modality not in run.modalities:
        raise ModelError(f"modality {modality!r} is not in the run; allowed: {', '.join(run.modalities)}")
    settings, schema = run.model.encoders[modality], run.data.modalities[modality]
    table: Mapping[str, Option] = settings.preprocess
    if run.model.align is not None:
        table = aligned_table(table, kind=schema.kind, align=run.model.align, modality=modality)
    place = EncoderPlace(
        modality=modality,
        schema=schema,
        width=run.model.embedding_width,
        preprocess_table=table,
        mode=settings.mode,
    )
    return encoder_registry.build(settings, place=place, takes=schema.kind)
