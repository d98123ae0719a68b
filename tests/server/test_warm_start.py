"""Tests of server/warm_start.py: what encoders learn from public values helps to tell classes nobody told them of."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from server.given import Readers, read_folder
from server.warm_start import WarmStartSettings, warm_start
from shared.config import RunConfig
from shared.errors import RunError
from shared.model.multimodal import build_model
from tests.shared.example_runs import example_run

CLASSES = 3


def public_folder(folder: Path, *, rows: int = 150, with_text: bool = True) -> Path:
    """Pictures of three kinds of stripes, dim and noisy, each with words of its kind; no labels."""
    draws, lines = np.random.default_rng(0), []
    folder.mkdir()
    for row in range(rows):
        kind = row % CLASSES
        wave = np.sin(np.arange(16) * (0.8 + 0.7 * kind) + draws.uniform(0, 6.3))
        picture = 128 + 60 * wave[None, :] + draws.normal(0, 30, (16, 16))
        Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8)).save(folder / f"{row}.png")
        words = " ".join(f"word{kind}{number}" for number in draws.integers(0, 4, 5))
        lines.append(json.dumps({"photo_file_name": f"{row}.png", **({"words": words} if with_text else {})}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def a_run(*, augment: bool = False, text: bool = True) -> RunConfig:
    photo: dict[str, object] = {
        "name": "cnn",
        "options": {"channels": (8, 8), "groups": 2, "grid": 1},
        "preprocess": {"size": 16, "mode": "L"},
    }
    if augment:
        photo["augment"] = {"shift": 0.2, "brightness": 0.3, "noise": 0.3}
    words: dict[str, object] = {"name": "embedding-mean", "preprocess": {"vocabulary": 64, "encoding": "words"}}
    return example_run({"photo": photo, **({"words": words} if text else {})}, width=8)


def told_apart(run: RunConfig, folder: Path, weights: dict[str, torch.Tensor]) -> float:
    """Share of pictures whose nearest mean embedding, of all others of a class, is that of their own."""
    model = build_model(run).eval()
    model.load_state_dict(weights, strict=False)
    pieces = [named.batch for named in read_folder(folder, readers=Readers(run))]
    with torch.no_grad():
        places = torch.cat([model.embeddings(piece.inputs, piece.present)[:, 0] for piece in pieces])
    classes = torch.arange(len(places)) % CLASSES
    means = torch.stack([places[classes == kind].mean(dim=0) for kind in range(CLASSES)])
    return float((torch.cdist(places, means).argmin(dim=1) == classes).float().mean())


def test_pictures_learn_from_the_words_beside_them(tmp_path: Path) -> None:
    run, folder = a_run(), public_folder(tmp_path / "public")
    settings = WarmStartSettings(how="contrastive", steps=120, batch_size=48, learning_rate=0.01)
    found = warm_start(run, public=folder, settings=settings)

    assert found.losses[1] < 0.7 * found.losses[0]
    assert told_apart(run, folder, found.weights) > max(0.8, told_apart(run, folder, {}) + 0.1)
    assert found.num_rows == 150
    assert {name.split(".")[0] for name in found.weights} == {"encoders"}


def test_pictures_learn_from_changed_copies_of_themselves(tmp_path: Path) -> None:
    run, folder = a_run(augment=True, text=False), public_folder(tmp_path / "public", with_text=False)
    settings = WarmStartSettings(how="contrastive", steps=120, batch_size=48, learning_rate=0.01)
    found = warm_start(run, public=folder, settings=settings)

    assert found.losses[1] < 0.8 * found.losses[0]


def test_an_autoencoder_learns_what_was_blanked(tmp_path: Path) -> None:
    run, folder = a_run(), public_folder(tmp_path / "public")
    settings = WarmStartSettings(how="autoencoder", steps=200, batch_size=48, learning_rate=0.01)
    found = warm_start(run, public=folder, settings=settings)

    assert found.losses[1] < 0.7 * found.losses[0]
    again = warm_start(run, public=folder, settings=settings)
    assert all(torch.equal(value, again.weights[name]) for name, value in found.weights.items())


def test_what_teaches_nothing_is_refused(tmp_path: Path) -> None:
    folder = public_folder(tmp_path / "public", rows=40, with_text=False)
    contrastive = WarmStartSettings(how="contrastive", steps=1)
    with pytest.raises(RunError, match="have two modalities"):
        warm_start(a_run(), public=folder, settings=contrastive)
    few = public_folder(tmp_path / "few", rows=10)
    with pytest.raises(RunError, match="10 rows; allowed: 32 and more"):
        warm_start(a_run(), public=few, settings=contrastive)


def test_only_encoders_with_public_rows_learn(tmp_path: Path) -> None:
    folder = public_folder(tmp_path / "public", rows=40, with_text=False)
    found = warm_start(a_run(), public=folder, settings=WarmStartSettings(how="autoencoder", steps=2))

    assert {name.split(".")[1] for name in found.weights} == {"photo"}
