"""Engine: the one interface of all ways to a clipped sum, and what it asks of a model.

in        nothing; reference.py, hooks.py and functional.py implement it
out       GradientEngine, SampleModel
relies on nothing
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Protocol, cast, runtime_checkable

from jaxtyping import Float
from torch import Tensor, nn

from shared.batch import Batch
from shared.errors import ModelError, PrivacyError
from shared.privacy.mechanism import Clip, ClippedSum

# Per-unit gradients held at once: 32 MB. Models of 0.8 million weights take twice as long when 64 rows are held.
LARGEST_HELD = 8_000_000


@runtime_checkable
class SampleModel(Protocol):
    """A torch module that gives one loss a sample."""

    def __call__(self, inputs: dict[str, Tensor], present: Tensor) -> Tensor:
        """Outputs [B, K] for B samples."""
        ...

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Loss [B], each entry from its own row alone."""
        ...

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Every parameter under its dotted name."""
        ...


@runtime_checkable
class GradientEngine(Protocol):
    """Sums the clipped gradients of the units of a batch."""

    def clipped_sum(
        self, model: nn.Module, batch: Batch, *, names: Sequence[str], clip: Clip, rows_per_unit: int = 1
    ) -> ClippedSum:
        """Sum over the units of the gradient of their mean loss, each clipped.

        The norm is taken over all named parameters jointly. A gradient that is not finite contributes exactly zero, an
        empty batch gives exact zeros. The model comes back as it was.

        Args:
            names: the parameters that are trained.
            rows_per_unit: so many neighbouring rows of the batch belong to one unit.

        Raises:
            PrivacyError: the rows do not come in whole units.
        """
        ...


def num_units(batch: Batch, *, rows_per_unit: int) -> int:
    """How many units the rows of a batch belong to.

    Raises:
        PrivacyError: a unit's rows are not all there.
    """
    units, rest = divmod(len(batch), rows_per_unit)
    if rest:
        raise PrivacyError(f"a batch of {len(batch)} rows; allowed: a multiple of {rows_per_unit}, the rows of a unit")
    return units


def sample_losses(model: nn.Module, batch: Batch) -> Float[Tensor, "B"]:
    """Loss of each sample."""
    sample_model = cast("SampleModel", model)
    return sample_model.loss(sample_model(batch.inputs, batch.present), batch.targets)


def rows_of(batch: Batch, *, start: int, stop: int) -> Batch:
    """Some neighbouring rows, without a copy."""
    return Batch(
        inputs={name: values[start:stop] for name, values in batch.inputs.items()},
        present=batch.present[start:stop],
        targets=batch.targets[start:stop],
    )


@contextlib.contextmanager
def only_trained(model: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """While it lasts the named parameters and no others ask for a gradient."""
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    unknown = sorted(set(names) - set(before))
    if unknown:
        raise ModelError(f"parameters {unknown} are not in the model; allowed: {sorted(before)}")
    try:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in names)
        yield
    finally:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(before[name])


def units_at_once(num_weights: int, *, microbatch_size: int, rows_per_unit: int) -> int:
    """How many units' gradients to hold together, whatever the batch: at most `microbatch_size` rows and 32 MB.

    Were the whole batch held, a server could size a model so that a site's process ends for want of memory at one
    record more and not at one less, which no noise covers.
    """
    # PRIVACY: memory follows the microbatch, not how many were drawn. test_no_engine_holds_more_than_a_microbatch
    return max(1, min(microbatch_size // rows_per_unit, LARGEST_HELD // max(1, num_weights)))
