"""A run, a counting preprocessor and what tests do to a data folder."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from shared.batch import Samples
from shared.config import EncoderSettings, FederationSettings, ModelSettings, PartSettings, RunConfig, TrainingSettings
from shared.media import Waveform
from shared.preprocess import RawValue
from shared.schema import DataSchema
from tests.shared.media_samples import SCHEMA, write_rows


class Way:
    """A preprocessor that keeps some of a value's first numbers, and counts what it did."""

    def __init__(
        self, *, digest: str = "way", shape: tuple[int, ...] = (3,), dtype: torch.dtype = torch.float32
    ) -> None:
        self.digest, self.shape, self.dtype = digest, shape, dtype
        self.batches: list[int] = []

    def read(self, value: RawValue) -> Tensor:
        if isinstance(value, Image.Image):
            numbers = np.asarray(value).ravel()
        elif isinstance(value, Waveform):
            numbers = value.samples.ravel()
        elif isinstance(value, str):
            numbers = np.array([*reversed(value.encode()), 0, 0, 0])
        else:
            numbers = np.asarray(value).ravel()
        return torch.tensor(numbers[:3].astype(np.float64))

    def finish(self, values: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        self.batches.append(len(values))
        return values.to(self.dtype)


class Ways(dict[str, Way]):
    def __init__(self, *, digest: str = "way") -> None:
        super().__init__({name: Way(digest=digest) for name in SCHEMA.modalities})

    @property
    def num_finished(self) -> int:
        return sum(sum(way.batches) for way in self.values())


def run_on(schema: DataSchema = SCHEMA, *, modalities: tuple[str, ...] | None = None) -> RunConfig:
    names = tuple(schema.modalities) if modalities is None else modalities
    return RunConfig(
        name="trial",
        seed=0,
        data=schema,
        model=ModelSettings(
            embedding_width=4,
            encoders={name: EncoderSettings(name="any") for name in names},
            fusion=PartSettings(name="mean"),
        ),
        training=TrainingSettings(optimizer="sgd", learning_rate=0.1, batch_size=4, local_steps=1),
        privacy="none",
        federation=FederationSettings(rounds=1),
    )


def rewrite(site: Path, change: Callable[[list[dict[str, object]]], object]) -> None:
    rows = [json.loads(line) for line in (site / "metadata.jsonl").read_text().splitlines()]
    change(rows)
    write_rows(site, rows)


def equal(a: Samples, b: Samples) -> bool:
    return (
        a.inputs.keys() == b.inputs.keys()
        and all(torch.equal(a.inputs[name], b.inputs[name]) for name in a.inputs)
        and torch.equal(a.present, b.present)
        and torch.equal(a.targets, b.targets)
        and (a.subjects, a.groups) == (b.subjects, b.groups)
    )
