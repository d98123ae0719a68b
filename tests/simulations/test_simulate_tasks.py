"""Whole runs of many labels and of several tasks: they learn, count, and give the same model one site at a time."""

import json
from pathlib import Path

import numpy as np
import pytest

from server.records import RunRecord
from simulations.scenario import read_scenario
from simulations.simulate import prepare_run, run_simulation
from tests.simulations.runs import model_of, record_of, skip_preflight, toml
from tests.tiny import LABELS, PRIVACY, tiny_run, write_data_set

SEVERAL: dict[str, object] = {
    "task": "several",
    "tasks": {
        "kind": {"kind": "single-label", "labels": list(LABELS)},
        "size": {"kind": "rating", "rating_range": [-1.0, 1.0]},
        "marks": {"kind": "multi-label", "labels": ["first", "not_last"]},
    },
}
MANY: dict[str, object] = {"task": "multi-label", "labels": ["first", "not_last"]}


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    skip_preflight(monkeypatch)


def ran(folder: Path, task: dict[str, object], *, engine: str = "cohort", **changes: object) -> RunRecord:
    """The report of a run over the tiny data, whose rows answer these tasks; `south` knows no size."""
    data = folder / "data"
    if not data.exists():
        write_data_set(data)
        for path in data.rglob("metadata.jsonl"):
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            path.write_text("".join(json.dumps(answered(row, task, site=path.parent.name)) + "\n" for row in rows))
    modalities = {name: {"kind": "features", "width": 4} for name in ("left", "right")}
    run = tiny_run(private=False, data={**task, "modalities": modalities}, **changes)
    card = ['title = "Tiny"', "generated = true", 'licence = "CC0"', 'citation = "none"', 'source = "a test"']
    (data / "dataset.toml").write_text("\n".join([*card, *toml("content", {**task, "modalities": modalities})]))
    scenario = folder / f"{engine}.toml"
    scenario.write_text("\n".join(['about = "test"', "[source]", 'path = "data"', *toml("run", run)]))
    settings, data_set = read_scenario(scenario, home=folder / "home")
    prepare_run(settings, data_set=data_set, folder=folder / engine, engine=engine)
    run_simulation(folder / engine)
    return record_of(folder / engine)


def answered(row: dict[str, object], task: dict[str, object], *, site: str) -> dict[str, object]:
    number = LABELS.index(str(row.pop("label")))
    marks = [name for name, there in (("first", number == 0), ("not_last", number < 2)) if there]
    if task is MANY:
        return {**row, "labels": marks}
    answers: dict[str, object] = {"kind": LABELS[number], "size": number - 1.0, "marks": marks}
    if site == "south":
        del answers["size"]
    return {**row, **answers}


@pytest.mark.parametrize("task", [MANY, SEVERAL], ids=["many", "several"])
def test_one_site_at_a_time_gives_the_model_of_all_together(task: dict[str, object], tmp_path: Path) -> None:
    found = [ran(tmp_path, task, engine=engine) for engine in ("cohort", "local")]
    first, second = (model_of(tmp_path / engine) for engine in ("cohort", "local"))
    assert set(first) == set(second)
    for name, weights in first.items():
        assert np.allclose(weights.numpy(), second[name].numpy(), atol=1e-5), name
    assert found[0].test.overall.named.keys() == found[1].test.overall.named.keys()


def test_a_run_of_several_tasks_learns_each_of_them(tmp_path: Path) -> None:
    record = ran(tmp_path, SEVERAL, federation={"rounds": 12})
    scores = record.test.overall
    assert scores.metrics["mean_score"].value > 0.85
    assert scores.named["kind/macro_f1"].value > 0.85
    assert scores.named["size/pearson"].value > 0.8
    assert scores.named["marks/macro_f1"].value > 0.85
    assert record.chosen_round > 0


def test_a_run_of_many_labels_learns_them(tmp_path: Path) -> None:
    record = ran(tmp_path, MANY, federation={"rounds": 12})
    assert record.test.overall.metrics["macro_f1"].value > 0.85
    assert [scores.label for scores in record.test.overall.classes] == ["first", "not_last"]


@pytest.mark.parametrize(("task", "num"), [(MANY, 2), (SEVERAL, 6)], ids=["many", "several"])
def test_both_sides_agree_on_how_many_counts_there_are(task: dict[str, object], num: int, tmp_path: Path) -> None:
    """Noisy counts of every site arrive, as many as the task has names for them, and say where nobody was asked."""
    record = ran(tmp_path, task, privacy={**PRIVACY, "epsilon": 500.0}, statistics={"noise_multiplier": 0.3})
    assert len(record.statistics) == 3
    assert all(len(each.counts) == num for each in record.statistics)
    if task is SEVERAL:
        sizes = {each.site: each.counts[3] * 2 for each in record.statistics}
        # 40 rows or none; the noise has a deviation of 0.6 of a row
        assert abs(sizes["south"]) < 5
        assert abs(sizes["north"] - 40) < 5
