"""Tensor files: what was put in comes out, words too; a file that is none is told as one that cannot be read."""

from pathlib import Path

import pytest
import torch

from shared.tensor_file import as_bytes, read_tensors


def test_what_was_put_in_comes_out_with_the_words_about_it(tmp_path: Path) -> None:
    whole = torch.arange(6.0).view(2, 3)
    tensors = {"whole": whole, "turned": whole.T, "counts": torch.tensor([3, -1]), "none": torch.zeros(0, 2)}
    (tmp_path / "a").write_bytes(as_bytes(tensors, words={"run_digest": "é1"}))

    found, words = read_tensors(tmp_path / "a")

    assert words == {"run_digest": "é1"}
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert all(found[name].dtype == tensors[name].dtype for name in tensors)


def test_nothing_is_said_of_tensors_unless_it_was_asked(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(as_bytes({"w": torch.ones(1)}))

    assert read_tensors(tmp_path / "a")[1] == {}


@pytest.mark.parametrize("content", [b"", b"torn", as_bytes({"w": torch.ones(9)})[:-1]])
def test_a_file_that_is_torn_or_another_cannot_be_read(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a").write_bytes(content)

    with pytest.raises(OSError, match="no file of tensors"):
        read_tensors(tmp_path / "a")


def test_a_file_that_is_not_there_is_told_as_such(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_tensors(tmp_path / "a")
