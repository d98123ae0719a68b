"""Choice: which engine computes the per-sample gradients of a model.

in        TrainingSettings.gradient_engine, a model
out       a GradientEngine
relies on all engines agreeing (tests/client/test_gradient.py); the choice moves time and memory, never the numbers
"""

import logging
from collections.abc import Sequence
from typing import Literal

from torch import nn

from client.gradient.bookkeeping import BookkeepingEngine
from client.gradient.engine import GradientEngine
from client.gradient.functional import FunctionalEngine
from client.gradient.reference import ReferenceEngine
from shared.batch import Batch
from shared.errors import ModelError
from shared.privacy.mechanism import Clip, ClippedSum

EngineName = Literal["auto", "reference", "hooks", "functional", "bookkeeping"]
log = logging.getLogger("motet.site")


def choose_engine(
    name: EngineName, model: nn.Module, *, microbatch_size: int = 64, always: bool = False
) -> GradientEngine:
    """The named engine; "auto" is "bookkeeping" where the model's layers allow it, else "functional".

    Opacus' own recurrent layers, which neither carries as fast, get "hooks".

    Args:
        microbatch_size: most rows whose gradients are held at once; fewer of a large model.
        always: whether models of which no gradient is held are passed so many rows at a time as well.
    """
    if name == "reference":
        return ReferenceEngine()
    if name == "hooks" or (name == "auto" and _has_opacus_recurrence(model)):
        from client.gradient.hooks import HooksEngine

        return HooksEngine(microbatch_size=microbatch_size)
    if name == "functional":
        return FunctionalEngine(microbatch_size=microbatch_size)
    bookkeeping = BookkeepingEngine(microbatch_size=microbatch_size, always=always)
    return bookkeeping if name == "bookkeeping" else AutoEngine(bookkeeping, microbatch_size=microbatch_size)


class AutoEngine:
    """Book-keeping, until it turns out that the model cannot be followed layer by layer: then torch.func.

    Which of the two it is depends on the model alone, never on the rows.
    """

    def __init__(self, bookkeeping: BookkeepingEngine, *, microbatch_size: int) -> None:
        self.engine: GradientEngine = bookkeeping
        self._other = FunctionalEngine(microbatch_size=microbatch_size)

    def clipped_sum(
        self, model: nn.Module, batch: Batch, *, names: Sequence[str], clip: Clip, rows_per_unit: int = 1
    ) -> ClippedSum:
        """The promise of GradientEngine.clipped_sum."""
        if self.engine is not self._other and clip.grid is None:
            try:
                return self.engine.clipped_sum(model, batch, names=names, clip=clip, rows_per_unit=rows_per_unit)
            except ModelError as error:
                log.info("gradients by torch.func instead of book-keeping: %s", error)
                self.engine = self._other
        return self._other.clipped_sum(model, batch, names=names, clip=clip, rows_per_unit=rows_per_unit)


def _has_opacus_recurrence(model: nn.Module) -> bool:
    """DPLSTM and its like: 29 ms a step by hooks against 41 by torch.func at batch 16, 49 against 61 at 64."""
    return any(type(module).__module__.startswith("opacus.layers.dp_rnn") for module in model.modules())
