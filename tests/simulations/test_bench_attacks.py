"""The benchmark of attacks: which runs it makes, that none is made twice, and what its table says."""

import itertools
from functools import partial
from pathlib import Path
from typing import get_args

import pytest

from server.records import AggregationNote
from shared.aggregation_settings import Rule
from shared.schema import DataSchema
from simulations.attacks.settings import Kind
from simulations.bench import attacks
from simulations.bench.attacks import CASES, RULES, SHARES, Job, Outcome, Privacy, grid, stored, table, words_of
from simulations.scenario import find_scenario, read_run
from tests.server.made_records import build_record
from tests.tiny import LABELS


def _job(rule: Rule = "mean", *, attack: attacks.Harm = "none", share: float = 0.0, seed: int = 0) -> Job:
    return Job(data="moods", privacy="none", rule=rule, attack=attack, share=share, seed=seed)


def _outcome(job: Job, macro_f1: float | None, last: float | None = None) -> Outcome:
    return Outcome(
        job=job,
        macro_f1=None if macro_f1 is None else (macro_f1, 0.0, 1.0),
        last_macro_f1=last,
        chosen_round=1,
        hostile_sites=(),
        rejected={},
        set_aside=(0.0, 0.0),
        epsilon=None,
        settings="",
        commit="",
    )


def test_a_factor_of_ones_own_is_a_run_of_its_own_and_a_line_of_its_own() -> None:
    chosen = partial(grid, data=["moods"], privacy=["none"], rules=["mean"], shares=[0.3], seeds=[0])
    (usual,) = chosen(attacks=["sign-flipped"])
    (weak,) = chosen(attacks=["sign-flipped"], factor=1.0)
    (label,) = chosen(attacks=["label-flipped"], factor=1.0)
    assert usual != weak
    assert "attack.factor=1.0" in words_of(weak, source=None, out=Path("out"))
    assert label.factor is None
    lines = table([_outcome(usual, 0.1, 0.1), _outcome(weak, 0.5, 0.5)])[2:]
    assert ["factor 1" in line for line in lines] == [False, True]


def test_every_rule_meets_every_attack_and_once_none() -> None:
    privacy, kinds = get_args(Privacy), get_args(Kind)
    jobs = list(grid(data=list(CASES), privacy=privacy, rules=list(RULES), attacks=kinds, shares=SHARES, seeds=[0]))
    assert len(jobs) == len({job.model_dump_json() for job in jobs}) == 2 * 2 * 6 * (1 + 3 * len(kinds))
    assert set(RULES) == set(get_args(Rule))


@pytest.mark.parametrize("rule", list(RULES))
def test_the_settings_of_a_cell_are_allowed_and_the_attack_is_none_of_them(rule: Rule) -> None:
    """Krum reckons with as many hostile sites in the run that has none."""
    changes = []
    for job in (_job(rule), _job(rule, attack="scaled", share=0.3)):
        words = words_of(job, source=None, out=Path("out"))
        changes.append([word for flag, word in itertools.pairwise(words) if flag == "--set"])
    modalities = {name: {"kind": kind} for name, kind in (("image", "image"), ("text", "text"), ("audio", "audio"))}
    schema = DataSchema.model_validate({"task": "single-label", "labels": list(LABELS), "modalities": modalities})
    runs = [read_run(find_scenario("moods"), changes=each, data=schema) for each in changes]
    assert runs[0] == runs[1]
    assert runs[0].federation.aggregation == rule
    assert runs[0].federation.fewest_updates == (9 if "krum" in rule else 1)
    assert {"attack.kind=scaled", "attack.share=0.3", "attack.factor=30.0"} <= set(changes[1])
    assert not any(word.startswith("attack") for word in changes[0])


def test_a_stored_run_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[Job] = []

    def run(job: Job, *, source: Path | None) -> Outcome:
        del source
        ran.append(job)
        if len(ran) == 3:
            raise KeyboardInterrupt
        return _outcome(job, 0.9, 0.8)

    monkeypatch.setattr(attacks, "run", run)
    words = ["--data", "moods", "--privacy", "none", "--rules", "mean", "krum", "--attacks", "scaled"]
    words += ["--shares", "0", "0.3", "--out", str(tmp_path / "attacks.jsonl")]
    with pytest.raises(KeyboardInterrupt):
        attacks.main(words)
    assert len(stored(tmp_path / "attacks.jsonl")) == 2
    attacks.main(words)
    assert len(ran) == 5
    assert len(stored(tmp_path / "attacks.jsonl")) == 4


def test_a_cell_shows_the_kept_model_and_the_last_one_and_that_a_run_was_stopped() -> None:
    some = [
        _outcome(_job(), 0.95, 0.94),
        _outcome(_job("median", attack="scaled", share=0.3), 0.5, 0.25),
        _outcome(_job("median", attack="scaled", share=0.3, seed=1), 0.7, 0.35),
        _outcome(_job("krum", attack="other-name", share=0.1), None),
    ]
    assert table(some)[2:] == [
        "| `moods` | none | none | 0% | .950 (.940) |  |  |  |  |  |",
        "| `moods` | none | scaled | 30% |  | .600 (.300) ×2 |  |  |  |  |",
        "| `moods` | none | other-name | 10% |  |  |  |  | stopped |  |",
    ]


def test_who_was_left_out_is_counted_by_whether_it_is_hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = build_record(rounds=4)
    note = AggregationNote(set_aside=record.sites[:2])
    rounds = tuple(each.model_copy(update={"aggregated": note}) for each in record.rounds)
    monkeypatch.setattr(attacks, "read_record", lambda _: record.model_copy(update={"rounds": rounds}))
    line = '{"test": {"macro_f1": [0.5, 0.4, 0.6]}, "epsilon": 8.0, "settings": "x"}'
    monkeypatch.setattr(attacks, "result_lines", lambda _: [line])
    usable = {
        name: sum(e.outcome == "used" for r in rounds for e in r.sites if e.site == name) for name in record.sites
    }
    found = attacks._read(_job("krum"), tmp_path, hostile=record.sites[:1])
    first, *others = usable.values()
    assert found.set_aside == pytest.approx((4 / first, 4 / sum(others)))
    assert found.macro_f1 == (0.5, 0.4, 0.6)
