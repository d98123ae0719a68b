"""Run folders that hold a small model, as a run would have left them, without a run: for tests of what uses a model."""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image

from server.checkpoint import save_model
from server.report.html import write_report
from server.settings import ServerSettings, write_settings
from shared.config import RunConfig
from shared.model.multimodal import build_model
from shared.model.parameters import tensor_of, trainable_names
from tests.server.made_records import build_record
from tests.shared.example_runs import example_run, small

ENCODERS = {"photo": small("cnn"), "words": small("embedding-mean"), "sound": small("mfcc-lstm")}


def small_run(
    encoders: Mapping[str, Mapping[str, object]] = ENCODERS,
    *,
    data: Mapping[str, object] | None = None,
    **changes: object,
) -> RunConfig:
    """A run over a picture, a text and a sound, decided by an average of heads."""
    table = example_run(encoders, fusion="average", **changes).model_dump()  # type: ignore[arg-type]
    if data is not None:
        table["data"] = {**data, "modalities": table["data"]["modalities"]}
    return RunConfig.model_validate(table)


def write_run(folder: Path, *, run: RunConfig, private: bool = False, held_out: Path | None = None) -> Path:
    """A finished run whose model has its first weights."""
    folder.mkdir(parents=True)
    if private:
        promise = {"unit": "record", "trust": "nobody", "epsilon": 8.0, "delta": 1e-5, "clip_norm": 1.0}
        run = RunConfig.model_validate({**run.model_dump(), "privacy": promise})
    settings = ServerSettings(
        run=run, run_id="r", held_out=held_out or folder / "gone", cache=folder / "cache", card=None, engine="local",
        num_sites=2, started="2026-01-01T00:00:00+00:00",
    )  # fmt: skip
    write_settings(settings, folder=folder)
    model = build_model(run)
    weights = {name: tensor_of(model, name).detach().clone() for name in trainable_names(model, run.modalities)}
    save_model(weights, path=folder / "model.safetensors", run_digest=run.digest)
    # of another run with the same promise: what the report says of its own model is not asked for
    write_report(build_record(private=private, rounds=2), folder)
    return folder


def picture(*, seed: int = 0) -> bytes:
    """A PNG."""
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (9, 12, 3), dtype=np.uint8)).save(file, format="PNG")
    return file.getvalue()


def recording(*, seed: int = 0) -> bytes:
    """A WAV of a fifth of a second."""
    file = io.BytesIO()
    soundfile.write(file, np.random.default_rng(seed).normal(0, 0.1, 1600), 8000, format="WAV")
    return file.getvalue()


def write_rows(
    folder: Path, *, rows: int, labels: Sequence[str] = (), lacking: Mapping[int, str] | None = None
) -> Path:
    """A data folder of pictures, texts and sounds; row number -> the modality that it lacks; labels in turn, if any."""
    folder.mkdir(parents=True)
    lines = []
    for row in range(rows):
        (folder / f"{row}.png").write_bytes(picture(seed=row))
        (folder / f"{row}.wav").write_bytes(recording(seed=row))
        cells = {"photo_file_name": f"{row}.png", "words": f"sunny day {row}", "sound_file_name": f"{row}.wav"}
        gone = (lacking or {}).get(row)
        cells = {name: cell for name, cell in cells.items() if gone is None or not name.startswith(gone)}
        if labels:
            cells |= {"label": labels[row % len(labels)], "subject_id": f"{folder.name}-{row}"}
        lines.append(json.dumps(cells))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder
