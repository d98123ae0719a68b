"""Many sites a round: what a later round opens, and how few sites are in memory at once."""

import sys
from pathlib import Path

import pytest

from client import cohort
from client.cohort_entry import CohortSite
from server.progress import ProgressLine
from server.records import RoundRecord
from simulations.bench.motet_job import run_config, write_data_set
from simulations.scenario import OwnerSettings, Scenario, SourceSettings
from simulations.simulate import prepare_run, run_simulation
from tests.simulations.runs import skip_preflight

SITES, ROUNDS, RECORDS = 60, 4, 20


class Opened:
    """Files that this process has opened; the interpreter tells of each."""

    def __init__(self) -> None:
        self.count, self.is_counting = 0, True
        sys.addaudithook(self._note)

    def _note(self, event: str, _: object) -> None:
        self.count += self.is_counting and event == "open"


def test_later_rounds_open_hardly_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    skip_preflight(monkeypatch)
    monkeypatch.setenv("MOTET_HOME", str(tmp_path / "home"))
    # what was written a moment ago would be read again in each round
    monkeypatch.setattr("client.unchanged.SETTLED_S", -1.0)
    data = write_data_set(tmp_path / "data", sites=SITES)
    run = run_config("mlp", rounds=ROUNDS, private=False, sites=SITES)
    scenario = Scenario(about="test", source=SourceSettings(path=data), owners=OwnerSettings(), run=run)
    opened, told = Opened(), list[int]()

    def tell(_: ProgressLine, record: RoundRecord) -> None:
        assert all(site.outcome == "used" for site in record.sites)
        told.append(opened.count)

    monkeypatch.setattr(ProgressLine, "tell", tell)
    prepare_run(scenario, data_set=data, folder=tmp_path / "run", engine="cohort")
    before = opened.count
    run_simulation(tmp_path / "run", engine="cohort")
    opened.is_counting = False

    assert told[0] - before > SITES * RECORDS
    # TensorBoard's own files are imported after round 1; a round writes its checkpoint, its line and its scalars
    assert told[2] - told[1] < 20


def test_a_chunk_ends_where_it_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CohortSite, "num_bytes", 10)
    monkeypatch.setattr(cohort, "ENOUGH_SITES", 3)
    monkeypatch.setattr(cohort, "ENOUGH_BYTES", 50)
    sites = [object.__new__(CohortSite) for _ in range(12)]

    def sizes(memory_bytes: int) -> list[int]:
        return [len(chunk) for chunk in cohort._chunks(iter(sites), memory_bytes=memory_bytes)]

    assert sizes(10**9) == [5, 5, 2]
    assert sizes(20) == [2] * 6
    monkeypatch.setattr(cohort, "ENOUGH_BYTES", 0)
    assert sizes(10**9) == [3] * 4
