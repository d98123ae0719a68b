"""Exchange: which tensors of a model go to one site, which come back, and which stay there.

in        a model, and what the site says in public: its modalities, its tasks, what it does not train
out       Exchange, made alike by the server that plans a round and by the site that answers it
relies on parameters.py for what trains and what is given, on transfer.py for what the run keeps at the sites
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from shared.model.parameters import given_names, trainable_names


@dataclass(frozen=True)
class Exchange:
    """Names of what one site and the server exchange, each in the model's order."""

    updated: tuple[str, ...]
    """in every request, and, changed, in every update"""
    given: tuple[str, ...]
    """in every request; the site does not train them"""
    personal: tuple[str, ...] = ()
    """trained at the site and kept there; a request holds the weights that they began with"""

    @property
    def sent(self) -> tuple[str, ...]:
        """All that a request holds."""
        return (*self.updated, *self.personal, *self.given)


def exchange_of(
    model: nn.Module, modalities: Sequence[str], *, tasks: Sequence[str] | None = None, frozen: Sequence[str] = ()
) -> Exchange:
    """What a site is sent, and sends.

    Args:
        model: of the run; its `personal` names what each site keeps to itself.
        modalities: that the site and the run share.
        tasks: of several, those that the site has answers to; None: all.
        frozen: patterns of the names of parameters that this site does not train, though others do.

    Raises:
        ModelError: as `given_names`.
    """
    trainable = trainable_names(model, modalities, tasks)
    kept = frozenset[str](getattr(model, "personal", ()))
    resting = {name for name in trainable if any(fnmatchcase(name, pattern) for pattern in frozen)}
    return Exchange(
        updated=tuple(name for name in trainable if name not in kept | resting),
        # what others train, and this site does not, it needs all the same
        given=(*(name for name in trainable if name in resting - kept), *given_names(model, modalities)),
        personal=tuple(name for name in trainable if name in kept - resting),
    )
