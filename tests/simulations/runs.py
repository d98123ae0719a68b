"""Whole runs over the tiny data set, as `motet simulate` makes them: forty rows a site, four about each subject."""

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from server.records import RunRecord
from server.report.html import read_record
from simulations.scenario import read_scenario
from simulations.simulate import prepare_run, run_simulation
from tests.tiny import tiny_run, write_data_set


def skip_preflight(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs begin at once: what preflight finds is not what is tested."""
    monkeypatch.setattr("client.preflight.preflight", lambda run: ())
    monkeypatch.setattr("client.preflight.assert_sound", lambda run: None)


def scenario_file(folder: Path, *, private: bool, owners: str = "", **changes: object) -> Path:
    """A scenario over the tiny data set; its run as inline JSON, which TOML's dotted keys can take."""
    if not (folder / "data").exists():
        write_data_set(folder / "data", rows_per_subject=4)
    lines = ['about = "test"', "[source]", 'path = "data"', owners, *toml("run", tiny_run(private=private, **changes))]
    path = folder / "scenario.toml"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def toml(name: str, table: dict[str, object]) -> list[str]:
    lines = [
        f"[{name}]",
        *(f"{key} = {json.dumps(value)}" for key, value in table.items() if not isinstance(value, dict)),
    ]
    for key, value in table.items():
        if isinstance(value, dict):
            lines += toml(f"{name}.{key}", value)
    return lines


def simulate(folder: Path, out: str = "run", *, private: bool = True, owners: str = "", **changes: object) -> RunRecord:
    path = scenario_file(folder, private=private, owners=owners, **changes)
    settings, data_set = read_scenario(path, home=folder / "home")
    prepare_run(settings, data_set=data_set, folder=folder / out, engine="local")
    run_simulation(folder / out)
    return record_of(folder / out)


def record_of(run: Path) -> RunRecord:
    return read_record(run)


def model_of(run: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load((run / "model.safetensors").read_bytes())
