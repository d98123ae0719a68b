"""Parts: layers that see each sample of a batch as several rows one after the other, as a clip's pictures are.

in        a module that is given [B * P, ...] where the batch has B samples
out       its layers, marked, so that the gradient engines know whose a row is
relies on the P rows of a sample lying together: row b * P + p is of sample b
"""

from typing import cast

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

_MARK = "parts_per_sample"


def parts_of(module: nn.Module) -> int:
    """Rows of each sample that a layer sees; 1 unless it was marked."""
    return cast("dict[str, int]", module.__dict__).get(_MARK, 1)


def mark_parts(module: nn.Module, *, parts: int) -> None:
    """Notes at each layer of a module that it sees so many rows of each sample."""
    for layer in module.modules():
        cast("dict[str, int]", layer.__dict__)[_MARK] = parts


def as_rows(values: Shaped[Tensor, "B P *shape"]) -> Shaped[Tensor, "B_P *shape"]:
    """The parts of each sample as rows, those of one sample together."""
    # PRIVACY: in this order, by which engines tell samples apart. test_parts_of_a_sample_are_clipped_together
    return torch.flatten(values, 0, 1)


def as_parts(rows: Shaped[Tensor, "B_P *shape"], *, parts: int) -> Shaped[Tensor, "B P *shape"]:
    """Rows of samples as each sample's parts."""
    return rows.reshape(-1, parts, *rows.shape[1:])
