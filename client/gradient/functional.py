"""Functional: per-sample gradients by torch.func, a few rows at a time, clipped and summed at once.

in        a model that torch.func can carry, a batch
out       the clipped sum; memory for microbatch_size gradients, whatever the batch
relies on layers without batch statistics and without control flow that depends on values
"""

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from client.gradient.engine import SampleModel, num_units, only_trained, rows_of, units_at_once
from shared.batch import Batch
from shared.privacy.mechanism import Clip, ClippedSum, clipped_sum, sum_of_none


class FunctionalEngine:
    """vmap of grad over at most `microbatch_size` rows at a time, fewer where the model is large."""

    def __init__(self, *, microbatch_size: int = 64) -> None:
        self.microbatch_size = microbatch_size

    def clipped_sum(
        self, model: nn.Module, batch: Batch, *, names: Sequence[str], clip: Clip, rows_per_unit: int = 1
    ) -> ClippedSum:
        """The promise of GradientEngine.clipped_sum."""
        parameters = dict(model.named_parameters())
        trained = {name: parameters[name].detach() for name in names}
        total = sum_of_none(trained, clip=clip)
        sample_model = cast("SampleModel", model)

        def loss(weights: Mapping[str, Tensor], inputs: dict[str, Tensor], present: Tensor, targets: Tensor) -> Tensor:
            outputs = functional_call(model, dict(weights), (inputs, present))
            return sample_model.loss(outputs, targets).mean()

        def by_unit(values: Tensor) -> Tensor:
            return values.reshape(-1, rows_per_unit, *values.shape[1:])

        # Each unit draws dropout of its own.
        per_unit = vmap(grad(loss), in_dims=(None, 0, 0, 0), randomness="different")
        units = num_units(batch, rows_per_unit=rows_per_unit)
        num_weights = sum(weights.numel() for weights in trained.values())
        size = units_at_once(num_weights, microbatch_size=self.microbatch_size, rows_per_unit=rows_per_unit)
        with torch.no_grad(), only_trained(model, ()):
            for start in range(0, units, size):
                rows = rows_of(batch, start=start * rows_per_unit, stop=(start + size) * rows_per_unit)

                gradients = per_unit(
                    trained,
                    {name: by_unit(values) for name, values in rows.inputs.items()},
                    by_unit(rows.present),
                    by_unit(rows.targets),
                )
                total.add(clipped_sum(gradients, clip=clip))
        return total
