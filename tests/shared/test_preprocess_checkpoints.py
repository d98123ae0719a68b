"""Checkpoints: what a folder of weights may name and hold; nothing is opened elsewhere, and nothing in it runs."""

import shutil
from pathlib import Path

import pytest
import torch

from shared.errors import ModelError
from shared.preprocess.pretrained import local_checkpoint
from shared.preprocess.pretrained_network import load_network
from tests.shared.pretrained_folders import pretrained_folder


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of random weights in a folder as save_pretrained writes it."""
    return pretrained_folder(tmp_path_factory.mktemp("networks") / "bert", kind="bert")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("adapter_config.json", '{"base_model_name_or_path": "../other", "peft_type": "LORA"}', "an adapter"),
        ("model.safetensors.index.json", '{"weight_map": {"a": "../other/model.safetensors"}}', "names .*other"),
        ("model.safetensors.index.json", '{"weight_map": {"a": "gone.safetensors"}}', "names .*gone"),
        ("model.safetensors.index.json", '{"weight_map": 3}', "no list of weights"),
    ],
)
def test_a_folder_whose_weights_lie_elsewhere_is_refused(
    bert: Path, tmp_path: Path, name: str, content: str, said: str
) -> None:
    folder = tmp_path / "network"
    shutil.copytree(bert, folder)
    local_checkpoint(folder)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model.safetensors"}}', encoding="utf-8")
    local_checkpoint(folder)
    (folder / name).write_text(content, encoding="utf-8")
    with pytest.raises(ModelError, match=said):
        local_checkpoint(folder)


class _Program:
    """What runs when it is read by pickle."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.mark,)


def test_weights_that_are_a_program_are_refused_and_do_not_run(bert: Path, tmp_path: Path) -> None:
    folder, mark = tmp_path / "network", tmp_path / "it-ran"
    shutil.copytree(bert, folder)
    (folder / "model.safetensors").unlink()
    torch.save({"embeddings.word_embeddings.weight": _Program(mark)}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="no network that transformers can read"):
        load_network(local_checkpoint(folder))
    assert not mark.exists()
