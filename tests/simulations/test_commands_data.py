"""motet data: every builder has a command, which builds what its options say."""

from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from motet import app
from simulations.commands import data
from simulations.datasets import registry


def test_every_builder_has_a_command_of_its_name() -> None:
    commands = get_command(data.app).commands  # type: ignore[attr-defined]
    assert set(commands) == {*registry.BUILDERS, "split"}


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ([], {"name": "english"}),
        (["--from", "stamps.deb", "--name", "text", "--seed", "3"], {"from": "stamps.deb", "name": "text"}),
    ],
)
def test_tuxpaint_matching_hands_its_options_to_its_builder(
    words: list[str], options: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, Path, int, dict[str, object]]] = []

    def build(name: str, out: Path, *, seed: int, options: dict[str, object]) -> str:
        asked.append((name, out, seed, options))
        return "built"

    monkeypatch.setattr(registry, "build", build)
    done = CliRunner().invoke(app, ["data", "tuxpaint-matching", "--out", str(tmp_path / "d"), *words])
    assert done.exit_code == 0, done.output
    assert asked == [("tuxpaint-matching", tmp_path / "d", 3 if words else 0, options)]
