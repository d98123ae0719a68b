"""Transfer: what of a model rests or stays at the sites, and the weights of an earlier run that it begins with.

in        a model as the settings and the seed make it; patterns of names; a file of an earlier run
out       the same model with parameters frozen, named as personal, or replaced; or a ModelError that says what fits
relies on parameters.py for what a module is given; patterns are those of a shell: "encoders.image.*"
"""

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import cast

import torch
from torch import Tensor, nn

from shared.config import ModelSettings
from shared.errors import ModelError
from shared.model.parameters import given_names, tensor_of, trainable_names

_MOST_NAMED = 40


def apply_patterns(model: nn.Module, settings: ModelSettings) -> None:
    """Freezes what `model.freeze` names, and notes in `given` and `personal` what travels otherwise than an update.

    What was frozen so is given: its weights may come from an earlier run, and no site could make them.

    Raises:
        ModelError: a pattern hits nothing, or nothing is left that sites train in common.
    """
    parameters = dict(model.named_parameters())
    trained = [name for name, parameter in parameters.items() if parameter.requires_grad]
    frozen = hits(settings.freeze, names=parameters, field="model.freeze")
    resting = tuple(name for name in trained if name in frozen)
    for name in resting:
        parameters[name].requires_grad = False
    left = [name for name in trained if name not in frozen]
    personal = hits(settings.personal, names=left, field="model.personal")
    if not set(left) - personal:
        raise ModelError(
            f"model.freeze and model.personal leave nothing that sites train in common; allowed: patterns that spare "
            f"one of {_named(trained)}"
        )
    noted = cast("dict[str, object]", model.__dict__)
    noted["given"], noted["personal"] = resting, tuple(name for name in left if name in personal)


def taken(
    found: Mapping[str, Tensor], *, model: nn.Module, modalities: Sequence[str], parts: Sequence[str]
) -> dict[str, Tensor]:
    """Of an earlier run's tensors those that the patterns name, each of which this model trains or is given.

    Heads are replaced by leaving them out: what no pattern names begins as the settings and the seed make it.

    Args:
        found: of the earlier run.
        model: of this one.
        modalities: of this run.
        parts: patterns.

    Raises:
        ModelError: a pattern hits nothing, or a tensor that it names does not fit; every fault, and what does fit.
    """
    chosen = hits(parts, names=found, field="model.start.parts")
    carried = {*trainable_names(model, modalities), *given_names(model, modalities)}
    tensors = {name: tensor_of(model, name) for name in carried}
    faults = {name: why for name in found if (why := _why_not_taken(found[name], tensors.get(name)))}
    told = [f"  {name}: {faults[name]}" for name in found if name in chosen and name in faults]
    if told:
        fitting = [name for name in found if name not in faults]
        raise ModelError(
            "\n".join(
                [
                    "model.start.parts names tensors of the earlier run that do not fit this one",
                    *told[:_MOST_NAMED],
                    f"What fits: {_named(fitting) or 'none of them'}. Name only such in model.start.parts",
                ]
            )
        )
    return {name: found[name].clone() for name in found if name in chosen}


def _why_not_taken(came: Tensor, own: Tensor | None) -> str | None:
    if own is None:
        return "this model trains no such parameter and is given none"
    if came.shape != own.shape:
        return f"is {list(came.shape)}, and this model's is {list(own.shape)}"
    is_sound = came.dtype == torch.float32 and bool(came.isfinite().all())
    return None if is_sound else "holds numbers that are not finite, or no float32"


def hits(patterns: Sequence[str], *, names: Iterable[str], field: str) -> frozenset[str]:
    """The names that any of the patterns matches.

    Raises:
        ModelError: a pattern matches none of them, which is a slip of the pen or meant for another model.
    """
    known = tuple(names)
    found = {pattern: [name for name in known if fnmatchcase(name, pattern)] for pattern in patterns}
    idle = [pattern for pattern, matched in found.items() if not matched]
    if idle:
        raise ModelError(f"{field}: {idle} match no name; there are: {_named(known)}")
    return frozenset(name for matched in found.values() for name in matched)


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more
