"""The same run through both engines: Flower's simulation in processes of Ray's, and the grid in this process."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from client.app import SIMULATED_SITES_VARIABLE
from server.history import METRICS_FILE
from server.records import RoundRecord
from simulations.engine.flower import SITES_FILE
from tests.system.machine import left_processes_with, processes_with
from tests.system.small_federation import SITES, build_small_data_set, write_scenario

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]


def simulate(scenario: Path, *, engine: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """One run from the command line, in a process of its own: Ray leaves files open behind it in the one it ran in."""
    return subprocess.run(
        [sys.executable, str(ROOT / "motet.py"), "simulate", str(scenario), "--engine", engine, "--out", str(folder)],
        check=False, env=os.environ | {"MOTET_HOME": str(folder.parent)}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def run_in_both(home: Path, *, private: bool) -> tuple[Path, Path]:
    data_set = build_small_data_set(home / "small")
    scenario = write_scenario(home / "s.toml", data_set=data_set, private=private, reproducible_noise=private)
    for engine in ("local", "flower"):
        done = simulate(scenario, engine=engine, folder=home / engine)
        assert done.returncode == 0, done.stderr
        assert "Warning" not in done.stderr
        assert left_processes_of(home / engine) == []
    return home / "local", home / "flower"


def largest_difference(first: Path, second: Path) -> float:
    one, other = (safetensors.torch.load_file(folder / "model.safetensors") for folder in (first, second))
    assert set(one) == set(other)
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def epsilons(folder: Path) -> list[dict[str, float | None]]:
    records = [RoundRecord.model_validate_json(line) for line in (folder / METRICS_FILE).read_text().splitlines()]
    assert all(site.outcome == "used" for record in records for site in record.sites)
    return [{site.site: site.epsilon for site in record.sites} for record in records]


def left_processes_of(folder: Path) -> list[str]:
    """What is left of the processes that were told of this run's sites."""
    return left_processes_with(SIMULATED_SITES_VARIABLE, str((folder / SITES_FILE).resolve()))


def test_both_engines_give_the_same_model_without_noise(tmp_path: Path) -> None:
    local, flower = run_in_both(tmp_path, private=False)

    assert largest_difference(local, flower) < 1e-6
    assert epsilons(local) == epsilons(flower) == [dict.fromkeys(SITES)] * 3


def test_both_engines_spend_the_same_and_with_the_same_noise_give_the_same_model(tmp_path: Path) -> None:
    local, flower = run_in_both(tmp_path, private=True)

    assert epsilons(local) == epsilons(flower)
    assert all(
        0 < value <= 8 and math.isfinite(value) for spent in epsilons(flower) for value in spent.values() if value
    )
    assert largest_difference(local, flower) < 1e-6


def test_what_stops_the_server_app_is_one_clear_error_and_no_process_stays(tmp_path: Path) -> None:
    data_set = build_small_data_set(tmp_path / "small")
    scenario = write_scenario(tmp_path / "s.toml", data_set=data_set, private=True, federation={"min_sites": 4})

    done = simulate(scenario, engine="flower", folder=tmp_path / "run")

    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("RunError: 3 of 3 connected sites introduced themselves")
    assert "Traceback" not in done.stderr
    assert (tmp_path / "run" / SITES_FILE).is_file()
    assert left_processes_of(tmp_path / "run") == []


def test_processes_are_found_by_what_they_were_told() -> None:
    """The checks above could not fail if this did."""
    process = subprocess.Popen(["/bin/sleep", "60"], env={"MOTET_TEST_SLEEPER": "here"})
    try:
        assert processes_with("MOTET_TEST_SLEEPER", "here") == ["/bin/sleep 60"]
    finally:
        process.kill()
        process.wait()


def test_models_that_differ_are_told_apart(tmp_path: Path) -> None:
    for name, value in (("a", 1.0), ("b", 1.001)):
        (tmp_path / name).mkdir()
        safetensors.torch.save_file({"w": torch.tensor([value])}, tmp_path / name / "model.safetensors")

    assert largest_difference(tmp_path / "a", tmp_path / "b") > 1e-6
