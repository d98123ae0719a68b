"""The progress line: an epsilon is never shown rounded down, and who is missing is named."""

from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console

from server.progress import ProgressLine
from tests.server.made_records import build_record


@pytest.mark.parametrize(("epsilon", "shown"), [(4.1713, "4.18"), (0.0004, "0.0004"), (8.0, "8.00")])
def test_an_epsilon_is_never_shown_rounded_down(epsilon: float, shown: str) -> None:
    record = build_record(sites=("a",), rounds=1)
    site = replace(record.rounds[0].sites[0], epsilon=epsilon)
    out = StringIO()
    with ProgressLine(run=record.run, done=0, console=Console(file=out, width=200)) as line:
        line.tell(record.rounds[0].model_copy(update={"sites": (site,)}))
    assert f"highest epsilon {shown} " in out.getvalue()


def test_missing_sites_are_named_up_to_three() -> None:
    record = build_record(sites=("a", "b", "c", "d", "e"), rounds=1)
    sites = tuple(replace(site, outcome="refused") for site in record.rounds[0].sites)
    out = StringIO()
    with ProgressLine(run=record.run, done=0, console=Console(file=out, width=300)) as line:
        line.tell(record.rounds[0].model_copy(update={"sites": sites}))
    assert "5 of 5 sites missing (a: refused, b: refused, c: refused, and 2 more)" in out.getvalue()
