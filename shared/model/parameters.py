"""Parameters: what of a model trains and travels, decided in this one place.

in        a model from multimodal.py, and the modalities that a site has
out       the names of the parameters it trains and sends; or a ModelError for a model that cannot be trained by sample
relies on each part that serves one modality standing in a `PerModality` under that modality's name
"""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.parameter import is_lazy

from shared.errors import ModelError

_REFUSED: tuple[tuple[type[nn.Module], str, str], ...] = (
    (_BatchNorm, "mixes the samples of a batch", "nn.GroupNorm or nn.LayerNorm"),
    (nn.RNNBase, "hides its steps from per-sample gradients", "shared.model.encoders.audio.LinearLstm"),
    (nn.RNNCellBase, "hides its steps from per-sample gradients", "shared.model.encoders.audio.LinearLstm"),
    (nn.MultiheadAttention, "hides its steps from per-sample gradients", "shared.model.attention.TransformerBlock"),
    (_DropoutNd, "draws from a generator that all samples share", "model.dropout or model.modality_dropout"),
)


class PerModality(nn.ModuleDict):
    """Modules of which each serves one modality and is trained only where that modality is."""

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        taken = sorted(name for name in modules if hasattr(nn.ModuleDict, name) or name == "training")
        if taken:
            raise ModelError(f"modalities {taken} have names that torch needs for itself; allowed: any other name")
        super().__init__(dict(modules))


def apply_each(modules: nn.Module, embeddings: Float[Tensor, "B M D"]) -> Float[Tensor, "B M E"]:
    """Each modality's own module applied to its embedding.

    Args:
        modules: a PerModality in the order of M.
        embeddings: of all modalities.
    """
    each = [module(embeddings[:, place]) for place, module in enumerate(modules.children())]
    return torch.stack(each, dim=1)


def modality_of(model: nn.Module, name: str) -> str | None:
    """The modality that a parameter serves; None for one that serves all.

    Args:
        model: the whole model.
        name: as in `model.named_parameters()`.
    """
    module, steps = model, name.split(".")
    for step in steps[:-1]:
        if isinstance(module, PerModality):
            return step
        module = module.get_submodule(step)
    return None


def trainable_names(model: nn.Module, modalities: Sequence[str]) -> tuple[str, ...]:
    """Names of the parameters that a site with these modalities trains and sends, in the model's order.

    Left out: frozen parameters, and those of modalities the site lacks: noise would be all that it sent for them.
    """
    return tuple(
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and modality_of(model, name) in (None, *modalities)
    )


def check_per_sample(model: nn.Module) -> None:
    """Every trained layer of the model has an exact gradient for each sample.

    Raises:
        ModelError: names each layer that has none, and what to use in its place.
    """
    faults = [
        f"  {path}: {type(module).__name__} {why}; use {instead}"
        for path, module in model.named_modules()
        for kind, why, instead in _REFUSED
        if isinstance(module, kind)
    ]
    faults += [
        f"  {path}: {type(module).__name__} keeps running statistics; use nn.GroupNorm, or track_running_stats=False"
        for path, module in model.named_modules()
        if isinstance(module, _InstanceNorm) and module.track_running_stats
    ]
    owners: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if is_lazy(parameter):
            faults.append(f"  {name}: has no shape yet; use a layer whose sizes are given")
        elif owners.setdefault(id(parameter), name) != name:
            faults.append(f"  {name}: is the same tensor as {owners[id(parameter)]}; use a parameter for each")
    if faults:
        raise ModelError("\n".join(["the model has layers without exact per-sample gradients", *faults]))
