"""Plain: the sum of the gradients of a batch in one backward pass, unclipped; for runs without privacy alone.

in        a model, a batch
out       the sum, as if no clip norm were there
relies on its caller asking for no clipping
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from client.gradient.engine import only_trained, sample_losses
from shared.batch import Batch
from shared.errors import PrivacyError


class PlainEngine:
    """Ordinary training: one backward pass of the summed loss."""

    def clipped_sum(
        self, model: nn.Module, batch: Batch, *, names: Sequence[str], clip_norm: float
    ) -> dict[str, Tensor]:
        """The unclipped sum.

        Raises:
            PrivacyError: a finite clip norm, which this engine would not keep.
        """
        # PRIVACY: never stands in for an engine that clips. test_the_plain_engine_refuses_to_clip
        if clip_norm != math.inf:
            raise PrivacyError(f"clip_norm is {clip_norm}; allowed: infinity, as the plain engine does not clip")
        parameters = dict(model.named_parameters())
        chosen = [parameters[name] for name in names]
        if not len(batch):
            return {name: torch.zeros_like(parameters[name], requires_grad=False) for name in names}
        with only_trained(model, names):
            loss = sample_losses(model, batch).sum()
            gradients = torch.autograd.grad(loss, chosen, allow_unused=True, materialize_grads=True)
        return dict(zip(names, gradients, strict=True))
