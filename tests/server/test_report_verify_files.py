"""motet report --verify: pages that people read, and sites that ledgers know, are held against the report."""

import json
from pathlib import Path

from server.code_digest import code_digest
from server.report import write_report
from server.report.again import write_again
from server.report.verify import verify
from tests.server.test_report_verify import Tree, change, run_folder


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
        for each in table["rounds"]:
            each["sites"] = [site for site in each["sites"] if site["site"] != "a"]

    change(tmp_path / "report.json", without_a)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    for line in lines:
        line["sites"] = [site for site in line["sites"] if site["site"] != "a"]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n", encoding="utf-8")

    differing = [check.name for check in verify(tmp_path).checks if check.verdict == "differs"]

    assert "a: rows of the run, and no such site in the report" in differing
