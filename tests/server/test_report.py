"""The report: opens anywhere and loads nothing, hides nothing that alarms, and never shows an epsilon rounded down."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from server.records import RunRecord, SiteRound
from server.report.closing import closing_table
from server.report.curves import epsilon_by_site
from server.report.html import render, write_report
from server.report.left import field_rows
from server.report.numbers import (
    best_guess,
    bytes_text,
    delta_text,
    duration_text,
    epsilon_text,
    listed,
    metric_text,
)
from server.report.plots import Axes, Mark, Series, interval_bar, line_chart, thinned, ticks
from server.report.summary import costs, lead, views
from server.report.tables import group_tables, site_rows, subset_table
from server.report.words import read_words
from shared.messages import PrivacyStatement, ReplyHeader
from shared.schema import DataCard
from tests.server.made_records import Protection, build_record

_VOID = {"meta", "br", "path", "rect", "circle"}


class Page(HTMLParser):
    """Tags, attributes and visible text of a page; fails on tags that do not match."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.attributes: list[tuple[str, str, str]] = []
        self.tags: list[str] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in _VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open[-1:] != ["style"]:
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


def page_of(record: RunRecord) -> Page:
    return Page(render(record))


def with_sites(record: RunRecord, **changes: Any) -> RunRecord:
    """The record with every site's every entry changed."""
    rounds = tuple(
        each.model_copy(update={"sites": tuple(replace(site, **changes) for site in each.sites)})
        for each in record.rounds
    )
    return record.model_copy(update={"rounds": rounds})


CASES = {
    "private": lambda: build_record(rounds=6, groups={"style": ("ink", "brush")}),
    "not-private": lambda: build_record(rounds=6, private=False),
    "rating": lambda: build_record(rounds=6, rating=True),
    "one-modality": lambda: build_record(rounds=1, modalities=("image",), sites=("only",)),
    "no-card": lambda: build_record(rounds=2).model_copy(update={"card": None}),
}


@pytest.mark.parametrize("case", CASES)
def test_the_page_is_whole_and_loads_nothing(case: str) -> None:
    html = render(CASES[case]())
    page = Page(html)
    loading = {"src", "href", "srcset", "action", "data", "poster", "background", "xlink:href", "formaction", "ping"}
    assert [found for found in page.attributes if found[1] in loading] == []
    assert (
        set(page.tags) & {"script", "link", "img", "iframe", "object", "embed", "base", "form", "audio", "video"}
        == set()
    )
    assert [found for found in page.attributes if found[1].startswith("on")] == []
    assert "http://" not in html
    assert "https://" not in html
    assert "url(" not in html
    assert "@import" not in html
    assert ("meta", "content", "default-src 'none'; style-src 'unsafe-inline'") in page.attributes


@pytest.mark.parametrize("case", CASES)
def test_every_picture_says_what_it_shows(case: str) -> None:
    record = CASES[case]()
    pictures = re.findall(r"<svg [^>]*>", render(record))
    assert pictures
    for picture in pictures:
        assert 'aria-hidden="true"' in picture or re.search(r'role="img" aria-label="[^"]{20,}"', picture)


def test_the_same_record_gives_the_same_bytes(tmp_path: Path) -> None:
    record = build_record(rounds=3)
    first = write_report(record, tmp_path).read_bytes()
    assert write_report(record, tmp_path).read_bytes() == first
    assert (tmp_path / "report.json").is_file()
    written = sorted(path.name for path in tmp_path.iterdir())
    assert written == ["metrics.jsonl", "report.html", "report.json"]  # no half-written rest


def test_names_from_outside_are_shown_and_never_run() -> None:
    attack = '"><script>alert(1)</script><img src=x onerror=alert(2)>'
    record = build_record(rounds=3, sites=(attack, "b"), labels=(attack + "1", "other"), groups={"style": (attack,)})
    record = record.model_copy(
        update={
            "card": DataCard(
                title=attack, generated=True, licence=attack, citation=attack, source=attack, content=record.run.data
            ),
            "versions": {attack: attack},
            "engine": attack,
        }
    )
    record = with_sites(record, code=attack, fields=(attack, "update." + attack))
    page = page_of(record)
    assert set(page.tags) & {"script", "img"} == set()
    assert [found for found in page.attributes if found[1].startswith("on")] == []
    assert attack in "".join(page.words)


@pytest.mark.parametrize(
    ("options", "title"),
    [
        ({"private": False}, "NOT PRIVATE"),
        ({"reproducible_noise": True}, "REPRODUCIBLE NOISE: PROTECTS NOBODY"),
    ],
)
def test_what_alarms_stands_in_red_before_everything_else(options: dict[str, bool], title: str) -> None:
    html = render(build_record(rounds=2, generated=False, **options))  # type: ignore[arg-type]
    body = html[html.index("<main>") :]
    assert body.index(f"<strong>{title}</strong>") < body.index("<h1>")
    assert body.index('class="banner alarm"') < body.index("<h1>")
    assert "protected: clipped" not in body
    assert "GENERATED" not in body


def test_a_private_run_on_real_data_has_no_banner() -> None:
    html = render(build_record(rounds=2, generated=False))
    assert 'class="banner' not in html


def test_generated_data_is_called_so() -> None:
    text = page_of(build_record(rounds=2)).text
    assert "GENERATED DATA" in text
    assert "say nothing about real people" in text


def test_the_headline_numbers_are_those_of_the_test_part() -> None:
    record = build_record(rounds=2)
    text = page_of(record).text
    for name in ("macro_f1", "accuracy", "macro_recall"):
        estimate = record.test.overall.metrics[name]
        assert metric_text(estimate.value) in text
        assert f"{metric_text(estimate.low or 0)} to {metric_text(estimate.high or 0)}" in text
    assert "Highest epsilon of any site 8.00 delta 0.00001" in text


def test_a_shown_epsilon_is_never_below_the_stated_one() -> None:
    assert epsilon_text(7.9901) == "8.00"
    assert epsilon_text(0.00981) == "0.0099"
    assert epsilon_text(0.001) == "0.001"
    assert epsilon_text(0.0000123) == "1.3e-05"
    assert epsilon_text(8.0) == "8.00"
    assert epsilon_text(0.29) == "0.29"  # 0.29 * 100 is 28.999999999999996 in floats
    assert epsilon_text(2.01) == "2.01"
    assert epsilon_text(None) == "–"


def test_the_certainty_an_attacker_can_reach_grows_from_even_odds_with_epsilon() -> None:
    assert best_guess(0.0, delta=0.0) == 0.5
    assert best_guess(1.0, delta=0.0) == pytest.approx(0.7311, abs=1e-4)  # e / (1 + e)
    assert best_guess(1.0, delta=0.1) > best_guess(1.0, delta=0.0)
    assert best_guess(0.0, delta=0.2) == pytest.approx(0.6)  # with chance delta the record is simply shown
    assert best_guess(10_000.0, delta=1e-5) == 1.0


def test_spending_before_this_run_is_said() -> None:
    record = build_record(rounds=3)
    assert "released about the same data before" not in page_of(record).text
    more = record.model_copy(
        update={"privacy": tuple(plan.model_copy(update={"epsilon": 9.5}) for plan in record.privacy)}
    )
    text = page_of(more).text
    assert "released about the same data before" in text
    assert "epsilon 9.50" in text


def test_a_site_that_failed_is_named_with_its_code() -> None:
    record = build_record(rounds=8)
    rows = site_rows(record, words=read_words())
    assert [row.site for row in rows if row.is_missing] == ["site-2", "site-4", "site-5"]
    assert [row.site for row in rows][:3] == ["site-2", "site-4", "site-5"]
    text = page_of(record).text
    assert "7 used, 1 too late" in text
    assert "message-invalid" in text
    assert "agreed form" in text


def test_everything_that_a_reply_may_hold_is_explained() -> None:
    """A field added to the allow-list must not reach people unexplained."""
    named = set(ReplyHeader.model_fields) - {"privacy"} | {f"privacy.{name}" for name in PrivacyStatement.model_fields}
    assert set(read_words().fields) == {*named, "statistics.counts"}


def test_everything_that_left_the_sites_is_listed_and_the_unknown_stands_out() -> None:
    record = with_sites(build_record(rounds=2), fields=("nominal_size", "mood_of_the_owner", "update.encoders.image.a"))
    rows = {row.name: row for row in field_rows(record, words=read_words())}
    assert set(rows) == {"nominal_size", "mood_of_the_owner", "update.encoders.image"}
    assert rows["mood_of_the_owner"].exposure == "exposed"
    assert "find out" in rows["mood_of_the_owner"].meaning
    assert rows["update.encoders.image"].exposure == "protected"
    assert rows["nominal_size"].exposure == "none"


def test_updates_of_a_run_without_privacy_are_listed_as_unprotected() -> None:
    rows = field_rows(build_record(rounds=2, private=False), words=read_words())
    assert {row.exposure for row in rows if row.name.startswith("update.")} == {"exposed"}


def test_epsilon_stays_where_it_was_in_a_round_that_a_site_missed() -> None:
    record = build_record(rounds=8)
    spent = epsilon_by_site(record)["site-4"]
    assert len(spent) == 8
    assert spent[3] == spent[4] == spent[5]  # failed in round 5, refused in round 6
    assert spent == sorted(spent)
    quiet = SiteRound(site="site-1", outcome="late", code="no-reply")
    first = record.rounds[0].model_copy(update={"sites": (quiet, *record.rounds[0].sites[1:])})
    assert epsilon_by_site(record.model_copy(update={"rounds": (first, *record.rounds[1:])}))["site-1"][0] == 0.0


def test_a_hundred_sites_stay_small_and_are_not_a_hundred_lines() -> None:
    record = build_record(rounds=20, sites=tuple(f"site-{number}" for number in range(105)))
    html = render(record)
    assert len(html) < 500_000
    assert "the middle half of the sites" in html
    assert html.count("<path") < 300
    assert "site-104" in html


def test_subsets_go_from_single_modalities_to_all_of_them() -> None:
    table = subset_table(build_record(rounds=1))
    assert table is not None
    assert [row.name.count("+") for row in table.rows] == [0, 0, 0, 1, 1, 1, 2]
    assert [row.is_all for row in table.rows] == [False] * 6 + [True]


def test_many_groups_are_cut_and_the_rest_is_said_to_be_elsewhere() -> None:
    record = build_record(
        rounds=1, modalities=("image",), labels=("a", "b"), groups={"language": tuple(f"l{n}" for n in range(43))}
    )
    (table,) = group_tables(record.test, record=record)
    assert len(table.rows) == 40
    assert table.note == "The 3 smallest groups are in report.json."


def test_a_run_in_which_nothing_worked_still_has_a_report() -> None:
    record = with_sites(build_record(rounds=2), outcome="failed", code="internal", epsilon=None, header=None, fields=())
    rounds = tuple(each.model_copy(update={"validation": None, "update_norm": None}) for each in record.rounds)
    record = record.model_copy(update={"rounds": rounds, "privacy": (), "chosen_round": 0})
    text = page_of(record).text
    assert "nothing about any record was released" in text
    assert "Nothing left any site" in text
    assert "untrained model" in text
    assert "no update of any of them was used" in text
    assert "sent what training had changed" not in text
    assert "no update of any of them was used" not in page_of(build_record(rounds=2)).text
    none = record.model_copy(update={"rounds": ()})
    assert page_of(none).text


def test_the_closing_table_shows_scores_subsets_budget_and_marks(tmp_path: Path) -> None:
    console = Console(width=140)
    with console.capture() as capture:
        console.print(closing_table(build_record(rounds=8), folder=tmp_path))
        console.print(closing_table(build_record(rounds=8, private=False), folder=tmp_path))
        console.print(closing_table(build_record(rounds=8, rating=True), folder=tmp_path))
    text = capture.get()
    assert "GENERATED DATA" in text
    assert "NOT PRIVATE" in text
    assert "image + text" in text
    assert "8.00 at delta 0.00001" in text
    assert "1 at times late" in text
    assert "report.html" in text.replace("\n", "")
    assert "Pearson" in text


def test_the_closing_table_names_the_unit_of_every_epsilon(tmp_path: Path) -> None:
    console = Console(width=140)
    with console.capture() as capture:
        console.print(closing_table(build_record(rounds=8, protection="subject"), folder=tmp_path))
        console.print(closing_table(build_record(rounds=8, protection="record+site", secret=True), folder=tmp_path))
    text = capture.get()
    assert "8.00 at delta 0.00001, per subject" in text
    assert "at most 8.00 at delta 0.00001, per record" in text
    assert re.search(r"epsilon of a whole site +4\.20 in all \(this run: 4\.00\) at delta 0\.00001", text)
    assert "who took part when is withheld" in text
    assert "at times withheld" not in text


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 1.0), (0.0, 7.98), (-3.0, 3.0), (0.2, 0.2), (0.0, 1e-7), (1.0, 200.0), (0.0, 1e6)]
)
def test_ticks_are_few_and_cover_the_range(low: float, high: float) -> None:
    found = ticks(low, high)
    assert found[0] <= low + 1e-9
    assert found[-1] >= high - 1e-9
    assert len(found) <= 8


def test_whole_ticks_are_whole() -> None:
    assert ticks(0.0, 2.0, whole=True) == [0.0, 1.0, 2.0]


def test_long_lines_are_thinned_and_keep_their_end() -> None:
    points = [(float(number), 0.0) for number in range(100_000)]
    assert len(thinned(points)) <= 402
    assert thinned(points)[-1] == points[-1]
    assert thinned(points[:10]) == points[:10]


def test_a_line_of_one_point_and_a_flat_line_can_be_drawn() -> None:
    axes = Axes(x="round", y="share")
    for points in ([(1.0, 0.5)], [(1.0, 0.0), (2.0, 0.0)], []):
        drawing = line_chart([Series("F1", points)], axes=axes, told="nothing much", marks=[Mark("kept", x=1.0)])
        assert "nan" not in drawing
        assert "inf" not in drawing


def test_a_bar_never_leaves_its_track() -> None:
    for value, low, high in ((2.0, -1.0, 3.0), (-0.5, -0.7, 0.1), (0.0, None, None)):
        numbers = [
            float(found)
            for found in re.findall(r"[MH](-?[\d.]+)", interval_bar(value, low=low, high=high, largest=1.0))
        ]
        assert all(0 <= number <= 200 for number in numbers)


def test_numbers_are_written_for_people() -> None:
    assert [delta_text(value) for value in (1e-5, 0.001, 1e-9, 1.23e-5)] == ["0.00001", "0.001", "1e-09", "1.2e-05"]
    assert [duration_text(value) for value in (4.21, 151.0, 11520.0)] == ["4.2 s", "2 min 31 s", "3 h 12 min"]
    assert [bytes_text(value) for value in (812, 3400, 999_900, 1_200_000_000)] == [
        "812 B",
        "3.4 kB",
        "1.0 MB",
        "1.2 GB",
    ]
    assert listed(["image", "text", "audio"]) == "image, text and audio"
    assert metric_text(-0.0001) == "0.000"


def test_who_gets_updates_without_noise_is_not_said_to_be_blind_to_records() -> None:
    words = read_words()
    cases: dict[Protection, bool] = {"record": False, "record+site": False, "site": True, "none": True}
    for protection, warned in cases.items():
        record = build_record(protection=protection)
        (server,) = [view for view in views(record, words=words) if view.who == "Whoever runs the server"]
        assert ("may give them away" in server.not_sees) == warned, protection


def test_the_time_of_a_run_is_withheld_where_participation_is() -> None:
    assert ("Time", "withheld") in costs(build_record(rounds=2, protection="site", secret=True))
    assert ("Time", "withheld") not in costs(build_record(rounds=2, protection="site"))


def test_a_run_that_its_budget_ended_is_not_said_to_have_converged() -> None:
    early = {"stopped": "early"}
    text = " ".join(lead(build_record(rounds=2, protection="site").model_copy(update=early), words=read_words()))
    assert "the budget for whole sites covered no further round" in text
    record = build_record(rounds=2)
    patient = record.run.federation.model_copy(update={"patience_rounds": 1})
    run = record.run.model_copy(update={"federation": patient})
    text = " ".join(lead(record.model_copy(update={**early, "run": run}), words=read_words()))
    assert "nothing got better" in text
