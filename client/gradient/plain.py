"""Plain: the sum of the gradients of a batch in one backward pass, unclipped; for runs without privacy alone.

in        a model, a batch
out       the sum, as if no clip norm were there
relies on its caller asking for no clipping
"""

import math
from collections.abc import Sequence

import torch
from torch import nn

from client.gradient.engine import num_units, only_trained, sample_losses
from shared.batch import Batch
from shared.errors import PrivacyError
from shared.privacy.mechanism import Clip, ClippedSum, sum_of_none


class PlainEngine:
    """Ordinary training: one backward pass of the summed loss."""

    def clipped_sum(
        self, model: nn.Module, batch: Batch, *, names: Sequence[str], clip: Clip, rows_per_unit: int = 1
    ) -> ClippedSum:
        """The unclipped sum over the units of their mean gradients.

        Raises:
            PrivacyError: a finite clip norm, which this engine would not keep.
        """
        # PRIVACY: never stands in for an engine that clips. test_the_plain_engine_refuses_to_clip
        if clip.norm != math.inf or clip.grid is not None:
            raise PrivacyError(f"clip is {clip}; allowed: an infinite norm, as the plain engine does not clip")
        parameters = dict(model.named_parameters())
        chosen = {name: parameters[name] for name in names}
        units = num_units(batch, rows_per_unit=rows_per_unit)
        if not units:
            return sum_of_none(chosen, clip=clip)
        with only_trained(model, names):
            loss = sample_losses(model, batch).sum() / rows_per_unit
            gradients = torch.autograd.grad(loss, list(chosen.values()), allow_unused=True, materialize_grads=True)
        return ClippedSum(sums=dict(zip(names, gradients, strict=True)), unclipped=float(units))
