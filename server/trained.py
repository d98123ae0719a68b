"""Trained: the model that a run kept, built again, with what is known of it.

in        the folder of a run that has ended
out       TrainedModel, read by prediction.py, export.py and service/
relies on server.json for the settings and on model.safetensors, which says which settings it belongs to
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from server.settings import ServerSettings, read_settings
from shared.config import RunConfig
from shared.errors import RunError
from shared.model.multimodal import MultimodalModel, build_model
from shared.model.registry import load_extensions
from shared.tensor_file import Named, read_tensors

MODEL_FILE = "model.safetensors"


@dataclass(frozen=True)
class TrainedModel:
    """A run's model with the weights that were kept, in evaluation mode."""

    folder: Path
    settings: ServerSettings
    model: MultimodalModel

    @property
    def run(self) -> RunConfig:
        """The settings that it was trained with."""
        return self.settings.run


def open_trained(folder: Path) -> TrainedModel:
    """The model of a run that has ended.

    The files of further parts that the run names are run, as they were for training.

    Raises:
        RunError: no run folder, the run has not ended, or its weights are damaged or of other settings.
        ModelError: the model cannot be built here, for instance because public weights are missing.
    """
    settings = read_settings(folder)
    path = folder / MODEL_FILE
    if not path.is_file():
        raise RunError(
            f"{folder}: no {MODEL_FILE} in it, so the run has not ended; go on with: {_go_on(settings, folder)}"
        )
    for extension in settings.extensions:
        load_extensions(extension)
    weights = _read_weights(path, run_digest=settings.run.digest)
    model = build_model(settings.run)
    _put_in(model, weights, place=path)
    return TrainedModel(folder=folder, settings=settings, model=model.eval())


def _read_weights(path: Path, *, run_digest: str) -> Named:
    try:
        weights, words = read_tensors(path)
    except OSError as error:
        raise RunError(f"{path}: not readable ({error}); restore it from a backup or run again") from None
    told = words.get("run_digest")
    if told != run_digest:
        raise RunError(
            f"{path}: its weights belong to settings {str(told)[:12]}, and server.json holds {run_digest[:12]}; put "
            "back the file that the run wrote. Where nobody changed it, another version of Motet made it: use that"
        )
    return weights


def _put_in(model: MultimodalModel, weights: Named, *, place: Path) -> None:
    """Every weight that the run kept into the model.

    Raises:
        RunError: a name or shape is not the model's, or a weight that trains is not there.
    """
    tensors = dict([*model.named_parameters(), *model.named_buffers()])
    needed = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    faults = [f"  {name}: missing" for name in sorted(needed - weights.keys())]
    faults += [f"  {name}: not in the model" for name in sorted(weights.keys() - tensors.keys())]
    faults += [
        f"  {name}: is {list(value.shape)}; allowed: {list(tensors[name].shape)}"
        for name, value in sorted(weights.items())
        if name in tensors and value.shape != tensors[name].shape
    ]
    faults += [f"  {name}: NaN or infinite" for name, value in sorted(weights.items()) if not value.isfinite().all()]
    if faults:
        raise RunError("\n".join([f"{place}: {len(faults)} weights do not fit the run's model", *faults[:20]]))
    with torch.no_grad():
        for name, value in weights.items():
            tensors[name].copy_(value)


def _go_on(settings: ServerSettings, folder: Path) -> str:
    return "flwr run" if settings.engine == "deployment" else f"motet simulate --resume {folder}"
