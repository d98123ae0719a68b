"""motet report --verify: an untouched report is found right; a changed number, line or ledger is found and named."""

import json
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
from typer.testing import CliRunner

from motet import app
from server.central import CentralPlan, SiteBudget
from server.code_digest import code_digest
from server.history import LastReplies, metrics_line, used_replies
from server.plan import Central, Plan
from server.privacy_summary import summarise_central, summarise_privacy
from server.records import RoundRecord, RunRecord, SiteRound
from server.report.again import write_again
from server.report.html import write_report
from server.report.ledger_rows import NamedLedger
from server.report.verify import Verification, verify
from server.settings import ServerSettings, write_settings
from shared.errors import LedgerError
from shared.messages import Hello, PrivacyStatement, ReplyHeader
from shared.privacy.accountant import MechanismUse, spent_epsilon
from shared.privacy.ledger import Ledger, uses_of_rows
from tests.server.made_records import Protection, audited, build_record

RUN, DELTA, ROUNDS = "run-1", 1e-5, 3
KINDS: dict[str, tuple[Protection, bool]] = {
    "record": ("record", False),
    "subject": ("subject", False),
    "site": ("site", False),
    "secret": ("site", True),
    "both": ("record+site", False),
    "both-secret": ("subject+site", True),
}
Tree = dict[str, Any]


def run_folder(folder: Path, kind: str = "record", *, before: int = 0, same_noise: bool = False) -> RunRecord:
    """A run folder as a simulation leaves it, with every number from the accountants and a row for every round.

    Args:
        before: rounds that an earlier run spent on the first site's data.
        same_noise: both sites use the same mechanism.
    """
    protection, secret = KINDS[kind]
    record = build_record(rounds=ROUNDS, sites=("a", "b"), modalities=("image",), protection=protection, secret=secret)
    settings = ServerSettings(
        run=record.run,
        run_id=RUN,
        held_out=folder / "held-out",
        cache=folder / "cache",
        card=record.card,
        engine="local",
        num_sites=2,
        started=record.started,
        ledger=folder / "server-ledger.sqlite",
        federation="two-sites",
        site_cap_epsilon=None,
    )
    (folder / "sites").mkdir(parents=True)
    for site in record.sites:
        (folder / "sites" / f"{site}.toml").write_text(f'name = "{site}"\ndata_set = "data of {site}"\n')
    ledger = Ledger(folder / "ledger.sqlite")
    for number in range(1, before + 1):
        reserve(ledger, "a", use=MechanismUse(9.0, 0.5, 1), unit="record", run_id="run-0", number=number)
    central = None
    if record.run.central_privacy is not None:
        rate = record.run.federation.site_sample_rate or 1.0
        plan = CentralPlan(record.run.central_privacy, 4.0, 4.0, rate, 2 * rate, shapes={})
        central = Central(plan, SiteBudget(settings))
    whole_rounds = (
        made_round(number, record, ledger, central, same_noise=same_noise) for number in range(1, ROUNDS + 1)
    )
    history = tuple(map(LastReplies().shortened, whole_rounds))
    hellos = tuple(
        Hello(protocol_version=2, site=site, modalities=("image",), nominal_size=400) for site in record.sites
    )
    schedule = None if secret else (record.sites,) * ROUNDS
    whole = Plan(hellos, rounds=schedule, planned=dict.fromkeys(record.sites, ROUNDS), exchanges={})
    record = record.model_copy(
        update={
            "rounds": history,
            "chosen_round": 1,
            "privacy": summarise_privacy(list(history), run=record.run, plan=whole, statistics={}),
            "central": summarise_central(central) if central else None,
        }
    )
    write_settings(settings, folder=folder)
    (folder / "metrics.jsonl").write_text("".join(metrics_line(each) + "\n" for each in history))
    write_report(record, folder)
    return record


def made_round(
    number: int, record: RunRecord, ledger: Ledger, central: Central | None, *, same_noise: bool
) -> RoundRecord:
    local, secret = record.run.local_privacy, record.run.federation.site_sample_rate is not None
    sites = []
    for index, site in enumerate(record.sites):
        statement = None
        if local is not None:
            use = MechanismUse(12.0 if same_noise else 12.0 + index, 0.5, 2)
            unit: Literal["record", "subject"] = "subject" if local.unit == "subject" else "record"
            earlier = [row for row in ledger.rows(f"data of {site}") if row.run_id != RUN]
            before = spent_epsilon(uses_of_rows(earlier, unit=unit), delta=DELTA, accountant="rdp")
            spent = reserve(ledger, site, use=use, unit=unit, run_id=RUN, number=number)
            statement = PrivacyStatement(
                unit=unit, epsilon=spent, delta=DELTA, clip_norm=1.0, noise_multiplier=use.noise_multiplier,
                sample_rate=0.5, steps_per_round=2, accountant="rdp", reproducible_noise=False, cap_epsilon=100.0,
                epsilon_before=before,
            )  # fmt: skip
        header = ReplyHeader(protocol_version=2, run_id=RUN, round_number=number, nominal_size=400, privacy=statement)
        used = SiteRound(site=site, outcome="used", epsilon=statement.epsilon if statement else None, header=header)
        sites.append(SiteRound(site=site, outcome="withheld") if secret else used)
    epsilon = central.budget.charge(central.plan, steps=1, round_number=number, attempt=0) if central else None
    return RoundRecord(round=number, seconds=0.0, sites=tuple(sites), site_epsilon=epsilon)


def reserve(ledger: Ledger, site: str, *, use: MechanismUse, unit: Any, run_id: str, number: int) -> float:
    return ledger.reserve(
        data_set=f"data of {site}", unit=unit, use=use, run_id=run_id, round_number=number, cap_epsilon=100.0,
        delta=DELTA, accountant="rdp",
    ).epsilon_spent  # fmt: skip


def whole(rounds: Sequence[RoundRecord]) -> tuple[RoundRecord, ...]:
    """The rounds with every used reply's header in each of them."""
    headers = {(used.round, used.site): used for used in used_replies(rounds)}

    def entry(number: int, site: SiteRound) -> SiteRound:
        used = headers.get((number, site.site))
        if used is None:
            return site
        header = used.header.model_copy(update={"round_number": number, "unclipped_share": used.unclipped_share})
        if header.privacy is not None:
            stated = header.privacy.model_copy(update={"epsilon": used.epsilon})
            header = header.model_copy(update={"privacy": stated})
        return replace(site, header=header, unclipped_share=None)

    return tuple(
        each.model_copy(update={"sites": tuple(entry(each.round, site) for site in each.sites)}) for each in rounds
    )


def wrong(result: Verification) -> list[str]:
    return [check.name for check in result.checks if check.verdict == "differs"]


def missing(result: Verification) -> list[str]:
    return [check.name for check in result.checks if check.verdict == "not checked"]


def change(path: Path, edit: Callable[[Tree], None]) -> None:
    held = json.loads(path.read_text())
    edit(held)
    path.write_text(json.dumps(held))


def take_row(path: Path, *, run_id: str, number: int) -> None:
    """A row deleted by someone who does not shrink from the triggers."""
    with sqlite3.connect(path) as connection:
        for (trigger,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            connection.execute(f"DROP TRIGGER {trigger}")
        connection.execute("DELETE FROM reservations WHERE run_id = ? AND round = ?", (run_id, number))
    connection.close()


@pytest.mark.parametrize("kind", KINDS)
def test_an_untouched_report_is_found_right(tmp_path: Path, kind: str) -> None:
    run_folder(tmp_path, kind)
    result = verify(tmp_path)
    assert wrong(result) == []
    assert missing(result) == []
    assert result.is_sound
    assert len(result.checks) > 15


def test_earlier_and_later_runs_on_a_data_set_are_told_apart(tmp_path: Path) -> None:
    record = run_folder(tmp_path, before=2)
    assert (record.privacy[0].epsilon_before or 0.0) > 0.1
    assert record.privacy[0].epsilon > (record.privacy[0].run_epsilon or 0.0)
    reserve(
        Ledger(tmp_path / "ledger.sqlite"), "a", use=MechanismUse(5.0, 1.0, 1), unit="record", run_id="run-2", number=1
    )
    assert verify(tmp_path).is_sound
    take_row(tmp_path / "ledger.sqlite", run_id="run-0", number=1)
    assert "a.epsilon_before, by the ledger" in wrong(verify(tmp_path))


REPORT_CHANGES: dict[str, tuple[str, Callable[[Tree], None], str]] = {
    "a site's epsilon": ("record", lambda r: r["privacy"][0].update(epsilon=0.1), "a.epsilon"),
    "a site's noise": ("record", lambda r: r["privacy"][1].update(noise_multiplier=14.0), "b.noise_multiplier"),
    "a site's run": ("subject", lambda r: r["privacy"][0].update(run_epsilon=0.1), "a.run_epsilon"),
    "a second opinion": ("record", lambda r: r["privacy"][0].update(second_epsilon=0.1), "a.second_epsilon"),
    "a site's cap": ("record", lambda r: r["privacy"][0].update(cap_epsilon=1e3), "a.cap_epsilon"),
    "a site's steps": ("record", lambda r: r["privacy"][0].update(steps=1), "a.steps"),
    "a site left out": ("record", lambda r: r["privacy"].pop(), "b: in the list of sites"),
    "a round's epsilon": ("record", lambda r: r["rounds"][1].update(highest_epsilon=0.1), "round 2"),
    "a round's line": ("record", lambda r: r["rounds"][1].update(line_digest="0" * 64), "round 2"),
    "a round left out": ("record", lambda r: r["rounds"].pop(), "rounds"),
    "whole sites' epsilon": ("site", lambda r: r["central"].update(epsilon=0.1), "whole sites.epsilon"),
    "whole sites' cap": ("site", lambda r: r["central"].update(cap_epsilon=9.0), "whole sites.cap_epsilon"),
    "whole sites' denominator": ("secret", lambda r: r["central"].update(denominator=5.0), "whole sites.denominator"),
    "whole sites left out": ("both", lambda r: r.update(central=None), "whole sites: in the report"),
    "a plan": ("both-secret", lambda r: r["privacy"][0].update(epsilon=0.1), "a.epsilon"),
    "secret noise": ("record", lambda r: r.update(reproducible_noise=True), "reproducible noise"),
    "the engine": ("record", lambda r: r.update(engine="deployment"), "engine"),
    "the day": ("record", lambda r: r.update(started="2020-01-01T00:00:00+00:00"), "started"),
    "generated data": ("record", lambda r: r["card"].update(generated=False), "data set and where it comes from"),
    "the sites": ("site", lambda r: r.update(sites=["a"]), "sites"),
    "the settings": ("record", lambda r: r["run"].update(seed=9), "settings, SHA-256"),
    "the registry entry": (
        "record",
        lambda r: r["deployment_registry"]["deployment"]["privacy_loss"]["privacy_parameters"].update(epsilon=0.1),
        "deployment registry entry",
    ),
}


@pytest.mark.parametrize("what", REPORT_CHANGES)
def test_a_changed_report_is_found(tmp_path: Path, what: str) -> None:
    kind, edit, name = REPORT_CHANGES[what]
    run_folder(tmp_path, kind)
    change(tmp_path / "report.json", edit)
    result = verify(tmp_path)
    assert name in wrong(result)
    assert not result.is_sound


def test_changed_metrics_are_found(tmp_path: Path) -> None:
    run_folder(tmp_path)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    first, held = json.loads(lines[0]), json.loads(lines[1])
    assert "header" not in held["sites"][0]
    held["sites"][0]["header"] = first["sites"][0]["header"]
    held["sites"][0]["header"]["privacy"]["noise_multiplier"] = 20.0
    (tmp_path / "metrics.jsonl").write_text("\n".join([lines[0], json.dumps(held), lines[2]]) + "\n")
    found = wrong(verify(tmp_path))
    assert {"round 2", "a.run_epsilon", "a: rows in the ledger"} <= set(found)
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines[:2]) + "\n")
    assert "rounds" in wrong(verify(tmp_path))


def test_a_report_changed_in_all_its_files_is_found_by_the_ledger(tmp_path: Path) -> None:
    """Someone who halves every epsilon everywhere, and has the registry entry made anew, still has the ledger."""
    record = run_folder(tmp_path)

    def halved(site: SiteRound) -> SiteRound:
        assert site.epsilon is not None
        header = site.header
        if header is not None:
            assert header.privacy is not None
            stated = header.privacy.model_copy(update={"epsilon": site.epsilon / 2})
            header = header.model_copy(update={"privacy": stated})
        return replace(site, epsilon=site.epsilon / 2, header=header)

    rounds = tuple(each.model_copy(update={"sites": tuple(map(halved, each.sites))}) for each in record.rounds)
    plans = tuple(plan.model_copy(update={"epsilon": plan.epsilon / 2}) for plan in record.privacy)
    write_report(record.model_copy(update={"rounds": rounds, "privacy": plans}), tmp_path)
    (tmp_path / "metrics.jsonl").write_text("".join(metrics_line(each) + "\n" for each in rounds))
    found = wrong(verify(tmp_path))
    assert [name for name in found if "by the ledger" in name] == found
    assert len(found) == 2 * ROUNDS


@pytest.mark.parametrize(("kind", "file"), [("record", "ledger.sqlite"), ("site", "server-ledger.sqlite")])
def test_a_missing_row_is_found(tmp_path: Path, kind: str, file: str) -> None:
    run_folder(tmp_path, kind)
    take_row(tmp_path / file, run_id=RUN, number=2)
    result = verify(tmp_path)
    names = {"record": "a: rows in the ledger", "site": "whole sites: rounds of any one site, within those charged"}
    assert names[kind] in wrong(result)
    if kind == "record":
        assert any("round 2" in check.note for check in result.checks)
        assert "a: epsilon after round 3, by the ledger" in wrong(result)


def test_a_round_that_was_paid_for_and_never_arrived_is_told(tmp_path: Path) -> None:
    run_folder(tmp_path)
    spent = reserve(
        Ledger(tmp_path / "ledger.sqlite"), "a", use=MechanismUse(12.0, 0.5, 2), unit="record", run_id=RUN, number=9
    )
    result = verify(tmp_path)
    (told,) = [check for check in result.checks if check.name == "a: all its rows"]
    assert (told.verdict, told.found) == ("told", f"{spent:.6g}")
    assert "round 9" in told.note
    assert result.is_sound


def test_more_spent_in_secret_than_was_planned_is_found(tmp_path: Path) -> None:
    run_folder(tmp_path, "both-secret")
    reserve(
        Ledger(tmp_path / "ledger.sqlite"), "a", use=MechanismUse(0.5, 1.0, 9), unit="subject", run_id=RUN, number=9
    )
    assert wrong(verify(tmp_path)) == ["a: this run in the ledger"]


def test_a_void_row_counts_only_where_it_counted_then(tmp_path: Path) -> None:
    run_folder(tmp_path)
    ledger = Ledger(tmp_path / "ledger.sqlite")
    later = ledger.reserve(
        data_set="data of a", unit="record", use=MechanismUse(1.0, 1.0, 1), run_id=RUN, round_number=8, cap_epsilon=100.0,
        delta=DELTA, accountant="rdp",
    )  # fmt: skip
    ledger.void(later)
    assert verify(tmp_path).is_sound


def test_what_cannot_be_checked_is_named_and_is_no_success(tmp_path: Path) -> None:
    run_folder(tmp_path / "run")
    (tmp_path / "run" / "ledger.sqlite").rename(tmp_path / "copy.sqlite")
    result = verify(tmp_path / "run")
    assert missing(result) == ["a.epsilon, by the ledger", "b.epsilon, by the ledger"]
    assert not result.is_sound
    assert any("--ledger a=FILE" in check.note for check in result.checks)
    assert wrong(result) == []


def test_ledgers_of_sites_are_found_by_name_or_by_what_they_hold(tmp_path: Path) -> None:
    run_folder(tmp_path / "run")
    copy = (tmp_path / "run" / "ledger.sqlite").rename(tmp_path / "copy.sqlite")
    # one file with both data sets: each is known by its noise
    assert verify(tmp_path / "run", ledgers=[NamedLedger(copy)]).is_sound
    # named, but with two data sets of this run in it: whose is whose is not guessed
    named = verify(tmp_path / "run", ledgers=[NamedLedger(copy, "a")])
    assert "a.epsilon, by the ledger" in missing(named)
    with pytest.raises(LedgerError):
        verify(tmp_path / "run", ledgers=[NamedLedger(tmp_path / "run" / "report.json", "a")])


def test_ledgers_that_look_alike_are_not_guessed(tmp_path: Path) -> None:
    run_folder(tmp_path / "run", same_noise=True)
    copy = (tmp_path / "run" / "ledger.sqlite").rename(tmp_path / "copy.sqlite")
    assert len(missing(verify(tmp_path / "run", ledgers=[NamedLedger(copy)]))) == 2


def test_an_audit_that_is_not_in_the_folder_is_not_believed(tmp_path: Path) -> None:
    record = audited(run_folder(tmp_path))
    record = record.model_copy(update={"preflight": ()})
    write_report(record, tmp_path)
    assert missing(verify(tmp_path)) == ["audit"]
    assert record.audit is not None
    (tmp_path / "audit.json").write_text(record.audit.model_dump_json())
    assert verify(tmp_path).is_sound
    (tmp_path / "audit.json").write_text(record.audit.model_copy(update={"claimed_epsilon": 99.0}).model_dump_json())
    assert wrong(verify(tmp_path)) == ["audit"]


def test_another_program_is_told_and_makes_no_report_wrong(tmp_path: Path) -> None:
    run_folder(tmp_path)
    result = verify(tmp_path)
    assert [check.name for check in result.checks if check.verdict == "told"] == ["program, SHA-256", "report.html"]
    assert result.is_sound


def test_words_of_another_program_are_told_and_not_its_unit(tmp_path: Path) -> None:
    run_folder(tmp_path)
    entry = ("deployment_registry", "deployment", "privacy_loss")
    change(tmp_path / "report.json", lambda r: _inner(r, entry).update(privacy_unit_description="One row."))
    result = verify(tmp_path)
    assert result.is_sound
    assert next(check.name for check in result.checks if check.verdict == "told") == "deployment registry entry"
    change(tmp_path / "report.json", lambda r: r.update(code_digest=code_digest()))
    write_again(tmp_path, privacy=False, out=None)
    assert wrong(verify(tmp_path)) == ["deployment registry entry"]
    change(tmp_path / "report.json", lambda r: r.update(code_digest="0" * 64))
    change(tmp_path / "report.json", lambda r: _inner(r, entry).update(privacy_unit="User-level"))
    assert wrong(verify(tmp_path)) == ["deployment registry entry"]


def _inner(tree: Tree, keys: tuple[str, ...]) -> Tree:
    for key in keys:
        tree = tree[key]
    return tree


def test_the_command_ends_with_1_when_a_number_differs_and_lists_every_number(tmp_path: Path) -> None:
    run_folder(tmp_path)
    right = CliRunner().invoke(app, ["report", str(tmp_path), "--verify", "--all"])
    assert right.exit_code == 0
    assert "a.run_epsilon" in right.output
    short = CliRunner().invoke(app, ["report", str(tmp_path), "--verify"])
    assert short.exit_code == 0
    assert "a.run_epsilon" not in short.output
    assert "the run and its files" in short.output
    assert "agree with the run folder and the ledgers" in right.output
    change(tmp_path / "report.json", lambda r: r["privacy"][0].update(epsilon=0.1))
    tampered = CliRunner().invoke(app, ["report", str(tmp_path), "--verify"])
    assert tampered.exit_code == 1
    assert "differs: a.epsilon" in tampered.output
    assert "agree with the run folder and the ledgers" not in tampered.output
