"""Row: tensors that lie one behind the other in memory, as the one flat tensor that they are.

in        the tensors of an update, in the order in which they lie
out       one flat tensor of all their numbers, a view wherever it can be one
relies on nothing

One check or one sum over a row costs what it costs over the smallest of its tensors, and not once for each of them.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Shaped
from torch import Tensor


def view_of_all(tensors: Sequence[Tensor]) -> Shaped[Tensor, "P"] | None:
    """All numbers of the tensors as one flat view; None where they are not of one type and one behind the other."""
    if not tensors:
        return None
    first = tensors[0]
    dtype, size, start, address = first.dtype, first.element_size(), first.storage_offset(), first.data_ptr()
    place = start
    for tensor in tensors:
        # both the place in its memory and the address: two tensors that agree in the two share that memory
        if tensor.data_ptr() != address or tensor.storage_offset() != place or tensor.dtype != dtype:
            return None
        if not tensor.is_contiguous():
            return None
        count = tensor.numel()
        place += count
        address += count * size
    return first.as_strided((place - start,), (1,), start)


def matrix_of_all(rows: Sequence[Tensor]) -> Shaped[Tensor, "K P"] | None:
    """Rows of one memory as the matrix whose rows they are; None where they do not lie evenly spaced in it."""
    first, apart = rows[0], 0 if len(rows) == 1 else rows[1].storage_offset() - rows[0].storage_offset()
    if len(rows) > 1 and apart < len(first):
        return None
    for number, row in enumerate(rows):
        place, address = number * apart, number * apart * first.element_size()
        # as above, both: rows that agree in the two share that memory
        if row.storage_offset() != first.storage_offset() + place or row.data_ptr() != first.data_ptr() + address:
            return None
        if row.dtype != first.dtype or len(row) != len(first) or not row.is_contiguous():
            return None
    return first.as_strided((len(rows), len(first)), (apart, 1), first.storage_offset())


def row_of_all(tensors: Sequence[Tensor]) -> Shaped[Tensor, "P"]:
    """All numbers of the tensors, of which there is at least one, one behind the other; a copy where it has to be."""
    row = view_of_all(tensors)
    return row if row is not None else torch.cat([tensor.reshape(-1) for tensor in tensors])
