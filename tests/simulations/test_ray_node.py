"""What a machine of a Ray cluster says of itself, and how a cluster is named; without any Ray process."""

import fcntl
import hashlib
import multiprocessing
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from shared.errors import RunError
from simulations.commands.options import checked_cluster
from simulations.engine import ray_cluster
from simulations.engine.ray_node import FOLDER, content, faults_here, program


def _hold(path: Path, held: "multiprocessing.synchronize.Event", done: "multiprocessing.synchronize.Event") -> None:
    with path.open("r+b") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        held.set()
        done.wait(60)


@pytest.fixture
def locked(tmp_path: Path) -> Iterator[Path]:
    """A file that another process has locked, as the one that starts a run does."""
    path, spawn = tmp_path / "locked", multiprocessing.get_context("fork")
    path.write_bytes(b"inside")
    held, done = spawn.Event(), spawn.Event()
    holder = spawn.Process(target=_hold, args=(path, held, done))
    holder.start()
    assert held.wait(30)
    yield path
    done.set()
    holder.join()


def faults(locked: Path, **others: str) -> list[str]:
    contents = {str(locked): hashlib.sha256(b"inside").hexdigest()} | others
    return faults_here(expected_program=program(), contents=contents, locked=str(locked))


def test_a_machine_that_sees_the_same_files_has_no_faults(locked: Path) -> None:
    assert faults(locked) == []
    assert sorted(path.name for path in locked.parent.iterdir()) == ["locked"]


def test_a_machine_where_locks_do_not_hold_is_found(locked: Path, tmp_path: Path) -> None:
    free = tmp_path / "free"
    free.write_bytes(b"inside")

    assert "does not hold here, so the ledger could be damaged" in faults(free)[0]
    assert faults(locked) == []


def test_what_is_missing_or_other_on_a_machine_is_named(locked: Path, tmp_path: Path) -> None:
    there, missing = tmp_path / "north.toml", tmp_path / "data"
    there.write_text("a = 1")

    assert faults(locked, **{str(there): content(there), str(tmp_path): FOLDER}) == []
    assert faults(locked, **{str(there): "0" * 64, str(missing): FOLDER}) == [
        f"{there}: not the one that the run was started with",
        f"{missing}: No such file or directory",
    ]


@pytest.mark.parametrize("part", ["motet", "python", "torch", "flwr"])
def test_another_program_on_a_machine_is_found_before_any_file_is_read(part: str, locked: Path) -> None:
    (fault,) = faults_here(expected_program=program() | {part: "0.1"}, contents={"/nowhere": "x"}, locked=str(locked))

    assert f"{part} {program()[part]} instead of 0.1" in fault


def test_the_file_that_machines_are_asked_about_is_locked_and_leaves_nothing(tmp_path: Path) -> None:
    with ray_cluster._locked_file(tmp_path) as (path, digest):
        context = multiprocessing.get_context("fork")
        answers = context.SimpleQueue()
        asked = {"expected_program": program(), "contents": {str(path): digest}, "locked": str(path)}
        other = context.Process(target=lambda: answers.put(faults_here(**asked)))  # type: ignore[arg-type]
        other.start()
        other.join()
        assert answers.get() == []
    assert list(tmp_path.iterdir()) == []


def test_an_address_where_nothing_answers_is_refused_at_once() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # taken, and nobody listens
        address = f"127.0.0.1:{bound.getsockname()[1]}"
        with pytest.raises(RunError, match="nothing answers there"):
            ray_cluster.check_cluster(address)


def test_a_listener_that_is_no_ray_cluster_is_given_up_in_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_cluster, "_JOIN_S", 3.0)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(RunError, match=r"no Ray cluster, or has not let us in in 3 s"):
            ray_cluster.check_cluster(address)


def test_what_ray_says_against_joining_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as another release of Ray or Python at the cluster, which Ray compares by itself."""
    monkeypatch.setattr(ray_cluster, "_JOIN", "raise SystemExit('RuntimeError: Version mismatch:\\n    Ray: 2.1')")
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        with pytest.raises(RunError, match=r"Ray refuses to join\n  RuntimeError: Version mismatch:\n      Ray: 2\.1"):
            ray_cluster.check_cluster(address)


@pytest.mark.parametrize("address", ["10.0.0.7:6379", "head.example.org:1", "[::1]:6379"])
def test_a_cluster_is_named_for_the_flower_engine(address: str) -> None:
    checked_cluster(address, engine="flower", goes_on=False)
    checked_cluster(address, engine=None, goes_on=True)
    checked_cluster(None, engine="local", goes_on=False)


@pytest.mark.parametrize("engine", [None, "cohort", "local"])
def test_another_engine_has_no_use_for_a_cluster(engine: str | None) -> None:
    with pytest.raises(typer.BadParameter, match="give --engine flower with it"):
        checked_cluster("10.0.0.7:6379", engine=engine, goes_on=False)


@pytest.mark.parametrize(
    "address", ["", "auto", "local", "10.0.0.7", "10.0.0.7:0", "10.0.0.7:65536", "ray://h:1", "h:-1", "a b:1"]
)
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(typer.BadParameter, match="allowed: HOST:PORT"):
        checked_cluster(address, engine="flower", goes_on=False)
