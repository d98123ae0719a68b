"""The units and the compose file under docs/deploy: they parse, name commands that exist, and keep agent and node apart."""

import configparser
import shutil
import subprocess
from pathlib import Path

import pytest
import typer
import yaml

from motet import app

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "deploy"
UNITS = ("motet-server", "motet-agent", "motet-node")
HARDENED = {"NoNewPrivileges": "yes", "ProtectSystem": "strict", "ProtectHome": "yes", "PrivateTmp": "yes", "UMask": "0077",
            "CapabilityBoundingSet": "", "RestrictSUIDSGID": "yes", "LimitCORE": "0"}  # fmt: skip


def service(name: str) -> dict[str, str]:
    parser = configparser.ConfigParser(interpolation=None, strict=True)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string((FOLDER / f"{name}.service").read_text(encoding="utf-8"))
    assert set(parser.sections()) == {"Unit", "Service", "Install"}
    return dict(parser["Service"])


def is_command(words: list[str]) -> bool:
    """Whether the words behind `motet` name a command, and no option follows that it does not have."""
    here: object = typer.main.get_command(app)
    while words and words[0] in getattr(here, "commands", {}):
        here = here.commands[words.pop(0)]  # type: ignore[attr-defined]
    return not hasattr(here, "commands") and not any(word.startswith("-") for word in words)


@pytest.mark.parametrize("name", UNITS)
def test_a_unit_is_hardened_and_starts_a_command_that_exists(name: str) -> None:
    found = service(name)
    assert {key: found.get(key) for key in HARDENED} == HARDENED
    program, *words = found["ExecStart"].split()
    assert program == "/opt/motet/.venv/bin/motet"
    assert is_command(words)
    assert not is_command(["agent", "fly"])
    assert found["User"] not in ("", "root")


def test_agent_and_node_are_different_users_and_neither_sees_the_others_files() -> None:
    agent, node = service("motet-agent"), service("motet-node")
    assert agent["User"] != node["User"]
    assert "-/srv/motet-site/node" in agent["InaccessiblePaths"].split()
    assert set(node["InaccessiblePaths"].split()) == {"-/srv/clinic-a", "-/srv/motet-site/agent", "-/srv/motet-site/site.toml"}  # fmt: skip
    assert node["ReadWritePaths"] == "/srv/motet-site/node"
    # what reads the data has no way out of the machine
    assert (agent["IPAddressDeny"], agent["IPAddressAllow"]) == ("any", "localhost")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze on this machine")
@pytest.mark.parametrize("name", UNITS)
def test_systemd_finds_no_fault_in_a_unit(name: str, tmp_path: Path) -> None:
    """But for what is not installed where this runs: the program and its users."""
    text = (FOLDER / f"{name}.service").read_text(encoding="utf-8").replace("/opt/motet/.venv/bin/motet", "/bin/true")
    said = verified(text, name=name, folder=tmp_path)
    assert said == []
    assert verified(text.replace("UMask=", "UMaks="), name=name, folder=tmp_path) != []


def verified(text: str, *, name: str, folder: Path) -> list[str]:
    unit = folder / f"{name}.service"
    unit.write_text(text, encoding="utf-8")
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True, check=False
    )
    return [line for line in done.stderr.splitlines() if unit.name in line and "Failed to add dependency" not in line]


def test_the_compose_file_keeps_agent_and_node_apart() -> None:
    services = yaml.safe_load((FOLDER / "compose.yaml").read_text(encoding="utf-8"))["services"]
    assert set(services) == {"server", "agent", "node"}
    assert len({each["user"] for each in services.values()}) == 3
    for each in services.values():
        assert each["read_only"] is True
        assert each["cap_drop"] == ["ALL"]
        assert each["security_opt"] == ["no-new-privileges:true"]
        assert not each["user"].startswith("0")
        assert each["command"][0] == "/opt/motet/.venv/bin/motet"
        assert is_command(each["command"][1:])
    assert services["agent"]["network_mode"] == "none"
    seen = {volume.split(":")[0] for volume in services["node"]["volumes"]}
    assert seen == {"/srv/motet-site/node.toml", "/srv/motet-site/node", "/srv/motet-site/socket"}
