"""History: what a site says again is not written again, nothing is lost by it, and a report's size shows it."""

from dataclasses import replace
from pathlib import Path

import pytest

from server.history import LastReplies, Used, metrics_line, read_rounds, site_histories, used_replies
from server.records import RoundRecord, RunRecord, SiteRound
from server.report.html import read_record, write_report
from server.report.numbers import epsilon_text
from shared.errors import RunError
from shared.messages import PrivacyStatement, ReplyHeader
from simulations.bench.report import made_run
from tests.server.made_records import build_record

LIMIT_BYTES = 5_000_000


def header(number: int, *, epsilon: float = 1.0, noise: float = 2.0, share: float | None = None) -> ReplyHeader:
    statement = PrivacyStatement(
        unit="record", epsilon=epsilon, delta=1e-5, clip_norm=1.0, noise_multiplier=noise, sample_rate=0.1,
        steps_per_round=3, accountant="rdp", reproducible_noise=False,
    )  # fmt: skip
    return ReplyHeader(
        protocol_version=2, run_id="r", round_number=number, nominal_size=9, privacy=statement, unclipped_share=share
    )


def used(number: int, *, fields: tuple[str, ...] = ("a",), **changes: float) -> RoundRecord:
    held = header(number, **changes)
    assert held.privacy is not None
    site = SiteRound(site="s", outcome="used", epsilon=held.privacy.epsilon, fields=fields, header=held)
    return RoundRecord(round=number, seconds=0.0, sites=(site,))


def shortened(*rounds: RoundRecord) -> list[RoundRecord]:
    said = LastReplies()
    return [said.shortened(each) for each in rounds]


def test_a_header_is_kept_once_and_what_changes_in_it_in_every_round() -> None:
    rounds = shortened(*(used(number, epsilon=number / 4, share=number / 8) for number in (1, 2, 3)))
    assert [each.sites[0].header is not None for each in rounds] == [True, False, False]
    assert [each.sites[0].fields for each in rounds] == [("a",), (), ()]
    found = list(used_replies(rounds))
    assert [(each.round, each.epsilon, each.unclipped_share) for each in found] == [
        (1, 0.25, 0.125),
        (2, 0.5, 0.25),
        (3, 0.75, 0.375),
    ]
    assert {id(each.header) for each in found} == {id(rounds[0].sites[0].header)}


def test_a_header_that_changes_is_kept_whole_again() -> None:
    rounds = shortened(used(1), used(2, noise=3.0), used(3, noise=3.0), used(4, fields=("a", "b"), noise=3.0))
    assert [each.sites[0].header is not None for each in rounds] == [True, True, False, False]
    assert [each.sites[0].fields for each in rounds] == [("a",), (), (), ("a", "b")]
    said = site_histories(rounds)["s"].said
    assert [each.privacy.noise_multiplier for each in said.values()] == [2.0, 3.0, 3.0, 3.0]


def test_only_three_numbers_of_a_header_may_change_unseen() -> None:
    """A field added to the allow-list is a constant until it changes: then the header is written whole."""
    changes: dict[str, object] = {"protocol_version": 3, "run_id": "q", "nominal_size": 8, "is_within_clip": True}
    stated: dict[str, object] = {
        "unit": "subject", "delta": 1e-6, "clipping": "adaptive", "clip_norm": 2.0, "noise_multiplier": 3.0,
        "sample_rate": 0.2, "steps_per_round": 4, "accountant": "pld", "noise": "discrete",
        "reproducible_noise": True, "cap_epsilon": 9.0, "epsilon_before": 0.5,
    }  # fmt: skip
    assert set(changes) == set(ReplyHeader.model_fields) - {"round_number", "unclipped_share", "privacy"}
    assert set(stated) == set(PrivacyStatement.model_fields) - {"epsilon"}
    first = header(1)
    assert first.privacy is not None
    others = [first.model_copy(update={name: value}) for name, value in changes.items()]
    others += [
        first.model_copy(update={"privacy": first.privacy.model_copy(update={name: value})})
        for name, value in stated.items()
    ]
    others.append(first.model_copy(update={"privacy": None}))
    for other in others:
        changed = used(2)
        changed = changed.model_copy(update={"sites": (replace(changed.sites[0], header=other),)})
        assert shortened(used(1), changed)[1].sites[0].header == other


def test_rounds_read_back_are_those_written_and_shorten_on(tmp_path: Path) -> None:
    rounds = build_record(rounds=6, clipping="adaptive").rounds
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(metrics_line(each) + "\n" for each in rounds))
    again = read_rounds(path)
    assert tuple(again) == rounds
    assert LastReplies(again).shortened(rounds[-1]) == rounds[-1]
    assert len(read_rounds(path, most=2)) == 2
    path.write_text('{"round":1,"seconds":0,"sites":[{"site":"a","outcome":"used","mood":1}]}\n')
    with pytest.raises(RunError, match="damaged"):
        read_rounds(path)
    assert read_rounds(tmp_path / "none") == []


def test_a_reply_without_a_header_anywhere_says_nothing() -> None:
    site = SiteRound(site="s", outcome="used", epsilon=1.0)
    assert list(used_replies([RoundRecord(round=1, seconds=0.0, sites=(site,))])) == list[Used]()


def written(folder: Path, *, sites: int, rounds: int) -> tuple[RunRecord, dict[str, int]]:
    record = made_run(sites=sites, rounds=rounds)
    folder.mkdir()
    write_report(record, folder)
    return record, {path.name: path.stat().st_size for path in folder.iterdir()}


def test_a_report_does_not_grow_with_sites_times_rounds(tmp_path: Path) -> None:
    """Ten times the rounds: the page hardly changes, report.json grows by the rounds' own lines, whatever the sites."""
    _, short = written(tmp_path / "short", sites=200, rounds=5)
    record, long = written(tmp_path / "long", sites=200, rounds=50)
    assert long["report.html"] < 1.2 * short["report.html"] + 20_000
    assert long["report.json"] - short["report.json"] < 45 * 1_000
    assert long["metrics.jsonl"] < 130 * 200 * 50
    page = (tmp_path / "long" / "report.html").read_text()
    for plan in record.privacy:
        assert f">{plan.site}<" in page
        assert f"<b>{epsilon_text(plan.epsilon)}</b>" in page
    assert read_record(tmp_path / "long") == record


@pytest.mark.slow
def test_a_report_of_a_thousand_sites_and_five_hundred_rounds_stays_under_5_mb(tmp_path: Path) -> None:
    record, sizes = written(tmp_path / "run", sites=1_000, rounds=500)
    assert sizes["report.html"] < LIMIT_BYTES
    assert sizes["report.json"] < LIMIT_BYTES
    assert sizes["metrics.jsonl"] < 100 * 1_000 * 500
    page = (tmp_path / "run" / "report.html").read_text()
    assert all(f'<th scope="row">{plan.site}</th>' in page for plan in record.privacy)
