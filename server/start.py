"""Start: the weights of an earlier run that a new one begins with, and what is known of how they were made.

in        model.start of a run: the earlier run's folder or its model.safetensors, and patterns of names
out       the tensors that are taken, and an Origin for the record of the new run
relies on shared/model/transfer.py for what fits; on the file's own word for which settings it belongs to
"""

import hashlib
from pathlib import Path
from typing import Literal

from server.aggregation import Weights
from server.checkpoint import read_state
from server.records import Origin
from server.settings import FILE_NAME, read_settings
from shared.config import RunConfig
from shared.errors import RunError
from shared.model.multimodal import MultimodalModel
from shared.model.transfer import taken
from shared.tensor_file import read_tensors

MODEL_FILE = "model.safetensors"


def read_start(model: MultimodalModel, *, run: RunConfig) -> tuple[Weights, Origin] | None:
    """What a run begins with of an earlier one; None where it begins anew.

    Raises:
        RunError: there is no such file, or it is damaged.
        ModelError: what the patterns name does not fit the model.
    """
    start = run.model.start
    if start is None:
        return None
    path = Path(start.path).expanduser()
    path = path / MODEL_FILE if path.is_dir() else path
    try:
        found, words = read_tensors(path)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except FileNotFoundError:
        raise RunError(
            f"model.start.path is {start.path}: no {MODEL_FILE} there; allowed: the folder of a run that has ended, or "
            "its model"
        ) from None
    except OSError as error:
        raise RunError(f"model.start.path: {path}: not readable ({error}); restore it, or name another run") from None
    weights = taken(found, model=model, modalities=run.modalities, parts=start.parts)
    return weights, _origin(path, file_digest=digest, run_digest=words.get("run_digest"), weights=weights)


def _origin(path: Path, *, file_digest: str, run_digest: str | None, weights: Weights) -> Origin:
    """What the earlier run's folder says; nothing where the file stands alone or belongs to other settings."""
    numbers = sum(value.numel() for value in weights.values())
    folder = path.parent
    settings = read_settings(folder) if (folder / FILE_NAME).is_file() else None
    if settings is None or settings.run.digest != run_digest:
        return Origin(file_digest=file_digest, run_digest=run_digest, parameters=numbers, tensors=tuple(weights))
    state = read_state(folder)
    return Origin(
        file_digest=file_digest,
        run_digest=run_digest,
        run_id=settings.run_id,
        parameters=numbers,
        tensors=tuple(weights),
        privacy=_privacy(settings.run, before=state.start if state is not None else None),
    )


def _privacy(run: RunConfig, *, before: Origin | None) -> Literal["private", "none", "unknown"]:
    """The weakest of a run and of all that it began with."""
    # PRIVACY: what an earlier run did without noise no later one makes up for.
    # test_a_start_from_a_run_that_was_not_private_is_told
    if run.privacy == "none":
        return "none"
    return "private" if before is None else before.privacy
