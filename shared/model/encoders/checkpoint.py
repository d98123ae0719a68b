"""Checkpoint options: which folder of this machine a run's encoder comes from.

in        the options of an encoder that names a folder
out       the Checkpoint there, whose weights are those that the run asks for
relies on client/permission.py, which lets a run name no folder but those that the owner lists
"""

from collections.abc import Collection
from pathlib import Path
from typing import TypeVar

from pydantic import Field

from shared.config import PartSettings, RunConfig
from shared.errors import ModelError
from shared.model.encoders.projection import FixedVectorOptions
from shared.model.registry import encoder_registry, fusion_registry
from shared.preprocess.pretrained import Checkpoint, local_checkpoint, minilm_checkpoint
from shared.settings import Settings

AnyPart = TypeVar("AnyPart", bound=PartSettings)


_DIGESTS = {"path": "weights_digest", "network_path": "network_digest"}
"""options that name a folder -> the option with the digest that it must have"""
_OF_PICTURES = "image_"
"""before the options of the encoder of pictures in an encoder of clips"""


class FolderOptions(Settings):
    """Where a pretrained network lies."""

    path: str = Field(default="", description="folder that save_pretrained wrote")
    weights_digest: str = Field(
        default="", description="SHA-256 that the folder must have, so that all machines use the same; empty: any"
    )


class CheckpointOptions(FolderOptions, FixedVectorOptions):
    """Where a pretrained network lies, and how its vector becomes an embedding."""

    path: str = Field(default="", description="folder that save_pretrained wrote; must be given")


def named_folders(run: RunConfig) -> dict[str, str]:
    """What in a run names a folder of whoever carries it out -> the folder."""
    parts: dict[str, PartSettings] = {f"encoder of {name}": part for name, part in run.model.encoders.items()}
    parts |= {"fusion": run.model.fusion, "head": run.model.head}
    # PRIVACY: by how the option is called, wherever it stands, so that no part can hide one from its owner.
    # test_no_folder_is_opened_that_its_owner_does_not_list
    return {
        f"{place} ({option})": str(value)
        for place, part in parts.items()
        for option, value in part.options.items()
        if value and (option == "path" or option.endswith("_path"))
    }


def with_digests(run: RunConfig) -> RunConfig:
    """The run with the digest of what lies in the folders it names, so that no site can use other weights by mistake.

    Additions to one network mean nothing to another, and no message carries weights that nobody trains.

    Args:
        run: with encoders that exist; what it says of a digest is left as it is.

    Raises:
        ModelError: no weights lie in such a folder.
    """
    # here and not above: fusion/language.py takes its checkpoints from this file
    from shared.model import fusion as _fusion  # noqa: F401  # enters the fusions in their registry

    encoders = {
        name: _with_digests(encoder, encoder_registry.get(encoder.name, takes=run.data.modalities[name].kind).options)
        for name, encoder in run.model.encoders.items()
    }
    fusion = _with_digests(run.model.fusion, fusion_registry.get(run.model.fusion.name).options)
    if encoders == run.model.encoders and fusion == run.model.fusion:
        return run
    return run.model_copy(update={"model": run.model.model_copy(update={"encoders": encoders, "fusion": fusion})})


def _with_digests(part: AnyPart, options: type[Settings]) -> AnyPart:
    told = {
        f"{before}{digest}": local_checkpoint(Path(str(part.options[f"{before}{folder}"]))).digest
        for before, fields in _fields(part, options).items()
        for folder, digest in _DIGESTS.items()
        if digest in fields and part.options.get(f"{before}{folder}") and not part.options.get(f"{before}{digest}")
    }
    return part.model_copy(update={"options": {**part.options, **told}}) if told else part


def _fields(part: PartSettings, options: type[Settings]) -> dict[str, Collection[str]]:
    """What stands before the names of a part's options -> the names that it takes there."""
    image = options.model_fields.get("image")
    if image is None:
        return {"": options.model_fields}
    name = str(part.options.get("image", image.default))
    inner = encoder_registry.get(name, takes="image").options
    return {"": options.model_fields, _OF_PICTURES: inner.model_fields}


def chosen_checkpoint(options: FolderOptions, *, of: str) -> Checkpoint:
    """The checkpoint in the folder that the options name.

    Args:
        of: the encoder, for errors.

    Raises:
        ModelError: no path is given, no weights lie there, or they are not those that the run asks for.
    """
    if not options.path:
        raise ModelError(f"{of}: path is not set; allowed: a folder that save_pretrained wrote")
    return checkpoint_at(options.path, digest=options.weights_digest)


def checkpoint_at(path: str, *, digest: str) -> Checkpoint:
    """The checkpoint in a folder, with the digest that it must have; an empty one allows any.

    Raises:
        ModelError: no weights lie there, or they are not those that the run asks for.
    """
    checkpoint = local_checkpoint(Path(path))
    if digest not in ("", checkpoint.digest):
        raise ModelError(
            f"{checkpoint.path}: its weights and settings have the digest {checkpoint.digest}; allowed: {digest}, "
            "which the run asks for. Put the same checkpoint there"
        )
    return checkpoint


def language_checkpoint(options: FolderOptions) -> Checkpoint:
    """The language model that the options name; MiniLM of its package where they name none.

    Raises:
        ModelError: it is not there, or not the one that the run asks for.
    """
    return checkpoint_at(options.path, digest=options.weights_digest) if options.path else minilm_checkpoint()
