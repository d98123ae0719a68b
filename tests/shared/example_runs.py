"""Small runs and made-up values of every kind, for the tests of preprocessing and model."""

from collections.abc import Mapping

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from shared.config import EncoderSettings, RunConfig
from shared.media import Waveform, clip_of
from shared.preprocess import RawValue
from shared.settings import parse_settings

KINDS: dict[str, dict[str, object]] = {
    "photo": {"kind": "image"},
    "words": {"kind": "text"},
    "sound": {"kind": "audio"},
    "clip": {"kind": "video"},
    "motion": {"kind": "signal", "channels": 3},
    "vector": {"kind": "features", "width": 5},
}
SMALL: dict[str, dict[str, object]] = {
    "cnn": {"options": {"channels": (4, 8), "groups": 2}, "preprocess": {"size": 8}},
    "transformer": {"options": {"token_width": 8, "hidden": 8}, "preprocess": {"vocabulary": 20, "max_tokens": 6}},
    "embedding-mean": {"options": {"token_width": 4}, "preprocess": {"vocabulary": 20, "max_tokens": 6}},
    "bag-of-ngrams": {"preprocess": {"vocabulary": 20, "max_tokens": 6}},
    "mel-cnn": {"options": {"channels": (4, 4), "groups": 2, "grid": 2}, "preprocess": {"seconds": 0.2, "bands": 8}},
    "mfcc-lstm": {"options": {"hidden": 4}, "preprocess": {"seconds": 0.2, "bands": 8, "coefficients": 4}},
    "mel-statistics": {"preprocess": {"seconds": 0.2, "bands": 8}},
    "conv1d": {"options": {"channels": (4, 4), "groups": 2}, "preprocess": {"length": 12}},
    "resnet": {"options": {"channels": (4, 8), "groups": 2, "grid": 1}, "preprocess": {"size": 8}},
    "vgg": {"options": {"channels": (4, 8), "groups": 2, "layers": 1}, "preprocess": {"size": 8}},
    "vit": {"options": {"token_width": 8, "hidden": 8, "layers": 1}, "preprocess": {"size": 8}},
    "embedding-lstm": {
        "options": {"token_width": 4, "hidden": 4},
        "preprocess": {"vocabulary": 64, "max_tokens": 6},
    },
    "conformer": {
        "options": {"token_width": 8, "hidden": 8, "groups": 2, "kernel": 3},
        "preprocess": {"seconds": 0.2, "bands": 8},
    },
    "ast": {
        "options": {"token_width": 8, "hidden": 8, "layers": 1, "patch_bands": 8, "patch_frames": 1},
        "preprocess": {"seconds": 0.2, "bands": 8},
    },
    "video": {
        "options": {"image_channels": (4, 8), "image_groups": 2},
        "preprocess": {"frames": 3, "size": 8},
    },
    "lstm": {"options": {"hidden": 4}, "preprocess": {"length": 12}},
    "statistics": {"preprocess": {"length": 12, "bands": 2}},
    "linear": {},
}
OF_KIND = {
    "photo": ("cnn", "resnet", "vgg", "vit"),
    "words": ("transformer", "embedding-mean", "bag-of-ngrams", "embedding-lstm"),
    "sound": ("mel-cnn", "mfcc-lstm", "mel-statistics", "conformer", "ast"),
    "clip": ("video",),
    "motion": ("conv1d", "statistics", "lstm"),
    "vector": ("linear",),
}
AUGMENT: dict[str, dict[str, object]] = {
    "photo": {
        "rotate": 20.0,
        "scale": 0.2,
        "shift": 0.1,
        "flip": 0.5,
        "flip_upright": 0.5,
        "brightness": 0.3,
        "contrast": 0.3,
        "saturation": 0.5,
        "noise": 0.1,
    },
    "words": {"word_dropout": 0.4},
    "sound": {"gain_db": 6.0, "noise_db": -20.0, "echo_db": -6.0, "time_masks": 2, "band_masks": 2},
    "motion": {"gain": 0.3, "noise": 0.2, "shift": 0.2, "time_mask": 0.4, "drop_channel": 0.3},
    "vector": {"noise": 0.3, "drop": 0.4},
}
AUGMENT["clip"] = AUGMENT["photo"]
"""options of the augmentation of pictures and clips, tokens, log-mel frames, windows and vectors"""
FUSIONS = (
    "concat",
    "sum",
    "mean",
    "weighted",
    "gated",
    "product",
    "bilinear",
    "mlp",
    "attention",
    "average",
    "weighted-average",
    "vote",
)


def example_run(
    encoders: Mapping[str, Mapping[str, object]],
    *,
    fusion: str = "concat",
    fusion_options: Mapping[str, object] | None = None,
    head: str = "linear",
    rating: bool = False,
    seed: int = 1,
    width: int = 6,
) -> RunConfig:
    """A run with these encoders by modality; the modalities are those of KINDS."""
    task = (
        {"task": "rating", "rating_range": (-3, 3)} if rating else {"task": "single-label", "labels": ("a", "b", "c")}
    )
    model = {
        "embedding_width": width,
        "encoders": encoders,
        "fusion": {"name": fusion, "options": dict(fusion_options or {})},
        "head": {"name": head},
    }
    table = {
        "name": "example",
        "seed": seed,
        "data": {**task, "modalities": {name: KINDS[name] for name in KINDS if name in encoders}},
        "model": model,
        "training": {"optimizer": "sgd", "learning_rate": 0.1, "batch_size": 4, "local_steps": 1},
        "privacy": "none",
        "federation": {"rounds": 1, "server_optimizer": {"name": "fedavg"}},
    }
    return parse_settings(RunConfig, table, place="example")


def augment_of(encoder: str) -> dict[str, object]:
    """Options of the augmentation of what reaches an encoder."""
    if encoder == "mfcc-lstm":
        return {"gain_db": 6.0, "time_masks": 1}
    if encoder in ("mel-statistics", "statistics"):
        return AUGMENT["vector"]
    return next(AUGMENT[modality] for modality, names in OF_KIND.items() if encoder in names)


def small(name: str) -> dict[str, object]:
    """The encoder of this name in a size for tests."""
    return {"name": name, **SMALL[name]}


def encoder_settings(run: RunConfig, modality: str) -> EncoderSettings:
    """What the run says of one modality."""
    return run.model.encoders[modality]


def raw_value(modality: str, *, seed: int = 0) -> RawValue:
    """A made-up value as media.py would open it."""
    draw = np.random.default_rng(seed)
    if modality == "photo":
        return Image.fromarray(draw.integers(0, 256, (9, 14, 3), dtype=np.uint8))
    if modality == "words":
        return " ".join(draw.choice(["sunny", "rain", "today", "again", "joy"], size=4))
    if modality == "sound":
        return Waveform(samples=draw.normal(0, 0.1, (2, 3000)).astype(np.float32), sample_rate_hz=11_025)
    if modality == "clip":
        frames = draw.integers(0, 256, (4, 9, 14, 3), dtype=np.uint8)
        return clip_of([Image.fromarray(frame) for frame in frames], rate_hz=10.0)
    return draw.normal(size=(10, 3) if modality == "motion" else (5,)).astype(np.float32)


def finished(modality: str, *, shape: tuple[int, ...], rows: int, seed: int = 0) -> Tensor:
    """Made-up values as a preprocessor would finish them."""
    draw = torch.Generator().manual_seed(seed)
    if modality == "words":
        numbers = torch.randint(1, 20, (rows, *shape), generator=draw)
        ends = torch.randint(1, shape[0] + 1, (rows, 1), generator=draw)
        return numbers.masked_fill(torch.arange(shape[0]) >= ends, 0)
    return torch.randn(rows, *shape, generator=draw)
