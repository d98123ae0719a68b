"""Hooks: per-sample gradients by Opacus' hooks on each layer, one backward pass for some rows at a time.

in        a model of layers that Opacus knows, a batch
out       the clipped sum; memory for microbatch_size gradients, whatever the batch
relies on every trained parameter lying in a layer that is called once and as a layer: weights used from outside their
          layer get a wrong gradient without any error (tied weights), which preflight has to find
"""

import warnings
from collections.abc import Sequence

from opacus.grad_sample import GradSampleModule
from torch import Tensor, nn

from client.gradient.engine import num_units, only_trained, rows_of, sample_losses, units_at_once
from shared.batch import Batch
from shared.errors import ModelError
from shared.privacy.mechanism import Clip, ClippedSum, clipped_sum, sum_of_none

ADVICE = 'Opacus has no per-sample gradient for a layer of this model; set gradient_engine = "functional"'


class HooksEngine:
    """Opacus' GradSampleModule, put on for at most `microbatch_size` rows and taken off again."""

    def __init__(self, *, microbatch_size: int = 64) -> None:
        self.microbatch_size = microbatch_size

    def clipped_sum(
        self, model: nn.Module, batch: Batch, *, names: Sequence[str], clip: Clip, rows_per_unit: int = 1
    ) -> ClippedSum:
        """The promise of GradientEngine.clipped_sum.

        Raises:
            ModelError: Opacus has no per-sample gradient for a layer of the model.
        """
        parameters = dict(model.named_parameters())
        total = sum_of_none({name: parameters[name] for name in names}, clip=clip)
        num_weights = sum(parameters[name].numel() for name in names)
        size = units_at_once(num_weights, microbatch_size=self.microbatch_size, rows_per_unit=rows_per_unit)
        for start in range(0, num_units(batch, rows_per_unit=rows_per_unit), size):
            rows = rows_of(batch, start=start * rows_per_unit, stop=(start + size) * rows_per_unit)
            gradients = self._gradients_of(model, rows, names=names)
            if rows_per_unit > 1:
                gradients = {
                    name: each.reshape(-1, rows_per_unit, *each.shape[1:]).mean(dim=1)
                    for name, each in gradients.items()
                }
            total.add(clipped_sum(gradients, clip=clip))
        return total

    def _gradients_of(self, model: nn.Module, batch: Batch, *, names: Sequence[str]) -> dict[str, Tensor]:
        """Gradients of every row, parameter -> [B, *shape]."""
        parameters = dict(model.named_parameters())
        with only_trained(model, names):
            try:
                wrapped = GradSampleModule(model, batch_first=True, loss_reduction="sum")
            except (NotImplementedError, ValueError) as error:
                raise ModelError(f"{ADVICE}: {error}") from None
            try:
                with warnings.catch_warnings():
                    # A first layer's input asks for no gradient; its weights' gradients are complete all the same.
                    warnings.filterwarnings("ignore", message="Full backward hook is firing")
                    sample_losses(model, batch).sum().backward()  # type: ignore[no-untyped-call]
                return {name: _gradients(parameters[name], len(batch)) for name in names}
            except AttributeError as error:
                # Opacus' hooks read only tensors; a layer with weights of its own that is given a dict breaks them.
                raise ModelError(f"{ADVICE}: {error}") from None
            finally:
                wrapped.to_standard_module()
                for parameter in parameters.values():
                    parameter.grad = None


def _gradients(parameter: nn.Parameter, num_samples: int) -> Tensor:
    """Per-sample gradients [B, *shape] that Opacus left at a parameter; zeros where the loss did not reach it."""
    found = getattr(parameter, "grad_sample", None)
    if found is None:
        return parameter.detach().new_zeros(num_samples, *parameter.shape)
    if not isinstance(found, Tensor):
        raise ModelError(f"{ADVICE}: a layer is called more than once in a pass")
    # PRIVACY: a layer that folds tokens into rows would have each token clipped as if it were a sample.
    # test_rows_that_are_not_samples_are_refused_by_the_hooks_engine
    if len(found) != num_samples:
        raise ModelError(f"{ADVICE}: a layer sees {len(found)} rows where the batch has {num_samples} samples")
    return found.detach()
