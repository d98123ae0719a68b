"""Small media files and data folders, made in memory from a seed."""

import csv
import io
import json
import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import soundfile
from PIL import Image
from pyarrow import parquet

from shared.schema import DataSchema, ModalitySchema

RowCells = Mapping[str, object]

SCHEMA = DataSchema(
    task="single-label",
    labels=("joy", "calm"),
    modalities={
        "image": ModalitySchema(kind="image"),
        "text": ModalitySchema(kind="text"),
        "audio": ModalitySchema(kind="audio"),
        "motion": ModalitySchema(kind="signal", channels=3),
        "vector": ModalitySchema(kind="features", width=4),
    },
    groups=("language",),
    ignored=("note",),
)
RATING = DataSchema(
    task="rating", rating_range=(-3.0, 3.0), modalities={"text": ModalitySchema(kind="text")}, groups=("language",)
)


def image_bytes(*, seed: int = 0, form: str = "PNG", size: tuple[int, int] = (12, 9), mode: str = "RGB") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, size=(size[1], size[0], 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, format=form)
    return file.getvalue()


def png_declaring(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header declares any size."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def audio_bytes(
    *,
    seed: int = 0,
    form: str = "WAV",
    subtype: str | None = None,
    rate: int = 8000,
    frames: int = 800,
    channels: int = 1,
) -> bytes:
    sound = np.random.default_rng(seed).uniform(-0.5, 0.5, size=(frames, channels))
    file = io.BytesIO()
    soundfile.write(file, sound, rate, format=form, subtype=subtype)
    return file.getvalue()


def npy_bytes(values: npt.NDArray[np.generic], *, allow_pickle: bool = False) -> bytes:
    file = io.BytesIO()
    np.save(file, values, allow_pickle=allow_pickle)
    return file.getvalue()


def npy_declaring(shape: str, *, body: bytes = b"", descr: str = "'<f8'") -> bytes:
    """A .npy file whose header declares any shape and type."""
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + body


def motion_bytes(*, seed: int = 0, steps: int = 10, channels: int = 3) -> bytes:
    return npy_bytes(np.random.default_rng(seed).normal(size=(steps, channels)).astype(np.float32))


def vector_bytes(*, seed: int = 0, width: int = 4) -> bytes:
    return npy_bytes(np.random.default_rng(seed).normal(size=width).astype(np.float32))


def write_rows(folder: Path, rows: Sequence[RowCells], *, suffix: str = ".jsonl") -> Path:
    """The manifest of a folder, in any of the three forms; absent cells are left out, empty or null."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"metadata{suffix}"
    columns = list(dict.fromkeys(column for row in rows for column in row))
    if suffix == ".jsonl":
        path.write_text("".join(json.dumps(dict(row)) + "\n" for row in rows), encoding="utf-8")
    elif suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, columns, restval="")
            writer.writeheader()
            writer.writerows(rows)
    else:
        parquet.write_table(pa.table({column: [row.get(column) for row in rows] for column in columns}), path)
    return path


def whole_folder(folder: Path, *, num_rows: int = 6, suffix: str = ".jsonl") -> list[dict[str, object]]:
    """A sound folder under SCHEMA, with all five kinds; returns its rows."""
    rows: list[dict[str, object]] = []
    for name in ("img", "wav", "npy"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for i in range(num_rows):
        (folder / f"img/{i}.png").write_bytes(image_bytes(seed=i))
        (folder / f"wav/{i}.wav").write_bytes(audio_bytes(seed=i))
        (folder / f"npy/{i}.npy").write_bytes(motion_bytes(seed=i))
        (folder / f"npy/v{i}.npy").write_bytes(vector_bytes(seed=i))
        rows.append(
            {
                "image_file_name": f"img/{i}.png",
                "audio_file_name": f"wav/{i}.wav",
                "motion_file_name": f"npy/{i}.npy",
                "vector_file_name": f"npy/v{i}.npy",
                "text": f"sentence number {i}",
                "label": ("joy", "calm")[i % 2],
                "subject_id": f"p{i // 2}",
                "language": ("fr", "el")[i % 2],
            }
        )
    write_rows(folder, rows, suffix=suffix)
    return rows
