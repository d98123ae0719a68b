"""The README is true: its own files, as they stand there, lead from a folder of data to a report."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from motet import app
from tests.check_documents import ROOT, blocks


def block(first_line: str) -> str:
    """The fenced block of the README that opens with this line."""
    found = [text for _, _, text in blocks(ROOT / "README.md") if text.startswith(first_line)]
    assert len(found) == 1
    return found[0]


def write_site(folder: Path, *, rows: int, seed: int) -> None:
    draws = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    lines = []
    for row in range(rows):
        joyful = bool(draws.integers(2))
        pixels = draws.integers(0, 90, (24, 24, 3)) + (150 if joyful else 0)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{row}.png")
        entry = {"image_file_name": f"{row}.png", "text": "what a day" if joyful else "all well",
                 "label": "joy" if joyful else "calm", "subject_id": f"{folder.name}{row}"}  # fmt: skip
        lines.append(json.dumps(entry))
    (folder / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")


def test_the_readmes_own_files_lead_from_a_folder_to_a_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOTET_HOME", str(tmp_path / "home"))
    data, run = tmp_path / "my-data", tmp_path / "runs" / "first"
    for number, place in enumerate(("sites/north", "sites/south", "held-out")):
        write_site(data / place, rows=30, seed=number)
    (data / "dataset.toml").write_text(block("# dataset.toml"), encoding="utf-8")
    (tmp_path / "my-scenario.toml").write_text(block("# my-scenario.toml"), encoding="utf-8")
    check = CliRunner().invoke(app, ["check", str(data)])
    assert check.exit_code == 0, check.output
    arguments = ["simulate", str(tmp_path / "my-scenario.toml"), "--out", str(run), "--set", "run.federation.rounds=2"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert (run / "report.html").is_file()


def test_help_answers_without_importing_torch() -> None:
    code = "import sys; sys.argv = ['motet', '--help']\nimport motet\ntry:\n  motet.main()\nexcept SystemExit:\n  pass\nprint('torch' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
    assert "simulate" in shown.stdout
    assert shown.stdout.strip().endswith("False")
