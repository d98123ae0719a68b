"""Models: what the benchmarks of steps and cohorts train, built from Motet's registry, and random samples for it.

in        the name of a model
out       RunConfig, model, Samples
relies on random inputs: what a step costs does not depend on what the numbers say
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from shared.batch import Samples
from shared.config import RunConfig
from shared.model.encoders import preprocessor
from shared.model.multimodal import MultimodalModel, build_model
from shared.settings import parse_settings

LABELS = 10
_IMAGE: dict[str, object] = {"name": "cnn", "preprocess": {"size": 28, "mode": "L"}}
_TEXT: dict[str, object] = {"name": "transformer"}
_MEL: dict[str, object] = {"name": "mel-cnn"}
_LSTM: dict[str, object] = {"name": "mfcc-lstm"}
_WORDS_LSTM: dict[str, object] = {"name": "embedding-lstm"}
_MOTION_LSTM: dict[str, object] = {"name": "lstm"}
_KINDS = {"picture": "image", "words": "text", "sound": "audio", "motion": "signal", "vector": "features"}
_CHANNELS = 3
"""of a signal"""
RECURRENT = ("lstm", "text-lstm", "signal-lstm")
"""models that Opacus and torch make with a recurrence of their own"""


@dataclass(frozen=True)
class Recipe:
    """Encoders by modality, and how what they give becomes an answer."""

    about: str
    encoders: Mapping[str, Mapping[str, object]]
    width: int = 32
    fusion: str = "sum"
    activation: str = "none"
    vector: int | None = None
    """length of the modality `vector`"""


RECIPES = {
    "cnn": Recipe("three convolutions over 28 x 28 pixels", {"picture": _IMAGE}),
    "text": Recipe("transformer over 32 tokens", {"words": _TEXT}),
    "audio": Recipe("three convolutions over log-mel frames", {"sound": _MEL}),
    "lstm": Recipe("LSTM over cepstral coefficients", {"sound": _LSTM}),
    "text-lstm": Recipe("LSTM over 32 token vectors", {"words": _WORDS_LSTM}),
    "signal-lstm": Recipe("LSTM over a window of three channels", {"motion": _MOTION_LSTM}),
    "trimodal": Recipe(
        "the CNN, the text transformer and the audio CNN, gated",
        {"picture": _IMAGE, "words": _TEXT, "sound": _MEL},
        fusion="gated",
    ),
    "head-256": Recipe(
        "256-32-10 on ready-made features", {"vector": {"name": "linear"}}, activation="relu", vector=256
    ),
    "head-1536": Recipe(
        "1536-128-10 on ready-made features",
        {"vector": {"name": "linear"}},
        width=128,
        activation="relu",
        vector=1536,
    ),
}


def run_config(name: str) -> RunConfig:
    """A run with the model; its rounds and its privacy are never asked for."""
    recipe = RECIPES[name]
    modalities = {
        modality: {
            "kind": _KINDS[modality],
            **({"width": recipe.vector} if recipe.vector else {}),
            **({"channels": _CHANNELS} if _KINDS[modality] == "signal" else {}),
        }
        for modality in recipe.encoders
    }
    table = {
        "name": "bench",
        "seed": 0,
        "data": {
            "task": "single-label",
            "labels": [f"class-{number}" for number in range(LABELS)],
            "modalities": modalities,
        },
        "model": {
            "embedding_width": recipe.width,
            "encoders": recipe.encoders,
            "fusion": {"name": recipe.fusion},
            "head": {"name": "linear", "options": {"activation": recipe.activation}},
        },
        "training": {"optimizer": "sgd", "learning_rate": 1e-4, "sample_rate": 1.0, "local_steps": 1},
        "privacy": "none",
        "federation": {"rounds": 1},
    }
    return parse_settings(RunConfig, table, place=f"benchmark model {name}")


def model_of(name: str) -> MultimodalModel:
    """The model with its first weights, in training mode."""
    return build_model(run_config(name)).train()


def random_samples(name: str, *, rows: int, seed: int = 0) -> Samples:
    """Rows that have every modality of the model; each is a subject of its own."""
    run, draws = run_config(name), torch.Generator().manual_seed(seed)
    return Samples(
        inputs={modality: _values(run, modality, rows=rows, draws=draws) for modality in run.modalities},
        present=torch.ones(rows, len(run.modalities), dtype=torch.bool),
        targets=torch.randint(0, LABELS, (rows,), generator=draws),
        subjects=tuple(str(row) for row in range(rows)),
        groups={},
    )


def _values(run: RunConfig, modality: str, *, rows: int, draws: torch.Generator) -> Tensor:
    way = preprocessor(run, modality)
    if run.data.modalities[modality].kind != "text":
        return torch.randn(rows, *way.shape, generator=draws)
    length = way.shape[0]
    words = torch.randint(1, 1024, (rows, length), generator=draws)
    ends = torch.randint(length // 4, length + 1, (rows, 1), generator=draws)
    # texts of different lengths, 0 where they have ended
    return words.masked_fill(torch.arange(length) >= ends, 0)
