"""Checkpoint options: which folder of this machine a run's encoder comes from.

in        the options of an encoder that names a folder
out       the Checkpoint there, whose weights are those that the run asks for
relies on client/permission.py, which lets a run name no folder but those that the owner lists
"""

from pathlib import Path

from pydantic import Field

from shared.config import RunConfig
from shared.errors import ModelError
from shared.model.encoders.projection import FixedVectorOptions
from shared.model.registry import encoder_registry
from shared.preprocess.pretrained import Checkpoint, local_checkpoint


class CheckpointOptions(FixedVectorOptions):
    """Where a pretrained network lies, and how its vector becomes an embedding."""

    path: str = Field(default="", description="folder that save_pretrained wrote; must be given")
    weights_digest: str = Field(
        default="", description="SHA-256 that the folder must have, so that all machines use the same; empty: any"
    )


def with_digests(run: RunConfig) -> RunConfig:
    """The run with the digest of what lies in the folders it names, so that no site can use other weights by mistake.

    Additions to one network mean nothing to another, and no message carries weights that nobody trains.

    Args:
        run: with encoders that exist; what it says of a digest is left as it is.

    Raises:
        ModelError: no weights lie in such a folder.
    """
    encoders = dict(run.model.encoders)
    for name, encoder in encoders.items():
        options = encoder_registry.get(encoder.name, takes=run.data.modalities[name].kind).options
        if issubclass(options, CheckpointOptions) and not encoder.options.get("weights_digest"):
            digest = local_checkpoint(Path(str(encoder.options.get("path", "")))).digest
            told = {**encoder.options, "weights_digest": digest}
            encoders[name] = encoder.model_copy(update={"options": told})
    if encoders == run.model.encoders:
        return run
    return run.model_copy(update={"model": run.model.model_copy(update={"encoders": encoders})})


def chosen_checkpoint(options: CheckpointOptions, *, of: str) -> Checkpoint:
    """The checkpoint in the folder that the options name.

    Args:
        of: the encoder, for errors.

    Raises:
        ModelError: no path is given, no weights lie there, or they are not those that the run asks for.
    """
    if not options.path:
        raise ModelError(f"{of}: path is not set; allowed: a folder that save_pretrained wrote")
    checkpoint = local_checkpoint(Path(options.path))
    if options.weights_digest not in ("", checkpoint.digest):
        raise ModelError(
            f"{checkpoint.path}: its weights and settings have the digest {checkpoint.digest}; allowed: "
            f"{options.weights_digest}, which the run asks for. Put the same checkpoint there"
        )
    return checkpoint
