"""A report says on what its simulation trained, each start of it, and nothing of machines that are the sites' own."""

from pathlib import Path

import pytest

from client.arithmetic import Arithmetic
from server.records import Computed
from server.report.html import read_record, render
from server.report.summary import costs
from server.settings import COMPUTED_FILE, note_computed, read_computed
from shared.errors import RunError
from simulations.scenario import read_scenario
from simulations.simulate import prepare_run, run_simulation
from tests.server.made_records import build_record
from tests.simulations.runs import record_of, scenario_file, simulate, skip_preflight

LOCAL = Computed(engine="local", device="cpu", precision="float32")
COHORT = Computed(engine="cohort", device="cpu", precision="bf16", memory_bytes=2**30)


def test_a_run_in_cohorts_says_its_device_precision_and_memory_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOTET_HOME", str(tmp_path / "home"))
    skip_preflight(monkeypatch)
    settings, data_set = read_scenario(scenario_file(tmp_path, private=False), home=tmp_path / "home")
    prepare_run(settings, data_set=data_set, folder=tmp_path / "run", engine="cohort")
    run_simulation(tmp_path / "run", memory_bytes=2**30, arithmetic=Arithmetic(precision="bf16"))
    assert record_of(tmp_path / "run").computed == (COHORT,)
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "Memory bound of a cohort" in page
    assert "bf16" in page


def test_an_engine_that_trains_one_site_at_a_time_has_no_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOTET_HOME", str(tmp_path / "home"))
    skip_preflight(monkeypatch)
    assert simulate(tmp_path, private=False).computed == (LOCAL,)
    assert read_record(tmp_path / "run").computed == (LOCAL,)


def test_starts_that_compute_otherwise_are_all_told_and_equal_ones_once(tmp_path: Path) -> None:
    for each in (LOCAL, COHORT, LOCAL):
        note_computed(each, folder=tmp_path)
    assert read_computed(tmp_path) == (LOCAL, COHORT)
    told = costs(build_record(rounds=2).model_copy(update={"computed": (LOCAL, COHORT)}))
    assert [name for name, _ in told if "(" in name] == [
        "Device (local)",
        "Precision (local)",
        "Device (cohort)",
        "Precision (cohort)",
        "Memory bound of a cohort (cohort)",
    ]
    assert ("Memory bound of a cohort (cohort)", "about 1.1 GB") in told
    (tmp_path / COMPUTED_FILE).write_text("[{}]")
    with pytest.raises(RunError, match=r"computed\.json: not readable"):
        read_computed(tmp_path)


def test_of_a_deployment_nothing_is_said(tmp_path: Path) -> None:
    assert read_computed(tmp_path) == ()
    record = build_record(rounds=2)
    assert not [name for name, _ in costs(record) if name.startswith(("Device", "Precision", "Memory bound"))]
    assert "Memory bound of a cohort" not in render(record)
