"""Asking: a site with tiny data and its owner's settings, and requests to its agent; used by the tests beside it."""

import json
from pathlib import Path

import torch
from torch import Tensor

from client.agent import answer_statistics, answer_train
from shared.config import RunConfig
from shared.messages import (
    PROTOCOL_VERSION,
    Refusal,
    RequestHeader,
    Shapes,
    StatisticsHeader,
    StatisticsReply,
    TrainReply,
)
from shared.privacy.ledger import Ledger, LedgerRow
from tests.tiny import CARD, PRIVACY, tiny_config, write_folder

DATA_SET = "north-2026"


def site_file(
    folder: Path,
    *,
    modalities: tuple[str, ...] = ("left", "right"),
    rows: int = 40,
    nominal_subjects: int | None = None,
    **privacy: object,
) -> Path:
    """A site with data, each row about a subject of its own, and its owner's settings."""
    if not (folder / "data").exists():
        write_folder(folder / "data", rows=rows, modalities=modalities, seed=5)
        (folder / "dataset.toml").write_text(CARD, encoding="utf-8")
    values = {"name": "north", "data": "data", "data_set": DATA_SET, "nominal_size": 40, "modalities": list(modalities),
              "ledger": "ledger.sqlite", "cache": "cache"}  # fmt: skip
    if nominal_subjects is not None:
        values["nominal_subjects"] = nominal_subjects
    owner = {"epsilon": 8.0, "delta": 1e-3, **privacy}
    lines = [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    lines += ["[privacy]", *(f"{key} = {json.dumps(value)}" for key, value in owner.items())]
    (folder / "site.toml").write_text("\n".join(lines), encoding="utf-8")
    return folder / "site.toml"


def rewrite_subjects(folder: Path, *, num: int | None) -> None:
    """The rows of a site are about so many subjects in turn; None: they do not say."""
    manifest = folder / "data" / "metadata.jsonl"
    rows = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
    for number, row in enumerate(rows):
        row.pop("subject_id", None)
        if num is not None:
            row["subject_id"] = f"person-{number % num}"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def ask(
    path: Path,
    run: RunConfig,
    *,
    number: int = 1,
    run_id: str = "r",
    planned: int | None = None,
    attempt: int = 0,
    **norms: float,
) -> TrainReply | Refusal:
    header = RequestHeader(
        protocol_version=PROTOCOL_VERSION, run=run, run_id=run_id, round_number=number, attempt=attempt,
        planned_rounds=planned or run.federation.rounds, **norms,
    )  # fmt: skip
    return answer_train(header, zeros, site_file=path)


def ask_counts(path: Path, run: RunConfig, *, run_id: str = "r", attempt: int = 0) -> StatisticsReply | Refusal:
    header = StatisticsHeader(
        protocol_version=PROTOCOL_VERSION, run=run, run_id=run_id, attempt=attempt,
        planned_rounds=run.federation.rounds,
    )  # fmt: skip
    return answer_statistics(header, site_file=path)


def zeros(shapes: Shapes) -> dict[str, Tensor]:
    return {name: torch.zeros(shape) for name, shape in shapes.items()}


def used(reply: TrainReply | Refusal) -> TrainReply:
    assert isinstance(reply, TrainReply), reply
    return reply


def rows_of(folder: Path) -> tuple[LedgerRow, ...]:
    """The site's ledger, read anew as after a crash."""
    return Ledger(folder / "ledger.sqlite").rows(DATA_SET)


def private(**privacy: object) -> RunConfig:
    """The tiny run with changes to its privacy."""
    return tiny_config(private=True, privacy={**PRIVACY, **privacy})


SITE_PRIVACY = {"unit": "site", "trust": "server", "epsilon": 8.0, "delta": 1e-3, "clip_norm": 0.01}
"""of a run that protects whole sites, by the server's noise"""
