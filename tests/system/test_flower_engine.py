"""The same run through both engines: Flower's simulation in processes of Ray's, and the grid in this process."""

import math
from pathlib import Path

import pytest
import safetensors.torch
import torch

from client.app import SIMULATED_SITES_VARIABLE
from server.checkpoint import METRICS_FILE
from server.records import RoundRecord
from shared.errors import RunError
from simulations.engine.flower import SITES_FILE
from simulations.scenario import read_scenario
from simulations.simulate import Engine, prepare_run, run_simulation
from tests.system.small_federation import SITES, build_small_data_set, write_scenario

pytestmark = pytest.mark.slow


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MOTET_HOME", str(tmp_path))
    return tmp_path


def run(scenario: Path, *, engine: Engine, folder: Path) -> Path:
    settings, data_set = read_scenario(scenario, home=folder.parent)
    prepare_run(settings, data_set=data_set, folder=folder, engine=engine)
    run_simulation(folder, engine=engine)
    return folder


def run_in_both(home: Path, *, private: bool) -> tuple[Path, Path]:
    data_set = build_small_data_set(home / "small")
    scenario = write_scenario(home / "s.toml", data_set=data_set, private=private, reproducible_noise=private)
    return (
        run(scenario, engine="local", folder=home / "local"),
        run(scenario, engine="flower", folder=home / "flower"),
    )


def largest_difference(first: Path, second: Path) -> float:
    one, other = (safetensors.torch.load_file(folder / "model.safetensors") for folder in (first, second))
    assert set(one) == set(other)
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def epsilons(folder: Path) -> list[dict[str, float | None]]:
    records = [RoundRecord.model_validate_json(line) for line in (folder / METRICS_FILE).read_text().splitlines()]
    assert all(site.outcome == "used" for record in records for site in record.sites)
    return [{site.site: site.epsilon for site in record.sites} for record in records]


def processes_of(folder: Path) -> list[str]:
    """Command lines of all processes that were told of this run's sites."""
    told = f"{SIMULATED_SITES_VARIABLE}={(folder / SITES_FILE).resolve()}".encode()
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if told in (process / "environ").read_bytes().split(b"\0"):
                found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return found


def test_both_engines_give_the_same_model_without_noise(home: Path) -> None:
    local, flower = run_in_both(home, private=False)

    assert largest_difference(local, flower) < 1e-6
    assert epsilons(local) == epsilons(flower) == [dict.fromkeys(SITES)] * 3


def test_both_engines_spend_the_same_and_with_the_same_noise_give_the_same_model(home: Path) -> None:
    local, flower = run_in_both(home, private=True)

    assert epsilons(local) == epsilons(flower)
    assert all(0 < value <= 8 and math.isfinite(value) for spent in epsilons(flower) for value in spent.values() if value)
    assert largest_difference(local, flower) < 1e-6


def test_what_stops_the_server_app_comes_through_and_no_process_stays(home: Path) -> None:
    data_set = build_small_data_set(home / "small")
    scenario = write_scenario(
        home / "s.toml", data_set=data_set, private=True, federation={"min_sites": 4, "wait_for_sites_s": 5.0}
    )

    with pytest.raises(RunError, match="min_sites asks for 4"):
        run(scenario, engine="flower", folder=home / "run")
    assert (home / "run" / SITES_FILE).is_file()
    assert processes_of(home / "run") == []


def test_processes_are_found_by_what_they_were_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check above could not fail if this did."""
    import subprocess

    monkeypatch.setenv(SIMULATED_SITES_VARIABLE, str((tmp_path / SITES_FILE).resolve()))
    process = subprocess.Popen(["/bin/sleep", "60"])
    try:
        assert processes_of(tmp_path) == ["/bin/sleep 60 "]
    finally:
        process.kill()
        process.wait()


def test_models_that_differ_are_told_apart(tmp_path: Path) -> None:
    for name, value in (("a", 1.0), ("b", 1.001)):
        (tmp_path / name).mkdir()
        safetensors.torch.save_file({"w": torch.tensor([value])}, tmp_path / name / "model.safetensors")

    assert largest_difference(tmp_path / "a", tmp_path / "b") > 1e-6
