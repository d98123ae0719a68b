"""A run of which nothing came: who waited for it is told, and a script sees it by the exit code."""

from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

import motet
from server.deployment.setup import make_deployment
from server.fruitless import nobody_took_part
from server.history import METRICS_FILE, metrics_line
from server.records import Outcome
from tests.server.made_records import build_record


def write_rounds(folder: Path, *, outcomes: tuple[Outcome, ...]) -> None:
    """Two sites with the same outcome in a round, one round for each."""
    record = build_record(sites=("a", "b"), rounds=len(outcomes))
    lines = []
    for each, outcome in zip(record.rounds, outcomes, strict=True):
        sites = tuple(replace(site, outcome=outcome) for site in each.sites)
        lines.append(metrics_line(each.model_copy(update={"sites": sites})))
    (folder / METRICS_FILE).write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_a_run_that_every_site_refused_is_said_to_have_trained_nothing(tmp_path: Path) -> None:
    write_rounds(tmp_path, outcomes=("refused", "not-asked", "refused"))
    said = nobody_took_part(tmp_path, reasons="Look there.")
    assert said is not None
    assert "(a: refused, b: refused)" in said
    assert said.endswith("Look there.")


@pytest.mark.parametrize("outcomes", [("not-asked",), ("refused", "used"), ("withheld", "withheld")])
def test_a_run_that_used_an_update_or_tells_nobody_who_took_part_is_not(
    tmp_path: Path, outcomes: tuple[Outcome, ...]
) -> None:
    write_rounds(tmp_path, outcomes=outcomes)
    assert nobody_took_part(tmp_path, reasons="Look there.") is None


@pytest.mark.parametrize(("outcome", "code"), [("refused", 1), ("used", 0)])
def test_a_deployed_run_of_which_nothing_came_ends_with_another_exit_code_and_names_its_report(
    tmp_path: Path, outcome: Outcome, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_rounds(tmp_path, outcomes=(outcome,))
    make_deployment(tmp_path / "dep", host="localhost", port=1)
    monkeypatch.setattr("server.deployment.runs.follow_run", lambda folder, *, deployment: folder / "report.html")
    done = CliRunner().invoke(motet.app, ["run", "--follow", str(tmp_path), "--on", str(tmp_path / "dep")])
    assert done.exit_code == code, done.output
    assert f"report: {tmp_path}/report.html" in done.output
    assert ("no update was used in any round" in done.output) == (code == 1)


@pytest.mark.parametrize(("outcome", "code"), [("refused", 1), ("used", 0)])
def test_a_simulated_run_of_which_nothing_came_ends_with_another_exit_code(
    tmp_path: Path, outcome: Outcome, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_simulation(folder: Path, **_: object) -> None:
        write_rounds(folder, outcomes=(outcome,))

    monkeypatch.setattr("simulations.simulate.run_simulation", run_simulation)
    done = CliRunner().invoke(motet.app, ["simulate", "--resume", str(tmp_path)])
    assert done.exit_code == code, done.output
    assert ("no update was used in any round" in done.output) == (code == 1)
