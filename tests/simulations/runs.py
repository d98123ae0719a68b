"""Whole runs over the tiny data set, as `motet simulate` makes them: forty rows a site, four about each subject."""

import json
from collections.abc import Mapping
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


Changes = Mapping[str, object]


def scenario_file(folder: Path, *, private: bool, owners: str = "", changes: Changes | None = None) -> Path:
    """A scenario over the tiny data set, whole parts of its run changed; values as JSON, which TOML can take."""
    if not (folder / "data").exists():
        write_data_set(folder / "data", rows_per_subject=4)
    lines = [
        'about = "test"',
        "[source]",
        'path = "data"',
        owners,
        *toml("run", tiny_run(private=private, **(changes or {}))),
    ]
    path = folder / "scenario.toml"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def toml(name: str, table: Mapping[str, object]) -> list[str]:
    """Lines of a TOML table and those in it."""
    lines = [
        f"[{name}]",
        *(f"{key} = {json.dumps(value)}" for key, value in table.items() if not isinstance(value, dict)),
    ]
    for key, value in table.items():
        if isinstance(value, dict):
            lines += toml(f"{name}.{key}", value)
    return lines


def simulate(
    folder: Path, out: str = "run", *, private: bool = True, owners: str = "", changes: Changes | None = None
) -> RunRecord:
    """The report of a run that has ended."""
    path = scenario_file(folder, private=private, owners=owners, changes=changes)
    settings, data_set = read_scenario(path, home=folder / "home")
    prepare_run(settings, data_set=data_set, folder=folder / out, engine="local")
    run_simulation(folder / out)
    return record_of(folder / out)


def record_of(run: Path) -> RunRecord:
    """What report.json says."""
    return read_record(run)


def model_of(run: Path) -> dict[str, torch.Tensor]:
    """The model that was kept."""
    return safetensors.torch.load((run / "model.safetensors").read_bytes())
