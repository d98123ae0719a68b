"""What the page, the terminal and compare say of contributions: steps that meet, signs that are right, nothing left out."""

import io
import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from server.compare import compare_runs, result_lines
from server.records import Contribution, Contributions, RunRecord
from server.report.closing import closing_table
from server.report.contributed import contribution_line, contribution_table, contribution_text, signed_text
from server.report.html import read_record, render, write_report
from tests.server.made_records import build_record


def with_contributions(found: Contributions | None, *, record: RunRecord | None = None) -> RunRecord:
    record = record or build_record(rounds=3)
    return record.model_copy(update={"test": record.test.model_copy(update={"contributions": found})})


def three(*parts: float, nothing: float, metric: str = "macro_f1", error: float | None = None) -> Contributions:
    sign = -1 if metric == "mae" else 1
    return Contributions(
        metric=metric,
        nothing=nothing,
        everything=nothing + sign * sum(parts),
        by_modality={
            name: Contribution(shapley=part, drop_one=part / 2, standard_error=error)
            for name, part in zip(("image", "text", "audio"), parts, strict=True)
        },
        orders=None if error is None else 64,
    )


def text_of(shown: object) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(shown)
    return console.export_text()


def steps(record: RunRecord) -> list[tuple[float, float, str]]:
    """Of each row where its bar starts and ends, as a share of the track, and what it is called."""
    table = contribution_table(record)
    assert table is not None
    found = []
    for row in table.rows:
        x, width, kind = re.findall(
            r'<rect x="([\d.]+)" y="2" width="([\d.]+)" height="10" class="(fill[^"]*)"', row.bar
        )[0]
        found.append((float(x) / 200, (float(x) + float(width)) / 200, kind))
    return found


def test_the_steps_go_from_nothing_to_all_and_meet() -> None:
    record = with_contributions(three(0.4, 0.35, -0.05, nothing=0.1))
    table = contribution_table(record)
    assert table is not None

    assert [row.name for row in table.rows] == ["nothing", "image", "text", "audio", "all together"]
    assert [row.value for row in table.rows] == ["0.100", "+0.400", "+0.350", "−0.050", "0.800"]
    assert [row.others for row in table.rows] == [("",), ("+0.200",), ("+0.175",), ("−0.025",), ("",)]
    assert [kind for *_, kind in steps(record)] == ["fill", "fill", "fill", "fill worse", "fill"]
    ends = [(round(start, 2), round(end, 2)) for start, end, _ in steps(record)]
    assert ends == [(0, 0.1), (0.1, 0.5), (0.5, 0.85), (0.8, 0.85), (0, 0.8)]


def test_steps_of_an_error_go_down() -> None:
    found = three(0.5, 0.25, 0.0, nothing=1.0, metric="mae")
    record = with_contributions(found, record=build_record(rounds=3, rating=True))

    ends = [(round(start, 2), round(end, 2)) for start, end, _ in steps(record)]
    assert ends == [(0, 1), (0.5, 1), (0.25, 0.5), (0.25, 0.25), (0, 0.25)]


def test_the_page_has_them_and_says_how_many_orders_were_drawn() -> None:
    page = render(with_contributions(three(0.4, 0.3, 0.0, nothing=0.1, error=0.012)))

    assert "What each modality brings" in page
    assert "± 0.012" in page
    assert "Estimated from 64 orders" in page
    assert "Estimated from" not in render(with_contributions(three(0.4, 0.3, 0.0, nothing=0.1)))
    assert "What each modality brings" not in render(with_contributions(None))


def test_the_terminal_names_them_in_a_line(tmp_path: Path) -> None:
    told = text_of(closing_table(with_contributions(three(0.3, 0.4, -0.05, nothing=0.1)), folder=tmp_path))
    assert "brought to Macro-F1  text +0.400, image +0.300, audio −0.050, from 0.100 on" in told
    assert "brought to" not in text_of(closing_table(with_contributions(None), folder=tmp_path))


def test_compare_sets_them_side_by_side_and_report_json_keeps_them(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder, found in ((first, three(0.4, 0.3, 0.0, nothing=0.1)), (second, None)):
        folder.mkdir()
        write_report(with_contributions(found), folder)

    assert read_record(first).test.contributions == three(0.4, 0.3, 0.0, nothing=0.1)
    assert re.search(r"image brings\s+\S\s+\+0.400\s+\S\s+–", text_of(compare_runs([first, second])))
    kept = [json.loads(line)["contributions"] for line in result_lines([first, second])]
    assert kept == [{"image": 0.4, "text": 0.3, "audio": 0.0}, {}]


def test_intervals_stand_beside_what_they_are_of_and_the_note_says_what_they_hold() -> None:
    each = Contribution(shapley=0.4, drop_one=0.2, shapley_interval=(0.35, 0.44), drop_one_interval=(-0.012, 0.3))
    found = Contributions(metric="macro_f1", nothing=0.1, everything=0.9, by_modality={"image": each, "text": each})
    record = with_contributions(found)
    table = contribution_table(record)
    assert table is not None
    assert [row.interval for row in table.rows] == ["", "+0.350 to +0.440", "+0.350 to +0.440", ""]
    assert table.rows[1].others == ("+0.200 (−0.012 to +0.300)",)
    assert "Ranges are 95 % intervals" in table.note
    assert "no intervals" not in table.note
    page = render(record)
    assert "<small>−0.012 to +0.300</small>" in page
    assert contribution_line(record) == (
        "brought to Macro-F1",
        "image +0.400 (+0.350 to +0.440), text +0.400 (+0.350 to +0.440), from 0.100 on",
    )
    sampled = each.model_copy(update={"standard_error": 0.01})
    assert contribution_text(sampled) == "+0.400 ± 0.010 (+0.350 to +0.440)"
    without = contribution_table(with_contributions(three(0.4, 0.3, 0.0, nothing=0.1)))
    assert without is not None
    assert "these have no intervals" in without.note


@pytest.mark.parametrize(
    ("value", "text"), [(0.1234, "+0.123"), (-0.1234, "−0.123"), (0.0004, "0.000"), (-0.0004, "0.000")]
)
def test_only_what_is_shown_has_a_sign(value: float, text: str) -> None:
    assert signed_text(value) == text
