"""What --engine and --memory stand for, and what they refuse."""

import pytest
import typer
from typer.testing import CliRunner

from motet import app
from simulations.commands.options import checked_engine, memory_bytes


@pytest.mark.parametrize(
    ("size", "expected"),
    [("512M", 512 * 2**20), ("2G", 2**31), ("2GiB", 2**31), ("2GB", 2**31), ("1.5G", 3 * 2**29), (" 64M ", 2**26)],
)
def test_a_size_is_a_number_of_mebibytes_or_gibibytes(size: str, expected: int) -> None:
    assert memory_bytes(size) == expected


@pytest.mark.parametrize("size", ["", "2", "G", "0M", "0.5M", "-2G", "2T", "2 G B", "1e3M", "nanG", "2gb", "2G2"])
def test_any_other_size_is_refused_with_what_is_allowed(size: str) -> None:
    with pytest.raises(typer.BadParameter, match="allowed: a number with M or G"):
        memory_bytes(size)


def test_half_of_the_machine_is_used_where_nothing_is_said() -> None:
    """More than a phone has, and less than any machine."""
    assert 2**26 < memory_bytes(None) < 2**50


def test_the_engine_is_cohort_unless_another_is_named() -> None:
    assert checked_engine(None, cohort_only={"--memory": "2G"}) == "cohort"
    assert [checked_engine(name, cohort_only={"--memory": None}) for name in ("cohort", "local", "flower")] == [
        "cohort",
        "local",
        "flower",
    ]
    with pytest.raises(typer.BadParameter, match="'ray'; allowed: cohort, local, flower"):
        checked_engine("ray", cohort_only={})
    with pytest.raises(typer.BadParameter, match="leave it away with --engine local"):
        checked_engine("local", cohort_only={"--memory": None, "--device": "cuda"})


def test_the_command_line_refuses_them_before_anything_is_made() -> None:
    for arguments in (["--engine", "ray"], ["--memory", "much"], ["--engine", "flower", "--memory", "2G"]):
        result = CliRunner().invoke(app, ["simulate", "hello", *arguments])
        assert result.exit_code == 2, result.output
        assert "Invalid value for --" in result.output
