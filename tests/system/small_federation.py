"""A federation small enough to run whole in a test: three sites, a vector and a sentence, made from a seed.

in        nothing but a seed
out       a data set folder and scenarios over it, as an owner and the starter of a run would have them
relies on simulations/datasets/writer.py for the layout
"""

import io
from pathlib import Path

import numpy as np
import tomli_w

from shared.schema import DataCard, DataSchema, ModalitySchema
from simulations.datasets.writer import TEST, VALIDATION, File, NewRow, writing

SITES = ("north", "south", "west")
WIDTH = 6
WORDS = {"calm": ("quiet lake", "slow rain", "soft light"), "loud": ("drum roll", "street noise", "siren wail")}
CARD = DataCard(
    title="Small federation",
    generated=True,
    licence="CC0-1.0",
    citation="none",
    source="tests/system/small_federation.py",
    content=DataSchema(
        task="single-label",
        labels=tuple(WORDS),
        modalities={"sensor": ModalitySchema(kind="features", width=WIDTH), "note": ModalitySchema(kind="text")},
    ),
)


def build_small_data_set(folder: Path, *, seed: int = 0, rows_per_site: int = 24) -> Path:
    """Three sites, the last of them without text, and a held-out folder in two parts."""
    generator = np.random.default_rng(seed)
    with writing(folder, card=CARD) as writer:
        for part, rows in [*((site, rows_per_site) for site in SITES), (VALIDATION, 16), (TEST, 16)]:
            for number in range(rows):
                label = list(WORDS)[number % 2]
                values: dict[str, str | File] = {"sensor": _vector(label, generator=generator)}
                if part != SITES[-1]:
                    values["note"] = str(generator.choice(WORDS[label]))
                writer.add(
                    part,
                    NewRow(name=f"{number:03d}", values=values, targets={"label": label}, subject=f"{part}-{number}"),
                )
        writer.finish(how_it_was_made="Drawn from a seed, for tests.")
    return folder


def write_scenario(
    path: Path,
    *,
    data_set: Path,
    private: bool,
    rounds: int = 3,
    reproducible_noise: bool = False,
    epsilon: float = 8.0,
    sample_rate: float = 0.5,
    federation: dict[str, object] | None = None,
) -> Path:
    """A scenario over the small data set: linear encoders, two short local steps, every site every round."""
    table = {
        "about": "Small federation, for tests.",
        "source": {"path": str(data_set)},
        "owners": {"reproducible_noise": reproducible_noise},
        "run": {
            "name": "small",
            "seed": 3,
            "model": {
                "embedding_width": 8,
                "encoders": {
                    "sensor": {"name": "linear"},
                    "note": {
                        "name": "embedding-mean",
                        "options": {"token_width": 4},
                        "preprocess": {"vocabulary": 32, "max_tokens": 4},
                    },
                },
                "fusion": {"name": "concat"},
            },
            "training": {"optimizer": "sgd", "learning_rate": 0.5, "sample_rate": sample_rate, "local_steps": 2},
            "privacy": (
                {"unit": "record", "trust": "nobody", "epsilon": epsilon, "delta": 1e-3, "clip_norm": 1.0}
                if private
                else "none"
            ),
            "federation": {"rounds": rounds, **(federation or {})},
            "evaluation": {"bootstrap_samples": 20},
        },
    }
    path.write_text(tomli_w.dumps(table), encoding="utf-8")
    return path


def _vector(label: str, *, generator: np.random.Generator) -> File:
    center = 1.0 if label == "loud" else -1.0
    file = io.BytesIO()
    np.save(file, (center + generator.normal(size=WIDTH)).astype(np.float32))
    return File(suffix=".npy", content=file.getvalue())
