"""Who is let in: keys enrolled once each, revoked for good, and Flower's register of nodes kept in step with them."""

import json
import logging
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from rich.console import Console

from server.deployment import runs, serving, status
from server.deployment.latest import note_run
from server.deployment.nodes import bring_in_step, is_in_step
from server.deployment.serving import Keys
from server.deployment.settings import Deployment, DeploymentSettings
from server.deployment.status import render_status, status_of
from server.enrolment import enrol, enrolments, read_enrolment, revoke, write_enrolment
from server.handshake import Introduction, write_handshake
from server.roster import open_roster
from server.running import is_run, run_alone
from server.settings import ServerSettings, read_settings, write_settings
from shared import flower_commands
from shared.errors import ConfigError, RunError
from shared.flower_commands import FlowerRun, Node
from shared.keys import fingerprint, new_key, public_line
from shared.messages import PROTOCOL_VERSION, Hello
from shared.model.multimodal import build_model
from tests.tiny import tiny_config


@pytest.fixture
def deployment(tmp_path: Path) -> Deployment:
    made = Deployment(tmp_path, DeploymentSettings(host="localhost", port=1))
    made.enrolled.mkdir()
    return made


class Register:
    """Flower's register, as far as Motet uses it."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.nodes: dict[str, Node] = {}
        self.fails = False
        self.refused, self.ends_at = set[str](), ""
        for name in ("register", "register_all", "unregister", "nodes"):
            patch.setattr(flower_commands, name, getattr(self, f"_{name}"))

    def _register(self, key: Path, *, name: str, home: Path) -> str:
        if self.fails:
            raise RunError("Flower does not answer")
        number = str(len(self.nodes) + 100)
        self.nodes[number] = Node(number, "registered", None, None)
        return number

    def _register_all(self, keys: dict[str, Path], *, home: Path) -> Iterator[tuple[str, str | RunError]]:
        for name, path in keys.items():
            if name == self.ends_at:
                return
            yield name, RunError("no") if name in self.refused else self._register(path, name=name, home=home)

    def _unregister(self, node_id: str, *, home: Path) -> None:
        self.nodes[node_id] = Node(node_id, "unregistered", None, None)

    def _nodes(self, *, home: Path) -> dict[str, Node]:
        return dict(self.nodes)


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch) -> Register:
    return Register(monkeypatch)


def key_file(folder: Path, name: str) -> Path:
    path = folder / f"{name}.handed-over.pub"
    path.write_text(public_line(new_key().public_key(), name=name), encoding="utf-8")
    return path


def test_a_name_and_a_key_are_enrolled_once(deployment: Deployment) -> None:
    north = key_file(deployment.folder, "north")
    made = enrol(north, folder=deployment.enrolled, days=30)
    assert read_enrolment(deployment.enrolled, name="north") == made
    for path, name, said in (
        (north, None, "north is enrolled already"),
        (north, "other", "this key is enrolled already, as north"),
        (key_file(deployment.folder, "NORTH"), None, "north is enrolled already"),
    ):
        with pytest.raises(ConfigError, match=said):
            enrol(path, folder=deployment.enrolled, days=None, name=name)
    assert len(enrolments(deployment.enrolled)) == 1


def test_other_curves_are_not_enrolled(deployment: Deployment) -> None:
    other = ec.generate_private_key(ec.SECP256R1()).public_key()
    line = other.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()
    (deployment.folder / "a.pub").write_text(f"{line} a\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="curve secp256r1"):
        enrol(deployment.folder / "a.pub", folder=deployment.enrolled, days=None)


def test_a_revoked_key_never_comes_back_and_its_name_may(deployment: Deployment) -> None:
    old = key_file(deployment.folder, "north")
    enrol(old, folder=deployment.enrolled, days=None)
    revoke("north", folder=deployment.enrolled)
    with pytest.raises(ConfigError, match="this key was revoked"):
        enrol(old, folder=deployment.enrolled, days=None)
    enrol(key_file(deployment.folder, "north"), folder=deployment.enrolled, days=None)
    with pytest.raises(ConfigError, match="'south' is not enrolled; there are: north"):
        revoke("south", folder=deployment.enrolled)


def test_a_key_whose_revocation_was_cut_off_never_comes_back(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its words are away, and the key itself is still there."""
    old = key_file(deployment.folder, "north")
    enrol(old, folder=deployment.enrolled, days=None)
    rename = Path.rename

    def cut_off(path: Path, target: Path) -> Path:
        if path.suffix == ".pub":
            raise KeyboardInterrupt
        return rename(path, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", cut_off)
        with pytest.raises(KeyboardInterrupt):
            revoke("north", folder=deployment.enrolled)
    with pytest.raises(ConfigError, match="this key was revoked"):
        enrol(old, folder=deployment.enrolled, days=None)


def test_two_keys_of_one_name_that_are_revoked_in_one_second_both_stay_revoked(deployment: Deployment) -> None:
    folders = [deployment.folder / name for name in ("first", "second")]
    for folder in folders:
        folder.mkdir()
    keys = [key_file(folder, "north") for folder in folders]
    for key in keys:
        enrol(key, folder=deployment.enrolled, days=None)
        revoke("north", folder=deployment.enrolled)
    for key in keys:
        with pytest.raises(ConfigError, match="this key was revoked"):
            enrol(key, folder=deployment.enrolled, days=None)


def test_a_key_that_was_swapped_in_the_folder_is_noticed(deployment: Deployment) -> None:
    enrol(key_file(deployment.folder, "north"), folder=deployment.enrolled, days=None)
    other = new_key().public_key()
    (deployment.enrolled / "north.pub").write_text(public_line(other, name="north"), encoding="utf-8")
    with pytest.raises(ConfigError, match="of another key or site"):
        read_enrolment(deployment.enrolled, name="north")
    assert fingerprint(other) not in (deployment.enrolled / "north.json").read_text()


def test_flower_is_told_of_who_came_who_left_and_whose_key_expired(deployment: Deployment, register: Register) -> None:
    for name in ("north", "south", "west"):
        enrol(key_file(deployment.folder, name), folder=deployment.enrolled, days=30)
    assert not is_in_step(deployment)
    bring_in_step(deployment)
    assert is_in_step(deployment)
    ids = {each.name: each.node_id for each in enrolments(deployment.enrolled)}
    assert set(ids.values()) == set(register.nodes)

    revoke("north", folder=deployment.enrolled)
    west = read_enrolment(deployment.enrolled, name="west")
    over = (datetime.now(UTC) - timedelta(seconds=1)).isoformat()
    write_enrolment(west.model_copy(update={"expires": over}), folder=deployment.enrolled)
    assert not is_in_step(deployment)
    bring_in_step(deployment)
    assert is_in_step(deployment)
    assert {name: register.nodes[str(ids[name])].status for name in ids} == {
        "north": "unregistered", "south": "registered", "west": "unregistered",
    }  # fmt: skip


def test_a_superlink_that_has_forgotten_a_node_is_told_again(deployment: Deployment, register: Register) -> None:
    enrol(key_file(deployment.folder, "north"), folder=deployment.enrolled, days=None)
    bring_in_step(deployment)
    register.nodes.clear()
    bring_in_step(deployment, known=flower_commands.nodes(home=deployment.flower_home))
    assert list(register.nodes) == [read_enrolment(deployment.enrolled, name="north").node_id]


def test_a_flower_that_does_not_answer_is_asked_again_later(
    deployment: Deployment, register: Register, caplog: pytest.LogCaptureFixture
) -> None:
    enrol(key_file(deployment.folder, "north"), folder=deployment.enrolled, days=None)
    register.fails = True
    bring_in_step(deployment)
    assert "north cannot be registered" in caplog.text
    assert not is_in_step(deployment)
    register.fails = False
    bring_in_step(deployment)
    assert is_in_step(deployment)


def test_the_server_is_well_only_while_the_keys_can_be_registered(
    deployment: Deployment, register: Register, monkeypatch: pytest.MonkeyPatch
) -> None:
    answering = [False]
    monkeypatch.setattr(serving, "answers", lambda deployment: answering[0])
    keys = Keys(deployment)
    keys.look()
    assert not keys.are_in_step, "Flower has not answered yet"
    answering[0] = True
    keys.look()
    assert keys.are_in_step

    enrol(key_file(deployment.folder, "north"), folder=deployment.enrolled, days=None)
    register.fails = True
    keys.look()
    assert not keys.are_in_step
    register.fails = False
    keys.look()
    assert keys.are_in_step
    enrol(key_file(deployment.folder, "south"), folder=deployment.enrolled, days=None)
    answering[0] = False
    keys.look()
    assert not keys.are_in_step
    revoke("south", folder=deployment.enrolled)
    keys.look()
    assert keys.are_in_step, "nothing is left to tell"


def test_a_superlink_that_is_still_starting_is_no_error_and_one_that_goes_on_failing_is(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def silent(*, home: Path) -> dict[str, Node]:
        raise RunError("Flower does not answer")

    caplog.set_level(logging.INFO, logger="motet.server")
    monkeypatch.setattr(serving, "answers", lambda deployment: True)
    monkeypatch.setattr(flower_commands, "nodes", silent)
    keys = Keys(deployment)
    keys.look()
    assert [record.levelname for record in caplog.records] == ["INFO"]
    keys.look()
    assert [record.levelname for record in caplog.records] == ["INFO", "ERROR"]
    assert not keys.are_in_step


def test_one_key_that_flower_refuses_holds_up_no_other_and_none_is_forgotten(
    deployment: Deployment, register: Register, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a", "b", "c", "d"):
        enrol(key_file(deployment.folder, name), folder=deployment.enrolled, days=None)
    register.refused, register.ends_at = {"b"}, "d"
    bring_in_step(deployment)
    assert {each.name: each.node_id for each in enrolments(deployment.enrolled)} == {
        "a": "100", "b": None, "c": "101", "d": None,
    }  # fmt: skip
    assert "b cannot be registered: no" in caplog.text
    assert "d cannot be registered: Flower does not answer" in caplog.text
    register.refused, register.ends_at = set(), ""
    bring_in_step(deployment)
    assert is_in_step(deployment)
    assert set(register.nodes) == {"100", "101", "102", "103"}


def test_status_says_who_is_there_and_who_was_turned_away(
    deployment: Deployment, register: Register, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("north", "south", "west", "east"):
        enrol(key_file(deployment.folder, name), folder=deployment.enrolled, days=30)
    bring_in_step(deployment)
    ids = {each.name: str(each.node_id) for each in enrolments(deployment.enrolled)}
    register.nodes[ids["north"]] = Node(ids["north"], "online", "2026-01-01 10:00:00Z", None)
    register.nodes[ids["south"]] = Node(ids["south"], "offline", "2026-01-01 10:00:00Z", "2026-01-01 11:00:00Z")
    east = read_enrolment(deployment.enrolled, name="east")
    write_enrolment(east.model_copy(update={"expires": "2020-01-01T00:00:00+00:00"}), folder=deployment.enrolled)

    monkeypatch.setattr(status, "answers", lambda deployment: True)
    found = {site.name: site for site in status_of(deployment).sites}
    assert {name: site.state for name, site in found.items()} == {
        "north": "online", "south": "offline", "west": "never", "east": "expired",
    }  # fmt: skip
    assert found["south"].since == "2026-01-01 11:00:00Z"

    monkeypatch.setattr(status, "answers", lambda deployment: False)
    stopped = status_of(deployment)
    assert not stopped.server_runs
    assert {site.state for site in stopped.sites} == {"unknown", "expired"}
    assert json.loads(stopped.model_dump_json())["sites"][0]["name"] == "east"


def test_a_deployment_without_runs_has_a_status(deployment: Deployment) -> None:
    found = status_of(deployment)
    assert (found.server_runs, found.run, found.sites) == (False, None, ())


def test_status_names_who_was_not_accepted_by_the_latest_run(deployment: Deployment) -> None:
    run = deployment.runs / "first"
    run.mkdir(parents=True)
    settings = ServerSettings(
        run=tiny_config(private=False), run_id="r", held_out=run, cache=run, card=None, engine="deployment",
        num_sites=1, started="now",
    )  # fmt: skip
    write_settings(settings, folder=run)
    write_handshake([Introduction(site=None, code="not-enrolled", line="who says to be west")], folder=run)
    note_run(run, deployment=deployment)
    found = status_of(deployment)
    assert (found.run, found.round, found.not_accepted) == ("first", None, ("who says to be west",))


def test_status_says_from_which_round_on_a_site_is_in_the_latest_run(deployment: Deployment) -> None:
    for name in ("north", "south", "west"):
        enrol(key_file(deployment.folder, name), folder=deployment.enrolled, days=30)
    run = deployment.runs / "first"
    run.mkdir(parents=True)
    config = tiny_config(private=False)
    settings = ServerSettings(
        run=config, run_id="r", held_out=run, cache=run, card=None, engine="deployment", num_sites=1, started="now",
    )  # fmt: skip
    write_settings(settings, folder=run)
    note_run(run, deployment=deployment)
    assert {site.first_round for site in status_of(deployment).sites} == {None}
    north, south = (
        Hello(protocol_version=PROTOCOL_VERSION, site=name, modalities=("left",)) for name in ("north", "south")
    )
    roster = open_roster([north], run=config, model=build_model(config), folder=run, next_round=1)
    roster.take_in([south], next_round=3, say=lambda _: None)
    found = status_of(deployment)
    assert {site.name: site.first_round for site in found.sites} == {"north": 1, "south": 3, "west": None}
    console = Console(record=True, width=200)
    console.print(render_status(found))
    assert "in from" in console.export_text()


def test_a_run_whose_server_app_was_killed_is_gone_on_with_before_flower_has_noticed(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = deployment.runs / "first"
    run.mkdir(parents=True)
    settings = ServerSettings(
        run=tiny_config(private=False), run_id="r", held_out=run, cache=run, card=None, engine="deployment",
        num_sites=1, started="now",
    )  # fmt: skip
    write_settings(settings, folder=run)
    (run / "flower-run").write_text("16", encoding="utf-8")
    stopped: list[str] = []

    def stop_run(run_id: str, *, home: Path) -> None:
        stopped.append(run_id)

    monkeypatch.setattr(runs, "answers", lambda deployment: True)
    monkeypatch.setattr(runs, "NOTICED_WITHIN_S", 0.0)
    monkeypatch.setattr(flower_commands, "submit", lambda app, *, config, home: "17")
    monkeypatch.setattr(flower_commands, "stop_run", stop_run)
    monkeypatch.setattr(flower_commands, "run_status", lambda run_id, *, home: FlowerRun(run_id, "running", ""))
    assert runs.start_run(run, deployment=deployment) == "17"
    assert stopped == ["16"]


def test_one_process_at_a_time_runs_a_folder(tmp_path: Path) -> None:
    assert not is_run(tmp_path)
    with run_alone(tmp_path):
        assert is_run(tmp_path)
        with pytest.raises(RunError, match="another process runs it now"), run_alone(tmp_path):
            pass
    assert not is_run(tmp_path)


def test_a_deployed_run_knows_sites_by_their_keys(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    run = deployment.runs / "first"
    run.mkdir(parents=True)
    settings = ServerSettings(
        run=tiny_config(private=False), run_id="r", held_out=run, cache=run, card=None, engine="deployment",
        num_sites=1, started="now",
    )  # fmt: skip
    write_settings(settings, folder=run)
    asked: list[Path] = []

    def submit(app: Path, *, config: dict[str, str], home: Path) -> str:
        asked.append(Path(config["run-folder"]))
        return "17"

    monkeypatch.setattr(flower_commands, "submit", submit)
    with pytest.raises(RunError, match="motet server start"):
        runs.start_run(run, deployment=deployment)
    monkeypatch.setattr(runs, "answers", lambda deployment: True)
    assert runs.start_run(run, deployment=deployment) == "17"
    assert asked == [run.resolve()]
    assert read_settings(run).enrolled == deployment.enrolled

    monkeypatch.setattr(flower_commands, "run_status", lambda run_id, *, home: FlowerRun(run_id, "running", ""))
    with run_alone(run), pytest.raises(RunError, match="goes on already"):
        runs.start_run(run, deployment=deployment)
    (run / "failure.txt").write_text("too few sites", encoding="utf-8")
    with pytest.raises(RunError, match=r"too few sites[\s\S]*motet run --resume"):
        runs.follow_run(run, deployment=deployment)
    (run / "failure.txt").unlink()
    (run / "report.html").touch()
    assert runs.follow_run(run, deployment=deployment) == run / "report.html"
    with pytest.raises(RunError, match="has ended; its report"):
        runs.start_run(run, deployment=deployment)
