"""Small runs of matching: two vectors a row, the second a rotation of the first, several rows of one item."""

import json
from pathlib import Path

import numpy as np

from tests.tiny import PRIVACY, tiny_run

CARD = """title = "Tiny pairs"
generated = true
licence = "CC0 1.0"
citation = "none"
source = "generated in a test"
[content]
task = "matching"
pair = ["left", "right"]
item = "subject_id"
[content.modalities.left]
kind = "features"
width = 4
[content.modalities.right]
kind = "features"
width = 4
"""


def write_matching_data(
    root: Path, *, public_items: int = 16, held_out_items: int = 10, rows_per_item: int = 2
) -> Path:
    """Two sites, held-out parts and public values; an item's rows differ a little."""
    for number, (part, items) in enumerate(
        (
            ("sites/north", 12),
            ("sites/south", 12),
            ("held-out/validation", held_out_items),
            ("held-out/test", held_out_items),
            ("public", public_items),
        )
    ):
        write_part(root / part, items=items, rows_per_item=rows_per_item, seed=number)
    (root / "dataset.toml").write_text(CARD, encoding="utf-8")
    return root


def matching_run(*, private: bool, matching: dict[str, object] | None = None, **changes: object) -> dict[str, object]:
    """The table of a run over these data; changes replace whole parts of it."""
    table = tiny_run(private=private)
    table["data"] = {
        "task": "matching",
        "pair": ["left", "right"],
        "item": "subject_id",
        "modalities": {name: {"kind": "features", "width": 4} for name in ("left", "right")},
    }
    table["model"] = {
        "embedding_width": 4,
        "encoders": {"left": {"name": "linear"}, "right": {"name": "linear"}},
        "fusion": {"name": "pair"},
        "matching": {"num_negatives": 16, **(matching or {})},
    }
    table["privacy"] = {**PRIVACY, "delta": 1e-2} if private else "none"
    return {**table, **changes}


def write_part(folder: Path, *, items: int, rows_per_item: int, seed: int) -> None:
    """So many items, each in some rows that differ a little."""
    draws, lines = np.random.default_rng(seed), []
    folder.mkdir(parents=True)
    for item in range(items):
        shown = draws.normal(size=4).astype(np.float32)
        for row in range(rows_per_item):
            entry = {"subject_id": f"{folder.name}-{item}"}
            for name, turned in (("left", shown), ("right", np.roll(shown, 1))):
                file = f"{name}-{item}-{row}.npy"
                np.save(folder / file, turned + 0.01 * draws.normal(size=4).astype(np.float32))
                entry[f"{name}_file_name"] = file
            lines.append(json.dumps(entry))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
