"""Supervision: what ends is started again, ever more slowly; what was started is ended, and nothing else."""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from shared import supervise
from shared.errors import ConfigError
from shared.supervise import Backoff, Program, Supervisor, rotate, stopped_by_signals

QUICK = Backoff(first_s=0.01, most_s=0.05)


def program(folder: Path, script: str, *, name: str = "sleeper", backoff: Backoff = QUICK) -> Program:
    return Program(
        name=name, command=("/bin/sh", "-c", script), log=folder / f"{name}.log", folder=folder,
        environment={"PATH": os.environ["PATH"]}, backoff=backoff,
    )  # fmt: skip


@contextmanager
def running(supervisor: Supervisor) -> Iterator[None]:
    thread = threading.Thread(target=supervisor.run)
    thread.start()
    try:
        yield
    finally:
        supervisor.stop()
        thread.join(timeout=30)
        assert not thread.is_alive()


def wait_for(condition: Callable[[], bool], *, within_s: float = 20.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def test_the_wait_doubles_up_to_a_cap_and_chance_takes_at_most_half() -> None:
    backoff = Backoff(first_s=1.0, most_s=10.0)
    assert [backoff.delay_s(n, draw=0.0) for n in (1, 2, 3, 4, 5, 500)] == [1.0, 2.0, 4.0, 8.0, 10.0, 10.0]
    assert [backoff.delay_s(n, draw=1.0) for n in (1, 4)] == [0.5, 4.0]


def test_a_program_that_ends_is_started_again_and_the_reason_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="motet.supervise")
    told = program(tmp_path, 'echo "Exit Code: 305"; exit 1')
    told = Program(**{**vars(told), "explain": lambda said: "not enrolled" if "305" in said else None})
    supervisor = Supervisor([told], state=tmp_path / "state")
    with running(supervisor):
        wait_for(lambda: supervisor.states()[0].restarts >= 3)
    assert (tmp_path / "sleeper.log").read_text().count("305") >= 3
    assert "sleeper: not enrolled; started again in" in caplog.text


def test_the_reason_of_an_end_is_looked_for_in_what_this_start_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "sleeper.log").write_text("Exit Code: 305\n", encoding="utf-8")
    told = replace(program(tmp_path, "exit 1"), explain=lambda said: "not enrolled" if "305" in said else None)
    supervisor = Supervisor([told], state=tmp_path / "state")
    with caplog.at_level(logging.WARNING), running(supervisor):
        wait_for(lambda: supervisor.states()[0].restarts >= 1)
    assert "not enrolled" not in caplog.text
    assert "ended with exit code 1" in caplog.text


def test_a_program_that_is_not_there_is_tried_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    missing = Program(name="none", command=("/no/such",), log=tmp_path / "l", folder=tmp_path, backoff=QUICK)
    with running(Supervisor([missing], state=tmp_path / "state")):
        wait_for(lambda: caplog.text.count("cannot be started") >= 2)


def test_a_program_that_is_killed_is_started_again(tmp_path: Path) -> None:
    supervisor = Supervisor([program(tmp_path, "sleep 300")], state=tmp_path / "state")
    with running(supervisor):
        wait_for(lambda: supervisor.states()[0].pid is not None)
        first = supervisor.states()[0].pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        wait_for(lambda: supervisor.states()[0].restarts == 1 and supervisor.states()[0].pid is not None)
        assert supervisor.states()[0].last_exit == -signal.SIGKILL
        assert supervisor.states()[0].pid != first


def test_stopping_ends_the_programs_and_what_they_started_even_if_they_will_not(tmp_path: Path) -> None:
    stubborn = "trap '' TERM; sleep 300 & echo $! > child; while true; do sleep 0.1; done"
    supervisor = Supervisor([program(tmp_path, stubborn)], state=tmp_path / "state", end_within_s=0.3)
    with running(supervisor):
        wait_for(lambda: (tmp_path / "child").is_file() and (tmp_path / "child").read_text().strip() != "")
        # the program may have spoken before the supervisor has noted that it runs
        wait_for(lambda: supervisor.states()[0].pid is not None)
        pid = supervisor.states()[0].pid
        assert pid is not None
    child = int((tmp_path / "child").read_text())
    wait_for(lambda: not is_there(pid) and not is_there(child))
    assert list((tmp_path / "state").glob("*.pid")) == []


def test_one_supervisor_at_a_time_over_a_folder(tmp_path: Path) -> None:
    first = Supervisor([], state=tmp_path / "state")
    with pytest.raises(ConfigError, match="is being run already"):
        Supervisor([], state=tmp_path / "state")
    with running(first):
        pass
    with running(Supervisor([], state=tmp_path / "state")):
        pass


def test_what_a_killed_supervisor_left_is_ended_by_the_next_and_no_other_process_with_that_id(tmp_path: Path) -> None:
    state = tmp_path / "state"
    code = (
        "from pathlib import Path; from shared.supervise import *; import sys; f = Path(sys.argv[1]);"
        "Supervisor([Program(name='p', command=('/bin/sleep', '300'), log=f / 'l', folder=f)], state=f / 'state').run()"
    )
    supervisor = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], start_new_session=True)
    try:
        wait_for(lambda: (state / "p.pid").is_file() and (state / "p.pid").read_text().strip() != "")
    finally:
        supervisor.kill()
        supervisor.wait()
    left = int((state / "p.pid").read_text().split()[0])
    assert is_there(left)

    with subprocess.Popen(["/bin/sleep", "300"], start_new_session=True) as other:
        try:
            (state / "q.pid").write_text(f"{other.pid} 1\n")
            pair = [program(tmp_path, "sleep 300", name=name) for name in ("p", "q")]
            with running(Supervisor(pair, state=state)):
                wait_for(lambda: not is_there(left))
            assert other.poll() is None
        finally:
            other.kill()


def test_a_large_log_is_put_away_and_its_writer_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    with path.open("ab", buffering=0) as writer:
        for word in (b"first", b"second", b"third"):
            writer.write(word)
            rotate(path, most_bytes=4, keep=2)
        writer.write(b"now")
    assert path.read_text() == "now"
    assert (tmp_path / "a.log.1").read_text() == "third"
    assert (tmp_path / "a.log.2").read_text() == "second"
    assert not (tmp_path / "a.log.3").exists()


def test_logs_are_not_for_others_to_read(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        supervisor = Supervisor([program(tmp_path, "echo secret; sleep 300")], state=tmp_path / "state")
        with running(supervisor):
            wait_for((tmp_path / "sleeper.log").is_file)
    finally:
        os.umask(before)
    assert (tmp_path / "sleeper.log").stat().st_mode & 0o077 == 0


def test_a_signal_stops_it(tmp_path: Path) -> None:
    supervisor = Supervisor([program(tmp_path, "sleep 300")], state=tmp_path / "state")
    threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()
    with stopped_by_signals(supervisor):
        supervisor.run()
    assert supervisor.states()[0].pid is None


def test_a_program_that_runs_and_does_nothing_any_more_is_ended_and_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(supervise, "_STUCK_S", 0.05)
    # the second time it says nothing for a while: what the one before said is not its own
    script = (
        "echo x >> starts; if [ $(wc -l < starts) = 1 ]; then echo gone; sleep 60; fi; sleep 1; echo well; sleep 60"
    )
    stuck = replace(program(tmp_path, script), stuck=lambda said: "it is gone" if said.endswith("gone\n") else None)
    supervisor = Supervisor([stuck], state=tmp_path / "running")
    with caplog.at_level(logging.WARNING), running(supervisor):
        wait_for(lambda: (tmp_path / "sleeper.log").is_file() and "well" in stuck.log.read_text())
        wait_for(lambda: supervisor.states()[0].restarts == 1)
        (state,) = supervisor.states()
    assert (state.last_exit, state.restarts) == (-signal.SIGKILL, 1)
    assert "it is gone; it is ended" in caplog.text
