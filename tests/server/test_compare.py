"""Comparison of runs: numbers side by side, and which settings differ."""

import json
from pathlib import Path

import pytest
from rich.console import Console

from server.compare import compare_runs, result_lines
from server.report.closing import closing_table
from server.report.html import read_record, write_report
from server.report.numbers import metric_text
from shared.errors import RunError
from tests.server.made_records import build_record


def printed(folders: list[Path]) -> str:
    console = Console(width=160, record=True, file=None, quiet=False)
    with console.capture() as capture:
        console.print(compare_runs(folders))
    return capture.get()


def write(folder: Path, **options: object) -> Path:
    folder.mkdir()
    write_report(build_record(rounds=3, **options), folder)  # type: ignore[arg-type]
    return folder


def test_runs_stand_side_by_side_with_metrics_budget_and_data(tmp_path: Path) -> None:
    folders = [write(tmp_path / "first", epsilon=8.0), write(tmp_path / "second", epsilon=3.0, reached=0.4)]
    text = printed(folders)

    assert "first" in text
    assert "second" in text
    for folder in folders:
        assert metric_text(read_record(folder).test.overall.metrics["macro_f1"].value) in text
    assert "8.00 at delta 0.00001" in text
    assert "3.00 at delta 0.00001" in text
    assert "GENERATED DATA" in text
    assert "only image + text" in text


def test_only_settings_that_differ_are_shown(tmp_path: Path) -> None:
    text = printed([write(tmp_path / "first", epsilon=8.0), write(tmp_path / "second", epsilon=3.0)])
    assert "privacy.epsilon" in text
    assert "training.learning_rate" not in text


def test_a_run_without_privacy_is_marked(tmp_path: Path) -> None:
    text = printed([write(tmp_path / "first"), write(tmp_path / "second", private=False)])
    assert text.count("NOT PRIVATE") == 1


def test_ratings_beside_classes_leave_dashes(tmp_path: Path) -> None:
    text = printed([write(tmp_path / "first"), write(tmp_path / "second", rating=True)])
    row = next(line for line in text.splitlines() if "Mean absolute error" in line)
    assert "–" in row


def test_a_record_comes_back_as_it_was_written(tmp_path: Path) -> None:
    record = build_record(rounds=2)
    write_report(record, tmp_path)
    assert read_record(tmp_path) == record


def test_all_bad_folders_are_named_with_what_to_do(tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "report.json").write_text('{"run": 3}')
    with pytest.raises(RunError) as error:
        compare_runs([tmp_path / "absent", damaged])
    assert "absent: no report.json in it" in str(error.value)
    assert "motet simulate --resume" in str(error.value)
    assert "not a report that this version can read" in str(error.value)


def test_no_folder_is_an_error() -> None:
    with pytest.raises(RunError, match="motet compare RUN RUN"):
        compare_runs([])


def test_a_name_with_markup_is_printed_as_it_is(tmp_path: Path) -> None:
    text = printed([write(tmp_path / "first", title="[red]stop[/red]"), write(tmp_path / "second")])
    assert "[red]stop[/red]" in text


def test_a_results_line_holds_what_the_report_says(tmp_path: Path) -> None:
    record = build_record(rounds=5, epsilon=3.0)
    write_report(record, tmp_path)
    (line,) = result_lines([tmp_path])
    found = json.loads(line)
    reached = record.test.overall.metrics["macro_f1"]
    assert found["test"]["macro_f1"] == [reached.value, reached.low, reached.high]
    assert found["epsilon"] == max(plan.epsilon for plan in record.privacy)
    assert (found["rounds"], found["delta"]) == (5, 1e-5)


def test_units_are_compared_by_name_and_both_levels_are_there(tmp_path: Path) -> None:
    both, records = tmp_path / "both", tmp_path / "records"
    for folder, record in (
        (both, build_record(rounds=3, protection="subject+site")),
        (records, build_record(rounds=3)),
    ):
        folder.mkdir()
        write_report(record, folder)
    console = Console(width=160)
    with console.capture() as capture:
        console.print(compare_runs([both, records]))
    text = capture.get()
    for said in (
        "8.00 at delta 0.00001 per subject",
        "4.20 at delta 0.00001 per site",
        "8.00 at delta 0.00001 per record",
    ):
        assert said in text
    line = json.loads(result_lines([both])[0])
    assert [level["unit"] for level in line["levels"]] == ["subject", "site"]
    assert line["epsilon"] == pytest.approx(8.0)


def test_the_time_of_a_run_with_secret_draws_is_neither_compared_nor_shown_at_its_end(tmp_path: Path) -> None:
    secret = build_record(rounds=2, protection="site", secret=True)
    console = Console(width=200)
    with console.capture() as shown:
        console.print(closing_table(secret, folder=tmp_path))
    assert "withheld, " in shown.get()
    write_report(secret, tmp_path)
    (line,) = result_lines([tmp_path])
    assert json.loads(line)["seconds"] is None
