"""The benches of many sites end to end, small: real processes over TLS, all of them ended, and what they print."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from simulations.bench.many_sites import ManySites
from simulations.bench.scale import Scaled
from tests.system.machine import MARK, left_processes_with

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def bench(*words: str) -> str:
    return subprocess.run(
        [sys.executable, "-m", *words], env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True, timeout=800,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    ).stdout  # fmt: skip


def test_two_sites_are_measured_in_a_run_and_idle(tmp_path: Path) -> None:
    folder, out = tmp_path / "scale", tmp_path / "scale.json"
    said = bench(
        "simulations.bench.scale", str(folder), "--sites", "2", "--rounds", "2", "--idle-s", "6", "--out", str(out)
    )
    found = Scaled.model_validate(json.loads(out.read_text("utf-8")))
    assert found.updates_used == found.updates_asked == 4
    kinds = {use.kind: use for use in found.kinds}
    assert {kind: kinds[kind].most for kind in ("site agent", "site supernode", "site supervisor")} == {
        "site agent": 2, "site supernode": 2, "site supervisor": 2,
    }  # fmt: skip
    assert {"site clientapp", "server superlink", "server serverapp"} <= kinds.keys()
    assert all(0 < use.pss_bytes <= use.rss_bytes for use in found.kinds)
    assert kinds["site clientapp"].cpu_s_round > 0
    assert found.round_sent.to_server > 0 < found.idle_sent.to_server
    assert "| site agent | 2 |" in said
    for name in ("server", "site-0", "site-1"):
        assert left_processes_with(MARK, str(folder / name / "motet-home")) == []


def test_made_up_sites_make_a_whole_run_with_a_real_server(tmp_path: Path) -> None:
    folder, out = tmp_path / "many", tmp_path / "many.jsonl"
    said = bench(
        "simulations.bench.many_sites", str(folder), "--sites", "5", "--rounds", "2", "--work-s", "1", "--idle-s", "5",
        "--out", str(out),
    )  # fmt: skip
    found = ManySites.model_validate_json(out.read_text("utf-8"))
    assert found.accepted == 5
    assert found.used == (5, 5)
    assert found.idle_requests > 0
    assert found.report_bytes > 0 < found.metrics_bytes
    assert "| rounds, s (updates used) |" in said
    assert left_processes_with(MARK, str(folder / "server" / "motet-home")) == []
