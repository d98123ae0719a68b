"""Random networks: tiny ones of many kinds, in folders as save_pretrained writes them, where no public one is at hand.

in        a folder that is not there yet, and the kind of network
out       the folder, with weights of one fixed seed and what their values are read by
relies on transformers for what such a folder looks like; read by breadth.py and by the tests of pretrained encoders
"""

import json
from pathlib import Path

import torch

from shared.preprocess.audio import load_torchaudio

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "day", "##s"]
VOCABULARY += ["sunny", "rain", "today", "again", "joy"]
TEXT_KINDS = ("bert", "distilbert", "roberta", "gpt2")
_SIZES: dict[str, dict[str, object]] = {
    "bert": {
        "vocab_size": 14, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 8,
        "max_position_embeddings": 16,
    },
    "distilbert": {
        "vocab_size": 14, "dim": 8, "n_layers": 2, "n_heads": 2, "hidden_dim": 8, "max_position_embeddings": 16,
    },
    "roberta": {
        "vocab_size": 14, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 8,
        "max_position_embeddings": 16, "pad_token_id": 1, "type_vocab_size": 1,
    },
    "gpt2": {"vocab_size": 14, "n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 16},
    "vit": {
        "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 8, "image_size": 8,
        "patch_size": 4,
    },
    "wav2vec2": {
        "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 14,
        "conv_dim": (4, 4), "conv_stride": (5, 4), "conv_kernel": (10, 8), "num_conv_pos_embeddings": 4,
        "num_conv_pos_embedding_groups": 2,
    },
    "ast": {
        "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 8, "max_length": 24,
        "num_mel_bins": 16, "patch_size": 8, "time_stride": 8, "frequency_stride": 8,
    },
}  # fmt: skip
_NAMES = {"ast": "audio-spectrogram-transformer"}


def pretrained_folder(folder: Path, *, kind: str) -> Path:
    """A network of this kind, random and 8 wide, with what its values are read by; dropout as it comes."""
    load_torchaudio()
    from transformers import AutoConfig, AutoModel

    folder.mkdir(parents=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = AutoConfig.for_model(_NAMES.get(kind, kind), **_SIZES[kind])
        network = AutoModel.from_config(config)  # type: ignore[no-untyped-call]
        for parameter in network.parameters():
            # those that begin at 0 or 1 would hide mistakes
            parameter.data.add_(torch.randn_like(parameter) * 0.2)
        network.save_pretrained(folder)
    _write_reader(folder, kind=kind)
    return folder


def _write_reader(folder: Path, *, kind: str) -> None:
    from transformers import ASTFeatureExtractor, BertTokenizer, Wav2Vec2FeatureExtractor

    if kind in TEXT_KINDS:
        (folder / "vocab.txt").write_text("\n".join(VOCABULARY))
        BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    elif kind == "vit":
        constants = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]}
        (folder / "preprocessor_config.json").write_text(json.dumps(constants))
    elif kind == "wav2vec2":
        Wav2Vec2FeatureExtractor().save_pretrained(folder)  # type: ignore[no-untyped-call]
    else:
        extractor = ASTFeatureExtractor(num_mel_bins=16, max_length=24)  # type: ignore[no-untyped-call]
        extractor.save_pretrained(folder)
