"""Book-keeping: per-unit norms and the clipped sum from one backward pass, for layers whose gradients can be followed.

in        a model of linear, convolution, embedding and norm layers, a batch
out       the clipped sum; memory for some rows' activations and for gradients of layers that see several positions
relies on stacked.py, with a single site
"""

from collections.abc import Sequence

import torch
from torch import nn

from client.gradient.engine import num_units, rows_of
from client.gradient.layers import Rows
from client.gradient.stacked import Stacked, StackedClip
from shared.batch import Batch
from shared.errors import PrivacyError
from shared.privacy.mechanism import Clip, ClippedSum


class BookkeepingEngine:
    """One forward and one backward pass for as many rows as a bound on memory allows.

    A row's gradient is formed only where it is needed; `microbatch_size` counts for models that need some, and with
    `always` for those that need none.

    Source: Bu et al. 2023, arXiv:2210.00038.
    """

    def __init__(self, *, microbatch_size: int = 64, always: bool = False) -> None:
        self.microbatch_size, self.always = microbatch_size, always
        self._stacked: Stacked | None = None

    def clipped_sum(
        self, model: nn.Module, batch: Batch, *, names: Sequence[str], clip: Clip, rows_per_unit: int = 1
    ) -> ClippedSum:
        """The promise of GradientEngine.clipped_sum.

        Raises:
            ModelError: a trained parameter lies in a layer that cannot be followed, or is used from outside its layer.
            PrivacyError: the clip has a grid; sums of whole numbers need each row computed apart.
        """
        if clip.grid is not None:
            raise PrivacyError("clip.grid is set; allowed with the reference engine, which computes each row apart")
        stacked = self._stacked_of(model, names=names)
        unclipped, units = 0.0, num_units(batch, rows_per_unit=rows_per_unit)
        total = stacked.zeros()
        bound = StackedClip(torch.tensor([clip.norm], dtype=torch.float64, device=total.device), clip.per_layer)
        size = (
            stacked.units_at_once(batch, microbatch_size=self.microbatch_size, rows_per_unit=rows_per_unit)
            if units
            else 1
        )
        if self.always:
            size = min(size, max(1, self.microbatch_size // rows_per_unit))
        for start in range(0, units, size):
            stop = min(units, start + size)
            found = stacked.clipped_sums(
                None,
                rows_of(batch, start=start * rows_per_unit, stop=stop * rows_per_unit),
                rows=Rows(1, stop - start, rows_per_unit),
                real=torch.ones(1, stop - start, dtype=torch.bool, device=total.device),
                clip=bound,
                into=torch.empty_like(total) if start else total,
            )
            unclipped += float(found.unclipped)
            if start:
                total += found.sums
        return ClippedSum(sums=stacked.of_site(total), unclipped=unclipped)

    def _stacked_of(self, model: nn.Module, *, names: Sequence[str]) -> Stacked:
        """The one of the last batch, where it is of the same model."""
        if self._stacked is None or not self._stacked.is_of(model, names=names):
            self._stacked = Stacked(model, names=names)
        return self._stacked
