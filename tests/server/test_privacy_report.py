"""The privacy report: the same words on the page, in Markdown and in JSON, for every kind of run; none too wide."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from motet import app
from server.records import RunRecord
from server.report.budget import left_text, site_table
from server.report.curves import central_epsilon, privacy_charts
from server.report.document import Figure, Heading, Items, Table, Words
from server.report.html import render, write_report
from server.report.left import field_rows
from server.report.levels import levels
from server.report.markdown import escaped, to_markdown
from server.report.page import render_page
from server.report.privacy import NAMES, _laid_out, _rounded_up, privacy_document, privacy_json, write_privacy
from server.report.privacy_words import read_privacy_words
from server.report.promise import plain_guarantee
from server.report.words import read_words
from tests.server.made_records import audited, build_record
from tests.server.test_report import Page, with_sites

ATTACK = '"><script>alert(1)</script>|*x*'
KINDS: dict[str, Callable[[], RunRecord]] = {
    "record": lambda: build_record(rounds=8, statistics=True, groups={"style": ("ink", "brush")}),
    "subject": lambda: build_record(rounds=8, protection="subject", clipping="adaptive"),
    "site, public": lambda: build_record(rounds=8, protection="site"),
    "site, secret": lambda: build_record(rounds=8, protection="site", secret=True),
    "both": lambda: build_record(rounds=8, protection="subject+site"),
    "both, secret": lambda: build_record(rounds=8, protection="record+site", secret=True),
    "none": lambda: build_record(rounds=8, private=False),
    "reproducible": lambda: build_record(rounds=8, reproducible_noise=True),
    "audited": lambda: audited(build_record(rounds=8)),
    "audit alarm": lambda: audited(build_record(rounds=8), lower_bound=9.1, planted_fault="noise-quarter"),
    "nothing told": lambda: build_record(rounds=8, tells=False, rating=True),
    "many sites": lambda: build_record(rounds=8, sites=tuple(f"s-{number}" for number in range(40))),
    "hostile": lambda: with_sites(build_record(rounds=2, sites=(ATTACK, "b")), code=ATTACK, fields=(ATTACK,)),
}
WORDS, SENTENCES = read_words(), read_privacy_words()


def plain(record: RunRecord) -> str:
    return plain_guarantee(record, words=WORDS, sentences=SENTENCES)


def text_of(kind: str) -> str:
    return Page(render_page(privacy_document(KINDS[kind]()))).text


def statements_of(record: RunRecord) -> list[str]:
    """Every text of the report, cell by cell."""
    document = privacy_document(record)
    found = [document.title, document.subtitle, document.footer]
    for notice in document.notices:
        found += [notice.title, notice.text]
    for section in document.sections:
        found.append(section.title)
        for block in section.blocks:
            if isinstance(block, Words | Heading):
                found.append(block.text)
            elif isinstance(block, Items):
                found += block.texts
            elif isinstance(block, Table):
                found += [block.caption, *block.head, *(cell.text for row in block.rows for cell in row)]
            else:
                assert isinstance(block, Figure)
                for chart in block.charts:
                    found += [
                        chart.heading,
                        chart.caption,
                        *chart.head,
                        *(text for row in chart.numbers for text in row),
                    ]
    return [text for text in found if text]


def flat(text: str) -> str:
    return re.sub(r"\s+", " ", text)


@pytest.mark.parametrize("kind", KINDS)
def test_every_statement_stands_on_the_page_in_markdown_and_in_json(kind: str) -> None:
    record = KINDS[kind]()
    document = privacy_document(record)
    page, markdown = Page(render_page(document)).text, flat(to_markdown(document))
    held = json.dumps(json.loads(privacy_json(record, document=document))["document"], ensure_ascii=False)
    for text in statements_of(record):
        assert flat(text) in page, text
        assert escaped(text) in markdown, text
        assert json.dumps(text, ensure_ascii=False)[1:-1] in held, text


PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)


@given(st.recursive(PLAIN, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner)))
@settings(max_examples=60, deadline=None)
def test_laid_out_json_says_what_plain_json_says(value: object) -> None:
    assert json.loads(_laid_out(value)) == json.loads(json.dumps(value))


@given(st.floats(1e-9, 1e9))
def test_epsilons_by_round_are_rounded_up_in_the_sixth_digit(epsilon: float) -> None:
    told = _rounded_up(epsilon)
    assert epsilon <= told <= epsilon * (1 + 1e-5)
    assert len(repr(told).replace(".", "").strip("0").partition("e")[0]) <= 7
    assert [_rounded_up(value) for value in (0.0, math.inf)] == [0.0, math.inf]


def test_a_curve_of_many_rounds_is_one_line_of_json() -> None:
    record = build_record(rounds=8)
    text = privacy_json(record, document=privacy_document(record))
    for site, curve in json.loads(text)["epsilon_by_round"]["sites"].items():
        assert f"{json.dumps(site)}: {json.dumps(curve)}" in text


@pytest.mark.parametrize("kind", KINDS)
def test_both_pages_load_nothing_and_run_nothing(kind: str) -> None:
    record = KINDS[kind]()
    for html in (render_page(privacy_document(record)), render(record)):
        page = Page(html)
        assert set(page.tags) & {"script", "link", "img", "iframe", "object", "embed", "base", "form"} == set()
        loading = {"src", "href", "srcset", "action", "data", "xlink:href"}
        assert [found for found in page.attributes if found[1] in loading or found[1].startswith("on")] == []
        assert ("meta", "content", "default-src 'none'; style-src 'unsafe-inline'") in page.attributes
        assert not re.search(r"https?://|url\(|@import", html)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_record_gives_the_same_three_files(tmp_path: Path, kind: str) -> None:
    paths = write_privacy(KINDS[kind](), tmp_path)
    first = [path.read_bytes() for path in paths]
    assert [path.read_bytes() for path in write_privacy(KINDS[kind](), tmp_path)] == first
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(NAMES)


@pytest.mark.parametrize("kind", KINDS)
def test_markdown_tables_are_whole(kind: str) -> None:
    """Every row of a table has as many fields as its head, and a line under the head."""
    lines = to_markdown(privacy_document(KINDS[kind]())).splitlines()
    width = 0
    for before, line in zip(["", *lines], lines, strict=False):
        if not line.startswith("|"):
            continue
        fields = len(re.findall(r"(?<!\\)\|", line)) - 1
        if not before.startswith("|"):
            width = fields
            assert before == ""
        assert fields == width, line
    heads = [
        number for number, line in enumerate(lines) if line.startswith("|") and not lines[number - 1].startswith("|")
    ]
    assert heads
    assert all(re.fullmatch(r"\|( -+:? \|)+", lines[number + 1]) for number in heads)
    assert next(line for line in lines if line.startswith("#")).startswith("# Privacy budget of")


def test_text_cannot_become_markdown() -> None:
    assert escaped("a|b\n# <b>*x*</b> [l](u)") == r"a\|b \# \<b\>\*x\*\</b\> \[l\](u)"
    assert escaped("1. first") == r"1\. first"
    assert escaped("- item") == r"\- item"


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in {"none", "hostile"}])
def test_the_guarantee_in_plain_words_has_no_symbol_and_no_term(kind: str) -> None:
    said = plain(KINDS[kind]())
    assert not re.search(r"epsilon|delta|[ε∂δ%=<>^]|differential|Gaussian|Poisson", said, flags=re.IGNORECASE)
    assert len(said.split()) > 40


def test_the_guarantee_speaks_of_the_unit_that_is_protected() -> None:
    assert "any one record in its data" in plain(KINDS["record"]())
    assert "any one person, with all records" in plain(KINDS["subject"]())
    assert "any one whole site" not in plain(KINDS["subject"]())
    assert "against the server itself, which is trusted: it saw every site's update without noise" in plain(
        KINDS["site, public"]()
    )
    both = plain(KINDS["both"]())
    assert "any one person" in both
    assert "any one whole site" in both
    assert "with the noise of the site's own promise" in both
    assert plain(KINDS["none"]()).startswith("There is no guarantee.")
    assert plain(KINDS["reproducible"]()).startswith("What follows would hold if the noise were secret.")


def test_a_run_whose_participation_is_secret_promises_no_more_than_was_asked() -> None:
    record = KINDS["both, secret"]()
    (local, central) = levels(record)
    assert local.epsilon is None
    assert central.epsilon == pytest.approx(4.2)
    text = text_of("both, secret")
    assert "At most 8.00 in this run, at every site" in text
    assert "Why participation is withheld" in text
    assert "Everything the site has ever released" not in text
    assert "40 of 40" not in text
    assert "Which site sent what in which round is kept by the server" in text
    assert {row.sites for row in field_rows(record, words=WORDS)} == {"withheld"}
    assert "Sites by round" not in Page(render(record)).text


@pytest.mark.parametrize(
    ("kind", "units"),
    [
        ("record", ["record"]),
        ("subject", ["subject"]),
        ("site, public", ["site"]),
        ("site, secret", ["site"]),
        ("both", ["subject", "site"]),
        ("none", []),
    ],
)
def test_every_level_is_stated_exactly(kind: str, units: list[str]) -> None:
    record = KINDS[kind]()
    assert [level.unit for level in levels(record)] == units
    (exact,) = [section for section in privacy_document(record).sections if section.name == "exactly"]
    tables = [block for block in exact.blocks if isinstance(block, Table)]
    assert len(tables) == len(units)
    for table in tables:
        names = [row[0].text for row in table.rows]
        for name in (
            "Unit",
            "Neighbouring data sets",
            "Epsilon",
            "Delta",
            "Mechanism",
            "Clipping",
            "Noise",
            "Sampling",
        ):
            assert name in names
        assert {"Composition", "Accountants", "Who has to be trusted"} <= set(names)
        assert all(row[1].text for row in table.rows)


def test_sampling_is_claimed_only_where_it_is_secret() -> None:
    claim, none = "The lower cost of sampling is claimed", "no lower cost of sampling is claimed"
    assert claim in text_of("record")
    assert claim in text_of("site, secret")
    assert claim not in text_of("site, public")
    assert none in text_of("site, public")


def test_what_differs_between_neighbours_fits_the_mechanism() -> None:
    assert "One record added to a site's data set" in text_of("record")
    assert "All records of one subject added" in text_of("subject")
    assert (
        "Everything that one site sends left out, so that its updates count as zeros, in every round for which the public"
        in text_of("site, public")
    )
    assert "for which the secret draw names it" in text_of("site, secret")


def test_an_owner_who_protects_people_in_a_run_that_asks_for_records_is_told_apart() -> None:
    record = build_record(rounds=3)
    plans = (record.privacy[0].model_copy(update={"unit": "subject"}), *record.privacy[1:])
    found = levels(record.model_copy(update={"privacy": plans}))
    assert [(level.unit, len(level.sites)) for level in found] == [("record", 5), ("subject", 1)]


def test_accountants_are_named_with_how_far_they_disagree() -> None:
    assert "finds 7.44 for the same steps of this run: 7.0 % less at most" in text_of("record")
    assert "0.4 % more at most" in text_of("site, public")


def test_every_site_has_its_budget_and_what_is_not_told_is_said_to_be_so() -> None:
    record = KINDS["record"]()
    table = site_table(record, words=WORDS, sentences=SENTENCES)
    cells = {row[0].text: [cell.text for cell in row] for row in table.rows}
    assert cells["site-1"][2:7] == ["10.00", "0.00", "8.00", "8.00", "2.00"]
    assert cells["site-4"][-1].startswith("after round 4; in round 6 refused by the site: the owner's budget")
    assert next(row[0].text for row in table.rows) == "site-4"
    assert cells["site-1"][-1] == ""
    assert text_of("nothing told").count("not told by its owner") == 3 * 6


def test_what_is_left_is_never_rounded_up() -> None:
    assert left_text(8.0, 7.991) == "0.00"
    assert left_text(10.0, 8.0) == "2.00"
    assert left_text(1.0, 1.2) == "0.00"


def test_a_record_of_forty_sites_shows_who_left_and_who_spent_most_and_folds_the_rest() -> None:
    record = KINDS["many sites"]()
    html = render_page(privacy_document(record))
    assert "<summary>All 40 sites</summary>" in html
    assert html.index("s-3<") < html.index("<summary>All 40 sites</summary>")
    assert len(html) < 300_000


def test_curves_have_the_limits_and_a_table_of_the_same_numbers() -> None:
    charts = privacy_charts(KINDS["both"]())
    assert [chart.heading for chart in charts][:2] == ["Epsilon by site and round", "Epsilon of whole sites by round"]
    for chart in charts[:2]:
        assert "limit" in chart.drawing
        assert "cap" in chart.drawing
        assert chart.numbers[-1][0] == "8"
        assert len(chart.numbers) <= 13
    assert charts[1].numbers[-1] == ("8", "4.20")
    assert charts[0].numbers[-1][1] == "8.00"
    assert central_epsilon(KINDS["record"]()) == []
    long = privacy_charts(build_record(rounds=100))[0]
    assert len(long.numbers) <= 13
    assert long.numbers[-1][0] == "100"


def test_updates_that_only_the_server_hides_are_listed_as_such() -> None:
    rows = field_rows(KINDS["site, public"](), words=WORDS)
    assert {row.exposure for row in rows if row.name.startswith("update.")} == {"trusted"}
    rows = field_rows(KINDS["subject"](), words=WORDS)
    assert {row.name: row.exposure for row in rows}["unclipped_share"] == "protected"
    assert {row.name: row.sites for row in rows}["update.encoders.audio"] == "site-3, site-6"
    assert {row.exposure for row in field_rows(KINDS["reproducible"](), words=WORDS) if "update" in row.name} == {
        "exposed"
    }


def test_noisy_counts_are_listed_with_their_cost() -> None:
    text = text_of("record")
    assert "Noisy counts" in text
    assert "statistics.counts" in text
    assert "103.2" in text
    assert "Noisy counts" not in text_of("subject").replace("by noisy counts", "")


def test_what_is_not_protected_fits_the_units() -> None:
    assert "A person with several records at a site" in text_of("record")
    assert "A person with several records at a site" not in text_of("subject")
    assert "Single records or people, against the server" in text_of("site, public")
    assert "Single records or people, against the server" not in text_of("both")
    for kind in ("record", "site, secret", "both"):
        text = text_of(kind)
        for said in ("That a site is a member", "Timing:", "Sizes:", "true of people in general", "several sites hold"):
            assert said in text


def test_a_report_can_be_made_again_with_digests_and_versions() -> None:
    record = KINDS["record"]()
    text = text_of("record")
    for said in (record.run.digest, record.code_digest, "Version of torch 2.13.0", "motet report RUN --verify"):
        assert said in text


def test_the_command_writes_three_files_and_counts_an_audit_made_since(tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    run.mkdir()
    record = build_record(rounds=3)
    write_report(record, run)
    held = (run / "report.json").read_bytes()
    audit = audited(record, lower_bound=3.21).audit
    assert audit is not None
    (run / "audit.json").write_text(audit.model_dump_json())
    done = CliRunner().invoke(app, ["report", str(run), "--privacy", "--out", str(out)])
    assert done.exit_code == 0
    assert sorted(path.name for path in out.iterdir()) == sorted(NAMES)
    assert "at least 3.21" in (out / "privacy.md").read_text()
    assert CliRunner().invoke(app, ["report", str(run)]).exit_code == 0
    assert "at least 3.21" in (run / "report.html").read_text()
    assert (run / "report.json").read_bytes() == held
    assert CliRunner().invoke(app, ["report", str(run), "--verify", "--privacy"]).exit_code == 2
    assert CliRunner().invoke(app, ["report", str(run), "--ledger", "x"]).exit_code == 2


def test_each_of_two_promises_is_judged_by_its_own_epsilon() -> None:
    words, record = read_words(), build_record(protection="record+site", epsilon=0.5)
    local, central = plain_guarantee(record, words=words, sentences=read_privacy_words()).split("The server limited")
    assert words.texts["judgement_1"] in local
    assert words.texts["judgement_1"] not in central
    assert any(text in central for name, text in words.texts.items() if name.startswith("judgement"))


def test_an_epsilon_under_a_chart_is_not_rounded_down() -> None:
    record = build_record()
    chart = next(each for each in privacy_charts(record) if "against epsilon" in each.heading)
    tops = [max(site.epsilon or 0.0 for site in each.sites) for each in record.rounds]
    shown = [float(row[0]) for row in chart.numbers]
    assert all(any(0 <= low - top < 0.0101 for top in tops) for low in shown)
