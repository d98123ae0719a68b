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

from client.gradient.engine import SampleModel, only_trained, rows_of
from shared.batch import Batch
from shared.privacy.mechanism import clipped_sum

# Per-sample gradients held at once: 32 MB. Models of 0.8 million weights take twice as long when 64 rows are held.
LARGEST_HELD = 8_000_000


class FunctionalEngine:
    """vmap of grad over at most `microbatch_size` samples at a time, fewer where the model is large."""

    def __init__(self, *, microbatch_size: int = 64) -> None:
        self.microbatch_size = microbatch_size

    def clipped_sum(
        self, model: nn.Module, batch: Batch, *, names: Sequence[str], clip_norm: float
    ) -> dict[str, Tensor]:
        """The promise of GradientEngine.clipped_sum."""
        parameters = dict(model.named_parameters())
        trained = {name: parameters[name].detach() for name in names}
        total = {name: torch.zeros_like(parameter) for name, parameter in trained.items()}
        sample_model = cast("SampleModel", model)

        def loss(weights: Mapping[str, Tensor], inputs: dict[str, Tensor], present: Tensor, target: Tensor) -> Tensor:
            rows = {name: value[None] for name, value in inputs.items()}
            outputs = functional_call(model, dict(weights), (rows, present[None]))
            return sample_model.loss(outputs, target[None]).sum()

        # Each sample draws dropout of its own.
        per_sample = vmap(grad(loss), in_dims=(None, 0, 0, 0), randomness="different")
        num_weights = sum(weights.numel() for weights in trained.values())
        size = max(1, min(self.microbatch_size, LARGEST_HELD // max(1, num_weights)))
        with torch.no_grad(), only_trained(model, ()):
            for start in range(0, len(batch), size):
                rows = rows_of(batch, start=start, stop=start + size)
                gradients = per_sample(trained, rows.inputs, rows.present, rows.targets)
                for name, clipped in clipped_sum(gradients, clip_norm=clip_norm).items():
                    total[name] += clipped
        return total
