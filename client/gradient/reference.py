"""Reference: one backward pass a sample; slow, and right for every model.

in        a model, a batch
out       the clipped sum that the other engines are compared with
relies on nothing but autograd and shared/privacy/mechanism.py
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from client.gradient.engine import only_trained, rows_of, sample_losses
from shared.batch import Batch
from shared.privacy.mechanism import clipped_sum


class ReferenceEngine:
    """One forward and one backward pass a sample."""

    def clipped_sum(
        self, model: nn.Module, batch: Batch, *, names: Sequence[str], clip_norm: float
    ) -> dict[str, Tensor]:
        """The promise of GradientEngine.clipped_sum."""
        parameters = dict(model.named_parameters())
        chosen = [parameters[name] for name in names]
        total = {name: torch.zeros_like(parameter) for name, parameter in zip(names, chosen, strict=True)}
        for row in range(len(batch)):
            with only_trained(model, names):
                loss = sample_losses(model, rows_of(batch, start=row, stop=row + 1)).sum()
                gradients = torch.autograd.grad(loss, chosen, allow_unused=True, materialize_grads=True)
            rows = {name: gradient[None] for name, gradient in zip(names, gradients, strict=True)}
            for name, clipped in clipped_sum(rows, clip_norm=clip_norm).items():
                total[name] += clipped
        return total
