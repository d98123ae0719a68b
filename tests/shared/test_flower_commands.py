"""Flower's commands hold for the Flower that is installed; its exits are explained in words that say what to do."""

import os
import subprocess
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

from shared import flower_commands
from shared.errors import RunError
from shared.flower_commands import FLOWER, Tls

EXIT = "ERROR : Exit Code: 305\nFailed to initialize the connection to the SuperLink.\n"


def test_what_is_known_of_flower_holds_for_the_installed_version() -> None:
    assert version("flwr").startswith(f"{FLOWER}.")
    from flwr.supercore.error import ApiErrorCode
    from flwr.supercore.exit import ExitCode

    assert ExitCode.SUPERNODE_CONNECTION_ERROR == 305
    assert ExitCode.SUPERNODE_NODE_AUTH_KEY_INVALID == 302
    assert int(ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED) == 2004


GAVE_UP = (
    "INFO : Connection successful after 0.81 seconds and 2 tries.\n"
    "ERROR : SSL/TLS handshake error detected.\n"
    "ERROR : [SSL: UNEXPECTED_EOF_WHILE_READING] EOF occurred in violation of protocol\n"
)
"""as flwr 1.41 said it behind a proxy that cut connections; the process stayed, and did nothing more"""


@pytest.mark.parametrize(
    ("said", "is_stuck"),
    [
        (GAVE_UP, True),
        (GAVE_UP + "ERROR : SSL/TLS handshake error detected.\n", True),
        (GAVE_UP.replace("ERROR : [", "WARNING : Giving up reconnection after 1 seconds\nERROR : ["), True),
        ("ERROR : SSL/TLS handshake error detected.\n", False),
        ("ERROR : SSL/TLS handshake error detected.\nERROR : SSL/TLS handshake error detected.\n", False),
        (GAVE_UP + "INFO : Starting Flower SuperNode\n", False),
        ("ERROR : Failed to receive message 7: gone\n", False),
        ("", False),
    ],
)
def test_a_node_that_has_given_up_its_connection_is_known_by_its_last_words(said: str, is_stuck: bool) -> None:
    assert (flower_commands.explain_stuck_node(said) is not None) == is_stuck


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (EXIT + "[code: 2004] Failed to activate SuperNode.", "its key is not enrolled or was revoked"),
        (EXIT + "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed", "not of the authority in ca.crt"),
        (EXIT + "[Errno 111] Connection refused", "cannot be reached"),
        ("Exit Code: 302\nUnable to parse", "its key cannot be read"),
    ],
)
def test_the_end_of_a_node_is_explained(said: str, expected: str) -> None:
    assert expected in (flower_commands.explain_node_exit(said) or "")


ENDED = "INFO : SuperExec terminated gracefully.\nINFO : SuperNode terminated gracefully.\nINFO: Shutting down\n"


def test_a_node_that_ends_itself_was_let_go_of_by_the_server() -> None:
    """As flwr 1.41 says it when its heartbeat is answered with 401, and nothing else."""
    assert "its key was revoked or has expired" in (flower_commands.explain_node_exit(ENDED) or "")
    assert "not enrolled or was revoked" in (flower_commands.explain_node_exit(ENDED + EXIT + "[code: 2004]") or "")


def test_a_node_that_cannot_connect_is_known_by_its_last_words() -> None:
    failed, well = "WARNING : Connection attempt failed, retrying in 1.75 seconds\n", "INFO : Connection successful\n"
    assert flower_commands.is_retrying(failed)
    assert flower_commands.is_retrying(well + failed + "INFO: 127.0.0.1 GET\n")
    assert not flower_commands.is_retrying(failed + well)
    assert not flower_commands.is_retrying("")


def test_a_server_whose_port_is_taken_says_so_and_not_of_an_earlier_time() -> None:
    taken = "INFO : Starting Flower SuperLink\nERROR [uvicorn.error] [Errno 98] ...: address already in use\n"
    assert "in use by another program" in (flower_commands.explain_server_exit(taken) or "")
    assert flower_commands.explain_server_exit(taken + "INFO : Starting Flower SuperLink\nkilled\n") is None


def test_an_end_without_a_known_reason_is_left_to_the_log() -> None:
    assert flower_commands.explain_node_exit("Traceback ...") is None
    assert flower_commands.explain_node_exit("Exit Code: 0") is None


def test_flowers_programs_get_no_variable_that_is_not_theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", "secret")
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    found = flower_commands.environment(tmp_path, HOME="/home")
    assert "secret" not in found.values()
    assert "PYTHONPATH" not in found
    assert found["FLWR_TELEMETRY_ENABLED"] == "0"
    assert found["PATH"] == os.environ["PATH"]


def test_every_option_is_one_that_the_installed_programs_know(tmp_path: Path) -> None:
    tls = Tls(ca=tmp_path, certificate=tmp_path, key=tmp_path)
    commands = (
        flower_commands.superlink(listen="127.0.0.1", port=1, tls=tls, database=tmp_path, secret=tmp_path),
        flower_commands.superexec(address="localhost:1", ca=tmp_path, secret=tmp_path),
        flower_commands.supernode(server="a:1", ca=tmp_path, key=tmp_path, runtime_port=2, config={"agent": "/s"}),
    )
    for command in commands:
        program = command[: next(at for at, word in enumerate(command) if word.startswith("--"))]
        told = subprocess.run(
            [*program, "--help"],
            capture_output=True,
            text=True,
            check=True,
            env=flower_commands.environment(tmp_path),
        ).stdout
        assert [word for word in command if word.startswith("--") and word not in told] == []


def test_flowers_own_configuration_is_toml_whatever_the_path(tmp_path: Path) -> None:
    odd = tmp_path / 'a "quoted" \\ name'
    found = tomllib.loads(flower_commands.link_configuration(address="localhost:1", ca=odd))
    assert found["superlink"]["motet"]["root-certificates"] == str(odd)


def test_a_flower_that_says_no_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(
        flower_commands.link_configuration(address="localhost:1", ca=tmp_path / "none"), encoding="utf-8"
    )
    with pytest.raises(RunError, match=r"flwr supernode list.*motet server start"):
        flower_commands.nodes(home=tmp_path)


def test_what_flower_said_is_quoted_from_a_word_on_and_without_its_notes() -> None:
    from flwr.cli.config_migration import CLI_NOTICE

    frame = "\x1b[31m╭─ Error ──╮\x1b[0m\n│ Connection to the SuperLink is unavailable. │\n╰──╯\n"
    assert flower_commands.last_words(CLI_NOTICE) == ""
    assert flower_commands.last_words(CLI_NOTICE + frame) == "Error Connection to the SuperLink is unavailable."
    long = flower_commands.last_words("unbroken " * 100)
    assert set(long.split()) == {"...", "unbroken"}
    assert len(long) <= 404


def test_a_folder_called_as_the_superlink_is_where_the_user_stands_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, place = tmp_path / "home", tmp_path / "here"
    home.mkdir()
    (place / flower_commands.LINK).mkdir(parents=True)
    (place / flower_commands.LINK / "pyproject.toml").write_text("[tool.flwr.app]\n", encoding="utf-8")
    (home / "config.toml").write_text(
        flower_commands.link_configuration(address="localhost:1", ca=tmp_path / "none"), encoding="utf-8"
    )
    monkeypatch.chdir(place)
    with pytest.raises(RunError) as caught:
        flower_commands.nodes(home=Path("../home"))
    assert "migrat" not in str(caught.value)
