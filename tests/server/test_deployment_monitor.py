"""The server's monitor: well while all programs run, in Prometheus' form, and nothing of what sites sent."""

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.deployment.monitor import open_monitor
from server.deployment.settings import Deployment
from server.deployment.setup import make_deployment
from server.enrolment import enrol
from shared.errors import ConfigError
from shared.keys import new_key, public_line
from shared.supervise import Program, Supervisor
from tests.system.machine import free_port


@pytest.fixture
def deployment(tmp_path: Path) -> Deployment:
    made = make_deployment(tmp_path / "dep", host="localhost", port=1, monitor_port=free_port())
    (tmp_path / "a.pub").write_text(public_line(new_key().public_key(), name="clinic-a"), encoding="utf-8")
    enrol(tmp_path / "a.pub", folder=made.enrolled, days=None)
    return made


@pytest.fixture
def supervisor(deployment: Deployment) -> Iterator[Supervisor]:
    sleeper = Program(
        name="superlink", command=("/bin/sleep", "300"), log=deployment.logs / "superlink.log", folder=deployment.folder
    )
    made = Supervisor([sleeper], state=deployment.state)
    thread = threading.Thread(target=made.run)
    thread.start()
    yield made
    made.stop()
    thread.join()


def asked(deployment: Deployment, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{deployment.settings.monitor_port}{path}", timeout=10) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_it_is_well_while_its_programs_run(deployment: Deployment, supervisor: Supervisor) -> None:
    in_step = True
    monitor = open_monitor(deployment, supervisor=supervisor, in_step=lambda: in_step)
    try:
        deadline = time.monotonic() + 20
        while supervisor.states()[0].pid is None:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        status, text = asked(deployment, "/health")
        assert (status, json.loads(text)) == (200, {"well": True, "superlink": True, "keys_in_step": True})
        status, text = asked(deployment, "/metrics")
        assert status == 200
        assert 'motet_server_program_up{program="superlink"} 1.0' in text
        assert 'motet_server_enrolled_sites{state="valid"} 1.0' in text
        assert "motet_server_keys_in_step 1.0" in text
        assert "clinic-a" not in text
        assert asked(deployment, "/../deployment.toml")[0] == 404

        in_step = False
        status, text = asked(deployment, "/health")
        assert (status, json.loads(text)) == (503, {"well": False, "superlink": True, "keys_in_step": False})
        assert "motet_server_keys_in_step 0.0" in asked(deployment, "/metrics")[1]

        in_step = True
        supervisor.stop()
        while supervisor.states()[0].pid is not None:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        status, text = asked(deployment, "/health")
        assert (status, json.loads(text)["well"]) == (503, False)
    finally:
        monitor.close()


def test_a_port_that_is_taken_is_told(deployment: Deployment, supervisor: Supervisor) -> None:
    monitor = open_monitor(deployment, supervisor=supervisor, in_step=lambda: True)
    try:
        with pytest.raises(ConfigError, match="monitor_port"):
            open_monitor(deployment, supervisor=supervisor, in_step=lambda: True)
    finally:
        monitor.close()
