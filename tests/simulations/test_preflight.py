"""Preflight command: a table or JSON, a verdict with the next step, and an exit code that a script can read."""

import json
from pathlib import Path

import pytest
import tomli_w
from typer.testing import CliRunner

import simulations.preflight
from motet import app
from shared.preflight import PreflightCheck
from simulations.preflight import Preflight, preflight_scenario
from tests.tiny import tiny_run, write_data_set


def found(*, passed: bool, fault: str | None = None) -> Preflight:
    checks = (
        PreflightCheck(name="bounded", passed=passed, detail="moved by 1 of [1]"),
        PreflightCheck(name="independent", passed=True, detail="moved by 0"),
    )
    return Preflight(run="tiny", planted_fault=fault, checks=checks, passed=passed)


def shown(result: Preflight, monkeypatch: pytest.MonkeyPatch, *options: str) -> tuple[int, str]:
    monkeypatch.setattr(simulations.preflight, "preflight_scenario", lambda *_, **__: result)
    answer = CliRunner().invoke(app, ["preflight", "tiny", *options])
    return answer.exit_code, " ".join(answer.output.split())


def test_sound_code_is_said_to_be_sound(monkeypatch: pytest.MonkeyPatch) -> None:
    code, text = shown(found(passed=True), monkeypatch)

    assert code == 0
    assert "moved by 1 of [1]" in text
    assert "all 2 checks passed" in text


def test_a_failed_check_is_named_with_what_to_do_and_exit_code_1(monkeypatch: pytest.MonkeyPatch) -> None:
    code, text = shown(found(passed=False), monkeypatch)

    assert code == 1
    assert "1 of 2 checks failed: no site will train tiny" in text
    assert "--parts" in text


def test_a_planted_fault_is_reported_as_caught_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "forgotten-clip was caught by: bounded" in shown(found(passed=False, fault="forgotten-clip"), monkeypatch)[1]
    assert "NOT caught" in shown(found(passed=True, fault="forgotten-clip"), monkeypatch)[1]


def test_json_holds_every_check(monkeypatch: pytest.MonkeyPatch) -> None:
    code, text = shown(found(passed=False), monkeypatch, "--json")

    assert code == 1
    assert [check["passed"] for check in json.loads(text)["checks"]] == [False, True]


def test_the_faults_that_can_be_planted_are_listed() -> None:
    answer = CliRunner().invoke(app, ["preflight", "--list-faults"])

    assert answer.exit_code == 0
    assert "weighted-sampler" in answer.output


def test_a_scenario_is_tried_out_with_a_fault_in_it(tmp_path: Path) -> None:
    data = write_data_set(tmp_path / "data", rows=4)
    file = tmp_path / "tiny.toml"
    table = {"about": "", "source": {"path": str(data)}, "run": tiny_run(private=True)}
    file.write_text(tomli_w.dumps(table), encoding="utf-8")

    result = preflight_scenario(str(file), changes=[], extensions=[], fault="noise-divided-by-four")

    assert not result.passed
    assert "noise-scale" in {check.name for check in result.checks if not check.passed}
