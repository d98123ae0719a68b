"""Reference: one backward pass a row; slow, and right for every model.

in        a model, a batch
out       the clipped sum that the other engines are compared with
relies on nothing but autograd and shared/privacy/mechanism.py
"""

from collections.abc import Sequence

import torch
from torch import nn

from client.gradient.engine import num_units, only_trained, rows_of, sample_losses
from shared.batch import Batch
from shared.privacy.mechanism import Clip, ClippedSum, clipped_sum, sum_of_none


class ReferenceEngine:
    """One forward and one backward pass a row, whatever unit it belongs to."""

    def clipped_sum(
        self, model: nn.Module, batch: Batch, *, names: Sequence[str], clip: Clip, rows_per_unit: int = 1
    ) -> ClippedSum:
        """The promise of GradientEngine.clipped_sum."""
        parameters = dict(model.named_parameters())
        total = sum_of_none({name: parameters[name] for name in names}, clip=clip)
        for unit in range(num_units(batch, rows_per_unit=rows_per_unit)):
            rows = range(unit * rows_per_unit, (unit + 1) * rows_per_unit)
            gradients = [self._gradient(model, _row(batch, row), names=names) for row in rows]
            means = {
                name: torch.stack(of_rows).mean(dim=0, keepdim=True)
                for name, of_rows in zip(names, zip(*gradients, strict=True), strict=True)
            }
            total.add(clipped_sum(means, clip=clip))
        return total

    def _gradient(self, model: nn.Module, row: Batch, *, names: Sequence[str]) -> tuple[torch.Tensor, ...]:
        parameters = dict(model.named_parameters())
        with only_trained(model, names):
            loss = sample_losses(model, row).sum()
            return torch.autograd.grad(
                loss, [parameters[name] for name in names], allow_unused=True, materialize_grads=True
            )


def _row(batch: Batch, row: int) -> Batch:
    """One row, in memory of its own: how a row lies in memory can change the last bits of what is computed from it."""
    view = rows_of(batch, start=row, stop=row + 1)
    return Batch(
        inputs={name: values.clone() for name, values in view.inputs.items()},
        present=view.present.clone(),
        targets=view.targets.clone(),
    )
