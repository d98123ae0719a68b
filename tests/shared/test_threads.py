"""Threads: which operations torch shares between them."""

from collections.abc import Iterator

import pytest
import torch

from shared.threads import FEW_NUMBERS, threads_for


@pytest.fixture(autouse=True)
def _two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_few_numbers_are_computed_on_one_thread() -> None:
    with threads_for(FEW_NUMBERS):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2


def test_many_numbers_are_shared() -> None:
    with threads_for(FEW_NUMBERS + 1):
        assert torch.get_num_threads() == 2


def test_threads_are_as_before_after_an_error() -> None:
    with pytest.raises(RuntimeError), threads_for(1):
        raise RuntimeError
    assert torch.get_num_threads() == 2
