"""Serving: the agent answers over its socket as it would in the process, says a code when it fails, and lives on."""

import copy
import json
import os
import shutil
import stat
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, RecordDict
from prometheus_client import generate_latest

from client import agent
from client.answering import answer_query, answer_training
from client.resident import serving
from client.resident.answers import KeptAnswers
from client.resident.carrier import carry
from client.resident.conversion import parts_of
from client.resident.exposure import can_read, changed_by, refuse_exposed
from client.resident.forgetting import MEMORIES, MOST_RUNS
from client.resident.frames import Frame
from client.resident.metrics import Metrics
from client.resident.protocol import Parts, read_reply, request_frame
from client.resident.serving import Agent, limits_of, run_agent
from client.site import read_site
from shared.errors import ConfigError, ManifestError
from shared.version import VERSION
from tests.client.asking import rows_of, site_file
from tests.client.resident.agents import (
    CHECKOUT,
    NOBODY,
    agent_process,
    asked,
    counts_records,
    listening,
    needs_other_users,
    open_folder,
    same,
    train_records,
)

SECRET = "patient 4711 has it"


@pytest.fixture(autouse=True)
def _cold(monkeypatch: pytest.MonkeyPatch) -> None:
    agent._loaded_samples.cache_clear()
    monkeypatch.setattr("client.preflight.assert_sound", lambda _: None)


def reproducible(folder: Path) -> Path:
    folder.mkdir()
    return site_file(folder, reproducible_noise=True)


def test_a_round_through_the_socket_gives_the_same_update_as_in_process(tmp_path: Path) -> None:
    here, there = reproducible(tmp_path / "here"), reproducible(tmp_path / "there")
    with listening(there.parent / "agent" / "socket", Agent(there).answer):
        for number in (1, 2):
            records = train_records(number=number, value=0.1)
            came = parts_of(carry("train", records, agent=there.parent / "agent" / "socket"))
            expected = parts_of(answer_training(records, site_file=here))
            assert came.read()
            assert same(came, expected)
    assert len(rows_of(tmp_path / "there")) == 2


def test_counts_and_introductions_through_the_socket_are_those_of_the_process(tmp_path: Path) -> None:
    here, there = reproducible(tmp_path / "here"), reproducible(tmp_path / "there")
    with listening(there.parent / "agent" / "socket", Agent(there).answer):
        for records in (RecordDict(), counts_records()):
            came = carry("query", records, agent=there.parent / "agent" / "socket")
            assert came == answer_query(records, site_file=here)


def test_an_agent_that_fails_says_only_a_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever raises whatever, and the next request is answered."""
    site = Agent(site_file(tmp_path))
    faults = [ValueError(SECRET), MemoryError(SECRET), RecursionError(SECRET), OSError(5, SECRET),
              ManifestError(folder=SECRET, manifest=SECRET, num_rows=1, faults=())]  # fmt: skip
    for fault in faults:
        with monkeypatch.context() as patched:

            def fail(*_: object, fault: Exception = fault, **__: object) -> None:
                raise fault

            patched.setattr(serving, "answer_training", fail)
            reply = site.answer(request_frame("train", Parts(header="{}")))
            assert read_reply(reply) == Parts(code="internal")
            assert SECRET.encode() not in reply.head + bytes(reply.body)
    assert SECRET in caplog.text
    assert read_reply(site.answer(request_frame("query", Parts()))).code is None


def test_what_is_no_request_gets_a_code(tmp_path: Path) -> None:
    site = Agent(site_file(tmp_path))
    for frame in (Frame(b"{"), Frame(b'{"agent_protocol": 1, "kind": "train"}', b"x"), Frame(b"\xff")):
        assert read_reply(site.answer(frame)) == Parts(code="message-invalid")
    for header in (None, "", "[]", "{}", "[" * 10_000, '{"protocol_version": 1}'):
        assert read_reply(site.answer(request_frame("train", Parts(header=header)))).code is not None
    assert not (tmp_path / "ledger.sqlite").exists()


def test_health_says_nothing_of_data_or_budget(tmp_path: Path) -> None:
    said = read_reply(Agent(site_file(tmp_path)).answer(request_frame("health", Parts())))
    held = json.loads(said.header or "")
    assert set(held) == {"agent_protocol", "protocol_version", "version", "pid", "uptime_s", "busy_s"}
    assert (held["version"], held["busy_s"]) == (VERSION, None)


def test_an_agent_that_is_away_is_a_refusal(tmp_path: Path) -> None:
    said = carry("query", RecordDict(), agent=tmp_path / "socket", again_for_s=0.0)
    assert said == RecordDict({"refusal": ConfigRecord({"code": "agent-away"})})


def test_an_agent_that_comes_back_answers_who_has_been_waiting(tmp_path: Path) -> None:
    path, came = site_file(tmp_path), []
    waiting = threading.Thread(
        target=lambda: came.append(carry("query", RecordDict(), agent=tmp_path / "agent" / "socket", again_for_s=30.0))
    )
    waiting.start()
    with listening(tmp_path / "agent" / "socket", Agent(path).answer):
        waiting.join(timeout=60)
    assert [set(each) for each in came] == [{"header"}]


def test_the_largest_request_follows_from_the_owners_largest_model(tmp_path: Path) -> None:
    site = read_site(site_file(tmp_path))
    small = limits_of(site.model_copy(update={"max_parameters": 1000}))
    assert small.most_body_bytes < limits_of(site).most_body_bytes < 1 << 30


def test_what_the_agent_writes_is_its_users_alone(tmp_path: Path) -> None:
    path = site_file(tmp_path)
    before = os.umask(0)
    try:
        with agent_process(path):
            assert asked(path, train_records()).code is None
            mine = {"ledger.sqlite", "cache", "agent"}
            written = [each for each in tmp_path.rglob("*") if each.relative_to(tmp_path).parts[0] in mine]
            names = {each.name for each in written}
            assert names >= {"ledger.sqlite", "preflight", "journal.jsonl", "000001.answer", "socket"}
            open_ = [each for each in written if each.stat().st_mode & 0o077 and not each.is_socket()]
    finally:
        os.umask(before)
    # the folder of the socket can be passed through, and nothing in it be listed
    assert open_ == [tmp_path / "agent"]
    assert stat.S_IMODE((tmp_path / "agent").stat().st_mode) == 0o711


@needs_other_users
def test_the_agent_does_not_start_on_data_that_the_node_can_read() -> None:
    with open_folder() as folder:
        path = site_file(folder)
        site = read_site(path)
        for name in ("data", "dataset.toml", "site.toml"):
            (folder / name).chmod(0o700 if (folder / name).is_dir() else 0o600)
        refuse_exposed(site, site_file=path, users=frozenset({NOBODY}))
        (folder / "data").chmod(0o711)  # whoever knows a name can open it
        with pytest.raises(ConfigError, match=r"data: user 65534 can read .*chmod -R go-rwx"):
            refuse_exposed(site, site_file=path, users=frozenset({NOBODY}))
        # where nobody can pass, nothing behind it is open
        folder.chmod(0o700)
        refuse_exposed(site, site_file=path, users=frozenset({NOBODY}))
        assert not can_read(folder / "data", uid=NOBODY, groups=(NOBODY,))


@needs_other_users
def test_the_agent_does_not_start_on_settings_that_the_node_can_replace() -> None:
    """What lies in a folder that others write to can be taken away, though none of them may read it."""
    with open_folder() as folder:
        path, part = site_file(folder), folder / "part.py"
        part.touch()
        text = path.read_text("utf-8")
        path.write_text(text.replace("[privacy]", 'parts = ["part.py"]\n[privacy]', 1), encoding="utf-8")
        for name in ("data", "dataset.toml", "site.toml", "part.py"):
            (folder / name).chmod(0o700 if (folder / name).is_dir() else 0o600)
        site = read_site(path)

        def refused(place: Path, *, mode: int) -> str:
            before = stat.S_IMODE(place.stat().st_mode)
            place.chmod(mode)
            try:
                with pytest.raises(ConfigError) as raised:
                    refuse_exposed(site, site_file=path, users=frozenset({NOBODY}))
                return str(raised.value)
            finally:
                place.chmod(before)

        refuse_exposed(site, site_file=path, users=frozenset({NOBODY}))
        assert f"site.toml: user 65534 can change or replace {path}, by what {folder} allows" in refused(
            folder, mode=0o733
        )
        assert f"parts: user 65534 can change or replace {part}, by what {part} allows" in refused(part, mode=0o602)
        card = folder / "dataset.toml"
        assert f"card: user 65534 can change or replace {card}" in refused(card, mode=0o602)
        # there what is not begun yet can be begun by another, and what is there cannot be taken away
        said = refused(folder, mode=0o1733)
        assert "ledger: user 65534 can change" in said
        assert "site.toml: " not in said
        # where nobody can pass, nothing behind it is open
        outer = folder.parent / f"{folder.name}-outer"
        outer.mkdir(mode=0o700)
        try:
            (outer / "inner").mkdir()
            (outer / "inner").chmod(0o777)
            assert changed_by(outer / "inner" / "site.toml", uid=NOBODY, groups=(NOBODY,)) is None
            outer.chmod(0o711)
            assert changed_by(outer / "inner" / "site.toml", uid=NOBODY, groups=(NOBODY,)) == outer / "inner"
        finally:
            shutil.rmtree(outer)


@needs_other_users
def test_an_agent_whose_data_lie_open_listens_to_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.umask", lambda _: 0)  # of the process that tests
    monkeypatch.setattr("resource.setrlimit", lambda *_: None)
    with open_folder() as folder:
        path = site_file(folder)
        path.write_text(path.read_text("utf-8") + '\n[agent]\nallowed_users = ["nobody"]\n', encoding="utf-8")
        for name in ("data", "dataset.toml", "site.toml"):
            (folder / name).chmod(0o700 if (folder / name).is_dir() else 0o604)
        with pytest.raises(ConfigError, match=r"site.toml: user 65534 can read"):
            run_agent(path)
        assert not (folder / "agent" / "socket").exists()


def test_importing_the_delivered_app_loads_no_torch() -> None:
    """Flower starts a process for each message; torch would cost it seconds."""
    program = "import sys, client.app; print(sorted({'torch', 'transformers', 'opacus', 'scipy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], cwd=CHECKOUT, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_what_is_remembered_of_refused_runs_does_not_grow(tmp_path: Path) -> None:
    site = Agent(site_file(tmp_path))
    header = json.loads(parts_of(train_records()).header or "")
    for number in range(3 * MOST_RUNS):
        # one is refused for its labels, the other once its settings have a key; long headers are read anew each time
        changed = copy.deepcopy(header)
        if number % 2:
            changed["run"]["data"]["labels"] = [f"{number}-{place}" for place in range(1000)]
        else:
            changed["run"]["model"]["encoders"]["left"]["options"] = {f"x{number}_{place}": 1 for place in range(1000)}
        reply = read_reply(site.answer(request_frame("train", Parts(header=json.dumps(changed)))))
        assert reply.code == ("refused" if number % 2 else "model-invalid")
        assert all(each.cache_info().currsize <= MOST_RUNS + 1 for each in MEMORIES)


def test_who_asks_whether_the_agent_is_well_begins_no_ledger(tmp_path: Path) -> None:
    path = site_file(tmp_path)
    folder = tmp_path / "agent" / "answers"
    folder.mkdir(parents=True)
    with closing(KeptAnswers(folder, most_runs=2, most_rounds=2)) as answers:
        site = Agent(path, answers=answers)
        assert site.checks() == {"settings": True, "ledger": True, "disk": True}
        assert not (tmp_path / "ledger.sqlite").exists()
        assert parts_of(answer_training(train_records(), site_file=path, answers=answers)).code is None
        assert site.checks()["ledger"]
        (tmp_path / "ledger.sqlite").unlink()
        assert not site.checks()["ledger"]
        assert not (tmp_path / "ledger.sqlite").exists()


def test_no_metric_tells_how_much_memory_the_agent_has() -> None:
    """Prepared rows are of a size that the server chooses, so that their number could be read from it."""
    shown = generate_latest(Metrics(version="1").registry).decode()
    assert "motet_agent_requests" in shown
    assert "process_" not in shown
