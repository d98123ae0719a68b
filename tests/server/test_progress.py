"""What the terminal shows of a run: an epsilon never rounded down, whose it is, and who is missing by name."""

from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from server.progress import ProgressLine
from server.report.closing import closing_table
from tests.server.made_records import build_record


@pytest.mark.parametrize(("epsilon", "shown"), [(4.1713, "4.18"), (0.0004, "0.0004"), (8.0, "8.00")])
def test_an_epsilon_is_never_shown_rounded_down(epsilon: float, shown: str) -> None:
    record = build_record(sites=("a",), rounds=1)
    site = replace(record.rounds[0].sites[0], epsilon=epsilon)
    out = StringIO()
    with ProgressLine(run=record.run, done=0, console=Console(file=out, width=200)) as line:
        line.tell(record.rounds[0].model_copy(update={"sites": (site,)}))
    assert f"highest epsilon {shown} in all (this run: up to 8)" in out.getvalue()


def test_where_no_update_was_used_no_epsilon_is_shown() -> None:
    record = build_record(sites=("a",), rounds=1)
    site = replace(record.rounds[0].sites[0], epsilon=None, outcome="refused")
    out = StringIO()
    with ProgressLine(run=record.run, done=0, console=Console(file=out, width=200)) as line:
        line.tell(record.rounds[0].model_copy(update={"sites": (site,)}))
    assert "highest epsilon – (this run: up to 8)" in out.getvalue()


def test_missing_sites_are_named_up_to_three() -> None:
    record = build_record(sites=("a", "b", "c", "d", "e"), rounds=1)
    sites = tuple(replace(site, outcome="refused") for site in record.rounds[0].sites)
    out = StringIO()
    with ProgressLine(run=record.run, done=0, console=Console(file=out, width=300)) as line:
        line.tell(record.rounds[0].model_copy(update={"sites": sites}))
    assert "5 of 5 sites missing (a: refused, b: refused, c: refused, and 2 more)" in out.getvalue()


def test_the_closing_table_says_of_an_epsilon_that_earlier_runs_are_in_it(tmp_path: Path) -> None:
    record = build_record(rounds=8)
    earlier = tuple(
        each.model_copy(update={"epsilon": 9.08, "run_epsilon": 8.0, "epsilon_before": 2.0}) for each in record.privacy
    )
    console = Console(width=140)
    with console.capture() as capture:
        console.print(closing_table(record.model_copy(update={"privacy": earlier}), folder=tmp_path))
    assert "9.08 in all (this run: 8.00) at delta 0.00001, per record" in capture.get()
