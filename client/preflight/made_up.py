"""Made-up data: a small folder of random files, so that a run can be rehearsed on rows that are nobody's.

in        the run's data schema: which kinds of value its rows have
out       a data folder with manifest and dataset.toml, which shared/dataset.py reads like an owner's
relies on nothing; equal schemas give equal folders
"""

import json
import string
from pathlib import Path

import numpy as np
import soundfile
import tomli_w
from PIL import Image

from shared.config import RunConfig
from shared.schema import DataCard, ModalitySchema, TaskSchema

NUM_ROWS = 8
NUM_SUBJECTS = 4
SAMPLE_RATE_HZ = 16_000
VIDEO_FRAMES = 8


def write_folder(folder: Path, *, run: RunConfig) -> None:
    """A data folder of NUM_ROWS random rows of NUM_SUBJECTS subjects.

    Half have every modality, and an answer to every task; half lack one of each, where there are several.
    """
    draws = np.random.default_rng(0)
    folder.mkdir(parents=True)
    lines = []
    for row in range(NUM_ROWS):
        # the first half is whole; each of the others lacks one modality, where there is more than one
        lacking = run.modalities[row % len(run.modalities)] if row >= NUM_ROWS // 2 else None
        cells: dict[str, object] = {"subject_id": f"subject-{row % NUM_SUBJECTS}"}
        for number, (column, part) in enumerate(run.data.parts.items()):
            is_open = len(run.data.parts) > 1 and row >= NUM_ROWS // 2 and number == row % len(run.data.parts)
            if not is_open:
                cells[column] = _answer(part, row=row, draws=draws)
        for name in run.modalities:
            if name != lacking or len(run.modalities) == 1:
                place = folder / f"{name}-{row}"
                cells[run.data.column(name)] = _value(place, schema=run.data.modalities[name], draws=draws)
        lines.append(json.dumps(cells))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    card = DataCard(
        title="Random rows",
        generated=True,
        licence="CC0-1.0",
        citation="none",
        source="made up for a preflight",
        content=run.data,
    )
    text = tomli_w.dumps(card.model_dump(mode="json", exclude_none=True))
    (folder / "dataset.toml").write_text(text, encoding="utf-8")


def _answer(part: TaskSchema, *, row: int, draws: np.random.Generator) -> object:
    """What a manifest's cell holds where one task's answer stands."""
    if part.rating_range is not None:
        return float(draws.uniform(*part.rating_range))
    if part.kind == "multi-label":
        return [label for label in part.labels if draws.random() < 0.5]
    return part.labels[row % len(part.labels)]


def _value(place: Path, *, schema: ModalitySchema, draws: np.random.Generator) -> str:
    """What the manifest's cell holds: a text, or the name of a file written beside it."""
    if schema.kind == "text":
        letters = list(string.ascii_lowercase)
        return " ".join("".join(draws.choice(letters, size=draws.integers(2, 8))) for _ in range(12))
    if schema.kind == "image":
        path = place.with_suffix(".png")
        Image.fromarray(draws.integers(0, 256, (40, 32, 3), dtype=np.uint8)).save(path, compress_level=1)
    elif schema.kind == "video":
        path = place.with_suffix(".gif")
        frames = [Image.fromarray(draws.integers(0, 256, (20, 16, 3), dtype=np.uint8)) for _ in range(VIDEO_FRAMES)]
        frames[0].save(path, save_all=True, append_images=frames[1:], duration=100)
    elif schema.kind == "audio":
        path = place.with_suffix(".wav")
        soundfile.write(path, draws.normal(0, 0.1, SAMPLE_RATE_HZ), SAMPLE_RATE_HZ)
    else:
        path = place.with_suffix(".npy")
        shape = (128, schema.channels or 1) if schema.kind == "signal" else (schema.width or 1,)
        np.save(path, draws.normal(size=shape).astype(np.float32))
    return path.name
