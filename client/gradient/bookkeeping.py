"""Book-keeping: per-unit norms and the clipped sum from one backward pass, for layers whose gradients can be followed.

in        a model of linear, convolution, embedding and norm layers, a batch
out       the clipped sum; memory for some rows' activations and for gradients of layers that see several positions
relies on stacked.py, with a single site
"""

from collections.abc import Sequence

import torch
from torch import nn

from client.gradient.engine import num_units, rows_of, units_at_once
from client.gradient.layers import Rows
from client.gradient.stacked import Stacked, StackedClip
from shared.batch import Batch
from shared.errors import PrivacyError
from shared.privacy.mechanism import Clip, ClippedSum, sum_of_none


class BookkeepingEngine:
    """One forward and one backward pass for at most `microbatch_size` rows; a row's gradient only where it is needed.

    Source: Bu et al. 2023, arXiv:2210.00038.
    """

    def __init__(self, *, microbatch_size: int = 64) -> None:
        self.microbatch_size = microbatch_size

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
        parameters = dict(model.named_parameters())
        chosen = {name: parameters[name] for name in names}
        stacked, total = Stacked(model, names=names), sum_of_none(chosen, clip=clip)
        weights = stacked.gathered({name: value.detach() for name, value in chosen.items()})[None]
        bound = StackedClip(torch.tensor([clip.norm], dtype=torch.float64, device=weights.device), clip.per_layer)
        units = num_units(batch, rows_per_unit=rows_per_unit)
        size = units_at_once(stacked.num_weights, microbatch_size=self.microbatch_size, rows_per_unit=rows_per_unit)
        for start in range(0, units, size):
            stop = min(units, start + size)
            found = stacked.clipped_sums(
                weights,
                rows_of(batch, start=start * rows_per_unit, stop=stop * rows_per_unit),
                rows=Rows(1, stop - start, rows_per_unit),
                real=torch.ones(1, stop - start, dtype=torch.bool, device=weights.device),
                clip=bound,
            )
            sums = {name: value[0] for name, value in stacked.views(found.sums).items()}
            total.add(ClippedSum(sums=sums, unclipped=float(found.unclipped)))
        return total
