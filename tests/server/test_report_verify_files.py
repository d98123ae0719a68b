"""motet report --verify: pages that people read, and sites that ledgers know, are held against the report."""

import json
from pathlib import Path

import pytest

from server.code_digest import code_digest
from server.history import metrics_line, read_rounds
from server.records import RunRecord
from server.report.again import write_again
from server.report.html import read_record, render, write_report
from server.report.round_totals import round_totals
from server.report.verify import verify
from shared.errors import RunError
from tests.server.test_report_verify import Tree, change, run_folder, whole, wrong


def test_a_page_that_was_edited_is_found(tmp_path: Path) -> None:
    record = run_folder(tmp_path)
    write_report(record.model_copy(update={"code_digest": code_digest()}), tmp_path)
    write_again(tmp_path, privacy=True, out=None)
    assert verify(tmp_path).is_sound

    for name in ("report.html", "privacy.html", "privacy.md", "privacy.json"):
        sound = (tmp_path / name).read_text(encoding="utf-8")
        (tmp_path / name).write_text(sound.replace("8", "3"), encoding="utf-8")
        assert [check.name for check in verify(tmp_path).checks if check.verdict == "differs"] == [name]
        (tmp_path / name).write_text(sound, encoding="utf-8")


def test_a_site_taken_out_of_the_whole_report_is_found_by_its_ledger(tmp_path: Path) -> None:
    run_folder(tmp_path)

    def without_a(table: Tree) -> None:
        table["sites"] = [site for site in table["sites"] if site != "a"]
        table["privacy"] = [plan for plan in table["privacy"] if plan["site"] != "a"]
        # whoever changes all files has the digests of the rounds made anew
        table["rounds"] = [
            each.model_dump(mode="json") for each in round_totals(read_rounds(tmp_path / "metrics.jsonl"))
        ]

    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    for line in lines:
        line["sites"] = [site for site in line["sites"] if site["site"] != "a"]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n", encoding="utf-8")
    change(tmp_path / "report.json", without_a)

    differing = [check.name for check in verify(tmp_path).checks if check.verdict == "differs"]

    assert not any(name.startswith("round") for name in differing)
    assert "a: rows of the run, and no such site in the report" in differing


def as_version_0_2_0(folder: Path, record: RunRecord) -> None:
    """report.json and metrics.jsonl as they were: all rounds in both, each reply's header in every round."""
    rounds = [each.model_dump(mode="json") for each in whole(record.rounds)]
    for each in rounds:
        for site in each["sites"]:
            site.pop("unclipped_share")  # a field that there was not

    def with_rounds(table: Tree) -> None:
        table["rounds"] = rounds

    change(folder / "report.json", with_rounds)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rounds), encoding="utf-8")


def test_a_report_of_version_0_2_0_is_read_and_verified(tmp_path: Path) -> None:
    record = run_folder(tmp_path)
    as_version_0_2_0(tmp_path, record)
    again = read_record(tmp_path)

    assert again.rounds == whole(record.rounds)
    assert render(again) == render(record)
    assert verify(tmp_path).is_sound
    change(tmp_path / "report.json", lambda table: table["rounds"][1]["sites"][0].update(epsilon=0.1))
    assert wrong(verify(tmp_path)) == ["round 2"]


def test_a_line_may_be_written_in_other_words_but_hold_nothing_else(tmp_path: Path) -> None:
    record = run_folder(tmp_path)
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(each.model_dump_json() + "\n" for each in record.rounds), encoding="utf-8")
    assert verify(tmp_path).is_sound
    path.write_text("".join(metrics_line(each) + "\n" for each in whole(record.rounds)), encoding="utf-8")
    assert wrong(verify(tmp_path)) == ["round 2", "round 3"]


def test_a_folder_without_its_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"no report\.json"):
        verify(tmp_path)
    run_folder(tmp_path / "run")
    (tmp_path / "run" / "metrics.jsonl").unlink()
    with pytest.raises(RunError, match=r"no metrics\.jsonl"):
        verify(tmp_path / "run")
