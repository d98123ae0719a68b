"""Folders of tiny random networks, and the settings of the encoders that take them, for the tests of these encoders."""

from pathlib import Path

from simulations.bench.random_networks import TEXT_KINDS, pretrained_folder

__all__ = ["KIND_OF", "TEXT_KINDS", "encoder_table", "pretrained_folder"]
KIND_OF = {"vit": "photo", "wav2vec2": "sound", "ast": "sound", **dict.fromkeys(TEXT_KINDS, "words")}
PREPROCESS: dict[str, dict[str, object]] = {"wav2vec2": {"seconds": 0.1}, "ast": {"seconds": 0.1}, "vit": {}}


def encoder_table(folder: Path, *, kind: str, mode: str | None) -> dict[str, dict[str, object]]:
    """Modality -> settings of the encoder of such a folder, as `example_run` takes them."""
    modality = KIND_OF[kind]
    part = {"words": "pretrained-text", "photo": "pretrained-image", "sound": "pretrained-audio"}[modality]
    preprocess = PREPROCESS.get(kind, {"max_tokens": 6})
    return {modality: {"name": part, "mode": mode, "options": {"path": str(folder)}, "preprocess": preprocess}}
