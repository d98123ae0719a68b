"""A row is all numbers of some tensors: a view where they are neighbours, a copy everywhere else."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from shared.row import matrix_of_all, row_of_all, view_of_all

SHAPES = ((2, 3), (4,), (), (1, 5))


def neighbours(*, start: int = 7) -> list[Tensor]:
    """Views of one stretch of memory, one behind the other."""
    memory, found = torch.arange(64.0), []
    for shape in SHAPES:
        size = torch.Size(shape).numel()
        found.append(memory[start : start + size].view(shape))
        start += size
    return found


def plain(tensors: list[Tensor]) -> list[float]:
    return [float(value) for tensor in tensors for value in tensor.flatten()]


def test_neighbours_are_one_view_without_a_copy() -> None:
    tensors = neighbours()
    row = view_of_all(tensors)
    assert row is not None
    assert row.tolist() == plain(tensors)
    row.zero_()
    assert not any(tensor.any() for tensor in tensors)


def test_whatever_does_not_lie_so_is_copied_and_never_misread() -> None:
    first, second, third, fourth = neighbours()
    memory = torch.arange(16.0)
    apart = {
        "a gap": [first, third],
        "another order": [second, first, third],
        "another memory": [first, second.clone(), third],
        "another memory that goes on at the same place": [first, *neighbours()[1:]],
        "columns": [torch.arange(12.0).view(3, 4)[:, :2], second],
        "turned": [torch.arange(6.0).view(2, 3).t(), second],
        "turned, and the next one behind it": [memory[:6].view(2, 3).t(), memory[6:10]],
        "the same one twice": [second, second],
    }
    for name, tensors in apart.items():
        assert view_of_all(tensors) is None, name
        row = row_of_all(tensors)
        assert row.tolist() == plain(tensors), name
        row.zero_()
        assert any(bool(tensor.any()) for tensor in tensors), name
    assert view_of_all([memory[:6], memory.view(torch.int32)[6:10]]) is None
    assert view_of_all([]) is None
    assert view_of_all([first, second, third, fourth]) is not None


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 6)), min_size=1, max_size=5))
def test_a_row_of_any_pieces_of_one_memory_holds_their_numbers(places: list[tuple[int, int]]) -> None:
    memory = torch.arange(32.0)
    tensors = [memory[start : start + length] for start, length in places]
    assert row_of_all(tensors).tolist() == plain(tensors)


@given(num=st.integers(1, 5), width=st.integers(1, 4), gap=st.integers(0, 3), start=st.integers(0, 2))
def test_rows_evenly_spaced_in_one_memory_are_a_matrix_of_that_memory(
    num: int, width: int, gap: int, start: int
) -> None:
    memory = torch.arange(100.0)
    rows = [memory[start + number * (width + gap) :][:width] for number in range(num)]
    matrix = matrix_of_all(rows)

    assert matrix is not None
    assert torch.equal(matrix, torch.stack(rows))
    matrix.zero_()
    assert not any(row.any() for row in rows)


def test_other_rows_are_no_matrix() -> None:
    memory, other = torch.arange(100.0), torch.arange(100.0)
    for rows in (
        [memory[:4], other[4:8]],
        [memory[:4], memory[4:8], memory[9:13]],
        [memory[:4], memory[2:6]],
        [memory[4:8], memory[:4]],
        [memory[:4], memory[4:7]],
        [memory[:8:2], memory[8:16:2]],
        [memory[:4], memory.double()[4:8]],
    ):
        assert matrix_of_all(rows) is None
