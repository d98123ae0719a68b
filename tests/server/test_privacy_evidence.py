"""The privacy report's alarms, evidence and NIST's pyramid: what casts doubt stands on top, unknowns are called so."""

from collections.abc import Callable

import pytest

from server.records import RunRecord
from server.report.document import Table
from server.report.html import render
from server.report.levels import alarms
from server.report.markdown import to_markdown
from server.report.page import render_page
from server.report.privacy import privacy_document
from server.report.privacy_words import read_privacy_words
from shared.preflight import PreflightCheck
from tests.server.made_records import audited, build_record
from tests.server.test_privacy_report import KINDS, text_of
from tests.server.test_report import Page

ALARMS: dict[str, tuple[Callable[[], RunRecord], str]] = {
    "not_private": (KINDS["none"], "NOT PRIVATE"),
    "reproducible_noise": (KINDS["reproducible"], "REPRODUCIBLE NOISE"),
    "planted_fault": (lambda: audited(build_record(rounds=2), planted_fault="noise-quarter"), "PLANTED FAULT"),
    "audit_above_claim": (lambda: audited(build_record(rounds=2), lower_bound=8.01), "MORE LEAKAGE THAN IS CLAIMED"),
    "preflight_failed": (
        lambda: build_record(rounds=2).model_copy(
            update={"preflight": (PreflightCheck(name="own-gradient", passed=False, detail="moved"),)}
        ),
        "A CHECK OF THE TRAINING CODE FAILED",
    ),
    "accountants_disagree": (
        lambda: build_record(rounds=2).model_copy(
            update={"privacy": (build_record(rounds=2).privacy[0].model_copy(update={"second_epsilon": 9.0}),)}
        ),
        "TWO ACCOUNTANTS DISAGREE",
    ),
    "cap_passed": (
        lambda: build_record(rounds=2).model_copy(
            update={"privacy": (build_record(rounds=2).privacy[0].model_copy(update={"cap_epsilon": 7.0}),)}
        ),
        "A CAP IS PASSED",
    ),
}


@pytest.mark.parametrize("name", ALARMS)
def test_what_alarms_stands_in_red_before_everything_else_in_both_pages(name: str) -> None:
    make, title = ALARMS[name]
    record = make()
    assert [alarm.name for alarm in alarms(record)] == [name]
    for html in (render_page(privacy_document(record)), render(record)):
        body = html[html.index("<main>") :]
        assert title in body[: body.index("<h1>")]
        assert 'class="banner alarm"' in body[: body.index("<h1>")]
    assert to_markdown(privacy_document(record)).index(title) < 600


@pytest.mark.parametrize("kind", ["record", "subject", "site, public", "both", "site, secret", "audited"])
def test_a_sound_run_has_no_alarm(kind: str) -> None:
    assert alarms(KINDS[kind]()) == []


@pytest.mark.parametrize(("second", "found"), [(0.0107, []), (0.03, ["accountants_disagree"])])
def test_what_prv_adds_for_its_grid_is_no_disagreement_at_a_small_epsilon(second: float, found: list[str]) -> None:
    record = build_record(rounds=2)
    small = {"run_epsilon": 0.001, "epsilon": 0.001, "second_epsilon": second}
    plan = record.privacy[0].model_copy(update=small)
    assert [alarm.name for alarm in alarms(record.model_copy(update={"privacy": (plan,)}))] == found


def test_all_alarms_have_their_words() -> None:
    assert set(read_privacy_words().alarms) == set(ALARMS)


def test_an_audit_is_told_without_overselling_and_its_absence_with_the_way_to_make_one() -> None:
    text = text_of("audited")
    assert "at least 1.90" in text
    assert "95 %" in text
    assert "does not prove the claim" in text
    assert "standard deviation 1.002" in text
    text = text_of("record")
    assert "No audit was made of this run" in text
    assert "motet audit SCENARIO" in text
    assert "motet preflight SCENARIO" in text
    assert "above the claim" in text_of("audit alarm")


@pytest.mark.parametrize("kind", KINDS)
def test_the_pyramid_is_answered_level_by_level_and_unknowns_are_called_so(kind: str) -> None:
    (section,) = [each for each in privacy_document(KINDS[kind]()).sections if each.name == "pyramid"]
    (table,) = [block for block in section.blocks if isinstance(block, Table)]
    asked = " ".join(row[1].text for row in table.rows)
    assert {row[0].text.split(":")[0] for row in table.rows} == {"Top", "Middle", "Base"}
    for word in (
        "Epsilon",
        "Trust model",
        "Utility",
        "Bias",
        "Algorithm",
        "Side channels",
        "Security",
        "Data exposure",
    ):
        assert word in asked
    assert all(cell.text for row in table.rows for cell in row)
    unknown = [row for row in table.rows if row[3].text.startswith("nobody here")]
    assert len(unknown) >= 4
    assert all("ask the operator" in row[2].text for row in unknown)
    assert all(cell.text for row in table.rows for cell in row[:3])


def test_groups_are_compared_where_the_data_names_them() -> None:
    assert "Style: Macro-F1 from" in text_of("record").replace("style:", "Style:")
    assert "names no group of people" in text_of("subject")


def test_the_page_of_a_run_has_the_section_and_the_way_to_the_whole_report() -> None:
    text = Page(render(KINDS["both"]())).text
    for said in (
        "Privacy budget",
        "The guarantee exactly",
        "The budget of every site",
        "Was it tested?",
        "NIST SP 800-226",
    ):
        assert said in text
    assert "motet report RUN --privacy" in text
