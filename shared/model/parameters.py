"""Parameters: what of a model trains and travels, decided in this one place.

in        a model from multimodal.py, and the modalities and tasks that a site has
out       the names of the parameters it trains and sends, and of the tensors that it is given; or a ModelError for a
          model that cannot be trained by sample
relies on each part that serves one modality standing in a `PerModality` under that modality's name, and each that
          serves one of several tasks in a `PerTask` under that task's
"""

import itertools
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
    (nn.RNNBase, "hides its steps from per-sample gradients", "shared.model.encoders.recurrent.LinearLstm"),
    (nn.RNNCellBase, "hides its steps from per-sample gradients", "shared.model.encoders.recurrent.LinearLstm"),
    (nn.MultiheadAttention, "hides its steps from per-sample gradients", "shared.model.attention.TransformerBlock"),
    (_DropoutNd, "draws from a generator that all samples share", "model.dropout or model.modality_dropout"),
)


class PerModality(nn.ModuleDict):
    """Modules of which each serves one modality and is trained only where that modality is."""

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        super().__init__(_with_free_names(modules, what="modalities"))


class PerTask(nn.ModuleDict):
    """Heads of which each answers one of several tasks and is trained only where that task has answers."""

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        super().__init__(_with_free_names(modules, what="tasks"))

    def forward(self, fused: Float[Tensor, "B D"]) -> Float[Tensor, "B K"]:
        """The outputs of all tasks side by side, in their order."""
        return torch.cat([head(fused) for head in self.values()], dim=1)


def _with_free_names(modules: Mapping[str, nn.Module], *, what: str) -> dict[str, nn.Module]:
    taken = sorted(name for name in modules if hasattr(nn.ModuleDict, name) or name == "training")
    if taken:
        raise ModelError(f"{what} {taken} have names that torch needs for itself; allowed: any other name")
    return dict(modules)


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
    return _place_in(model, name, kind=PerModality)


def task_of_parameter(model: nn.Module, name: str) -> str | None:
    """The task that a parameter serves; None for one that serves all of several, or the only one.

    Args:
        model: the whole model.
        name: as in `model.named_parameters()`.
    """
    return _place_in(model, name, kind=PerTask)


def _place_in(model: nn.Module, name: str, *, kind: type[nn.Module]) -> str | None:
    module, steps = model, name.split(".")
    for step in steps[:-1]:
        if isinstance(module, kind):
            return step
        module = module.get_submodule(step)
    return None


def trainable_names(model: nn.Module, modalities: Sequence[str], tasks: Sequence[str] | None = None) -> tuple[str, ...]:
    """Names of the parameters that a site with these modalities and tasks trains and sends, in the model's order.

    Left out: frozen parameters, and those of modalities or tasks the site lacks: noise would be all that it sent for
    them.

    Args:
        tasks: of several tasks, those that the site has answers to; None: all.
    """
    return tuple(
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
        and modality_of(model, name) in (None, *modalities)
        and (tasks is None or task_of_parameter(model, name) in (None, *tasks))
    )


def given_names(model: nn.Module, modalities: Sequence[str]) -> tuple[str, ...]:
    """Names of the tensors that a site with these modalities is sent and nobody trains, in the model's order.

    A module lists those of its own, parameters and buffers, in an attribute `given`: they are the same at all sites, as
    the server's data or an earlier run's weights make them, and what the settings and the seed build is no substitute.

    Raises:
        ModelError: a name in such a list is no tensor of the module, trains, or is of another type than float32.
    """
    named = {f"{path}.{name}" if path else name for path, module in model.named_modules() for name in _given_by(module)}
    if not named:
        return ()
    tensors = dict(itertools.chain(model.named_parameters(), model.named_buffers()))
    faults = [f"  {name}: {why}" for name in sorted(named) if (why := _why_not_given(tensors.get(name)))]
    if faults:
        raise ModelError("\n".join(["the model names tensors as given that cannot be", *faults]))
    return tuple(name for name in tensors if name in named and modality_of(model, name) in (None, *modalities))


def tensor_of(model: nn.Module, name: str) -> Tensor:
    """The parameter or buffer of a name.

    Raises:
        AttributeError: there is neither.
    """
    path, _, last = name.rpartition(".")
    found = getattr(model.get_submodule(path), last)
    if not isinstance(found, Tensor):
        raise AttributeError(f"{name} is no tensor of the model")
    return found


def _given_by(module: nn.Module) -> tuple[str, ...]:
    names: tuple[str, ...] = getattr(module, "given", ())
    return names


def _why_not_given(tensor: Tensor | None) -> str | None:
    if tensor is None:
        return "there is no parameter or buffer of that name"
    if tensor.requires_grad:
        return "it trains; allowed: what has requires_grad false"
    return None if tensor.dtype == torch.float32 else f"it is of type {tensor.dtype}; allowed: float32"


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
