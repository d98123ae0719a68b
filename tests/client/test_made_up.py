"""Made-up rows: every kind of answer, and rows without one, so that a rehearsal has what an owner's rows have."""

from pathlib import Path

import pytest

from client.preflight import preflight
from client.preflight.made_up import NUM_ROWS, write_folder
from shared.config import RunConfig
from shared.dataset import load_samples
from shared.manifest import read_manifest
from tests.shared.test_tasks import MULTI, RATING, SEVERAL, SINGLE, run_of

RECORD = {"unit": "record", "trust": "nobody", "epsilon": 8.0, "delta": 1e-3, "clip_norm": 1.0}
GRADIENTS = ("own-gradient", "bounded", "independent", "empty-batch")


@pytest.mark.parametrize("task", [SINGLE, RATING, MULTI, SEVERAL], ids=["single", "rating", "multi", "several"])
def test_made_up_rows_are_rows_of_the_runs_own_schema(task: dict[str, object], tmp_path: Path) -> None:
    run = run_of(task)
    write_folder(tmp_path / "rows", run=run)
    assert len(read_manifest(tmp_path / "rows", schema=run.data).rows) == NUM_ROWS


def test_half_of_the_made_up_rows_answer_all_tasks_and_each_task_is_open_somewhere(tmp_path: Path) -> None:
    run = run_of(SEVERAL)
    write_folder(tmp_path / "rows", run=run)
    is_open = load_samples(tmp_path / "rows", run=run, cache=tmp_path / "cache").targets.isnan()
    assert not is_open[: NUM_ROWS // 2].any()
    assert bool(is_open[NUM_ROWS // 2 :].any(dim=1).all())
    assert bool(is_open.any(dim=0).all())
    assert not bool(is_open.all(dim=1).any())


@pytest.mark.parametrize("task", [MULTI, SEVERAL], ids=["multi", "several"])
@pytest.mark.parametrize("fusion", ["concat", "average"])
def test_a_run_of_many_answers_passes_its_preflight(task: dict[str, object], fusion: str) -> None:
    run = run_of(task, fusion=fusion)
    checks = preflight(RunConfig.model_validate({**run.model_dump(), "privacy": RECORD}), only=GRADIENTS)
    assert [check.name for check in checks if check.passed] == list(GRADIENTS), checks


@pytest.mark.parametrize("engine", ["reference", "hooks", "functional", "auto"])
def test_every_engine_has_exact_gradients_where_answers_are_missing(engine: str) -> None:
    run = run_of(SEVERAL)
    training = {**run.training.model_dump(), "gradient_engine": engine}
    private = RunConfig.model_validate({**run.model_dump(), "privacy": RECORD, "training": training})
    checks = preflight(private, only=GRADIENTS)
    assert [check.name for check in checks if check.passed] == list(GRADIENTS), checks
