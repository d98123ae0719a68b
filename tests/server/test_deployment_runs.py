"""A run that was followed: who waited for it is told where nothing came of it."""

from dataclasses import replace
from pathlib import Path

import pytest

from server.deployment.runs import nobody_took_part
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
    said = nobody_took_part(tmp_path)
    assert said is not None
    assert "(a: refused, b: refused)" in said
    assert "motet budget" in said


@pytest.mark.parametrize("outcomes", [("not-asked",), ("refused", "used"), ("withheld", "withheld")])
def test_a_run_that_used_an_update_or_tells_nobody_who_took_part_is_not(
    tmp_path: Path, outcomes: tuple[Outcome, ...]
) -> None:
    write_rounds(tmp_path, outcomes=outcomes)
    assert nobody_took_part(tmp_path) is None
