"""A data set small enough to run a whole federation in a second: two feature modalities, three sites, a held-out folder."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from shared.config import RunConfig

LABELS = ("a", "b", "c")
SITES: Mapping[str, tuple[str, ...]] = {"north": ("left", "right"), "south": ("left", "right"), "west": ("left",)}
CARD = """title = "Tiny"
generated = true
licence = "CC0 1.0"
citation = "none"
source = "generated in a test"
[content]
task = "single-label"
labels = ["a", "b", "c"]
[content.modalities.left]
kind = "features"
width = 4
[content.modalities.right]
kind = "features"
width = 4
"""


PRIVACY: Mapping[str, object] = {
    "unit": "record",
    "trust": "nobody",
    "epsilon": 8.0,
    "delta": 1e-3,
    "clip_norm": 1.0,
}


def write_folder(folder: Path, *, rows: int, modalities: Sequence[str], seed: int, rows_per_subject: int = 1) -> None:
    """Rows whose class shows in every modality they have; so many neighbours are about one subject."""
    draws, lines = np.random.default_rng(seed), []
    folder.mkdir(parents=True)
    for row in range(rows):
        label = int(draws.integers(3))
        entry: dict[str, str] = {"label": LABELS[label], "subject_id": f"{folder.name}-{row // rows_per_subject}"}
        for name in modalities:
            values = np.eye(4, dtype=np.float32)[label] + draws.normal(0, 0.3, 4).astype(np.float32)
            np.save(folder / f"{name}-{row}.npy", values)
            entry[f"{name}_file_name"] = f"{name}-{row}.npy"
        lines.append(json.dumps(entry))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_data_set(root: Path, *, rows: int = 40, rows_per_subject: int = 1) -> Path:
    """Sites and held-out parts, with a card."""
    for number, (site, modalities) in enumerate(SITES.items()):
        write_folder(
            root / "sites" / site, rows=rows, modalities=modalities, seed=number, rows_per_subject=rows_per_subject
        )
    for number, part in enumerate(("validation", "test")):
        write_folder(root / "held-out" / part, rows=60, modalities=("left", "right"), seed=100 + number)
    (root / "dataset.toml").write_text(CARD, encoding="utf-8")
    return root


def tiny_run(*, private: bool, **changes: object) -> dict[str, object]:
    """The table of a run over the tiny data set; changes replace whole parts of it."""
    return {
        "name": "tiny",
        "seed": 3,
        "data": {
            "task": "single-label",
            "labels": list(LABELS),
            "modalities": {name: {"kind": "features", "width": 4} for name in ("left", "right")},
        },
        "model": {
            "embedding_width": 4,
            "encoders": {"left": {"name": "linear"}, "right": {"name": "linear"}},
            "fusion": {"name": "concat"},
        },
        "training": {"optimizer": "sgd", "learning_rate": 0.5, "sample_rate": 0.5, "local_steps": 2},
        "privacy": PRIVACY if private else "none",
        "federation": {"rounds": 3},
        "evaluation": {"bootstrap_samples": 20},
        **changes,
    }


def tiny_config(*, private: bool, **changes: object) -> RunConfig:
    """`tiny_run` as settings."""
    return RunConfig.model_validate(tiny_run(private=private, **changes))
