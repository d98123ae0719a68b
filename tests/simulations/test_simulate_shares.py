"""Sites that train different parts of one model: the engines agree, and the report says who trained what."""

from pathlib import Path

import pytest
import torch

from client import agent
from server.records import RunRecord
from simulations.scenario import read_scenario
from simulations.simulate import prepare_run, run_simulation
from tests.simulations.runs import model_of, record_of, scenario_file, skip_preflight
from tests.tiny import tiny_run

OWNERS = '[owners]\nreproducible_noise = true\n[owners.sites."s*"]\nfrozen = ["encoders.left.*"]'
MODEL = tiny_run(private=False)["model"]


@pytest.fixture(autouse=True)
def _cold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOTET_HOME", str(tmp_path / "home"))
    skip_preflight(monkeypatch)
    monkeypatch.setattr("simulations.preflight_cohort.cohort_checks", lambda _: ())
    agent._loaded_samples.cache_clear()


def simulated(folder: Path, out: str, *, engine: str, **model: object) -> RunRecord:
    assert isinstance(MODEL, dict)
    changes = {"model": {**MODEL, **model}, "federation": {"rounds": 2, "weighting": "modality"}}
    scenario, data_set = read_scenario(
        scenario_file(folder, private=False, owners=OWNERS, changes=changes), home=folder / "home"
    )
    prepare_run(scenario, data_set=data_set, folder=folder / out, engine=engine)
    run_simulation(folder / out)
    return record_of(folder / out)


def test_engines_agree_on_sites_that_train_different_parts_and_keep_some(tmp_path: Path) -> None:
    records = {name: simulated(tmp_path, name, engine=name, personal=["head.*"]) for name in ("local", "cohort")}
    one, other = (model_of(tmp_path / name) for name in records)
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name])
    assert records["local"].shares == records["cohort"].shares
    shares = {share.site: share for share in records["local"].shares}
    assert shares["south"].frozen == ("encoders.left.*",)
    assert shares["south"].given == 20
    assert (shares["north"].given, shares["west"].given) == (0, 0)
    assert shares["north"].nominal_modality_sizes == {"left": 40, "right": 40}
    assert {share.personal for share in shares.values()} == {15}
    page = (tmp_path / "local" / "report.html").read_text(encoding="utf-8")
    assert "Who trained what" in page
    assert "Kept at the sites" in page


def test_a_run_goes_on_with_an_earlier_one_under_a_new_head(tmp_path: Path) -> None:
    simulated(tmp_path, "first", engine="local")
    start = {"path": str(tmp_path / "first"), "parts": ["encoders.*"]}
    record = simulated(tmp_path, "second", engine="cohort", start=start, freeze=["encoders.*"])
    first, second = model_of(tmp_path / "first"), model_of(tmp_path / "second")
    for name, value in second.items():
        assert torch.equal(value, first[name]) == name.startswith("encoders.")
    assert record.start is not None
    assert record.start.privacy == "none"
    page = (tmp_path / "second" / "report.html").read_text(encoding="utf-8")
    assert "IT WAS NOT PRIVATE" in page
    assert record.start.run_id is not None
    assert record.start.run_id in page
    assert record.num_parameters == sum(v.numel() for n, v in second.items() if not n.startswith("encoders."))
