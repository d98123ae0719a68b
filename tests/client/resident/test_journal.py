"""Journal: what happened, in lines of JSON that nobody else reads, and nothing of the data in any of them."""

import ast
import json
import logging
import os
import stat
import sys
import threading
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from client import agent
from client.resident.answers import KeptAnswers
from client.resident.carrier import ask
from client.resident.conversion import parts_of
from client.resident.journal import NUM_OLDER, Journal, described
from client.resident.metrics import Metrics
from client.resident.protocol import Parts
from client.resident.serving import Agent
from client.site import read_site
from shared.errors import ConfigError, Fault, ManifestError, PermissionRefused
from shared.metrics_port import MetricsPort
from tests.client.asking import site_file
from tests.client.resident.agents import CHECKOUT, RUN, counts_records, listening, train_records
from tests.system.machine import free_port
from tests.tiny import CARD

MARKERS = ("MARKER-SUBJECT-4711", "marker-file-name", "MARKER-LABEL", "MARKER-TEXT", "MARKER-GROUP", "0.123454321")


@pytest.fixture(autouse=True)
def _cold(monkeypatch: pytest.MonkeyPatch) -> None:
    agent._loaded_samples.cache_clear()
    monkeypatch.setattr("client.preflight.assert_sound", lambda _: None)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    made = Journal(tmp_path / "journal.jsonl", most_bytes=100_000)
    yield made
    made.close()


def lines(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "journal.jsonl").read_text(encoding="utf-8").splitlines()]


def marked_site(folder: Path) -> Path:
    """A site in whose rows every word is a marker."""
    path, manifest = site_file(folder), folder / "data" / "metadata.jsonl"
    rows = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
    for number, row in enumerate(rows):
        (folder / "data" / row["left_file_name"]).rename(folder / "data" / f"marker-file-name-{number}.npy")
        row |= {"left_file_name": f"marker-file-name-{number}.npy", "subject_id": f"MARKER-SUBJECT-4711-{number}"}
        row["label"] = {"a": "MARKER-LABEL-A", "b": "MARKER-LABEL-B", "c": "MARKER-LABEL-C"}[row["label"]]
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    card = CARD.replace('["a", "b", "c"]', '["MARKER-LABEL-A", "MARKER-LABEL-B", "MARKER-LABEL-C"]')
    (folder / "dataset.toml").write_text(card, encoding="utf-8")
    return path


def broken_row(folder: Path) -> None:
    with (folder / "data" / "metadata.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"label": "MARKER-LABEL-D", "left_file_name": "marker-file-name-none.npy", "MARKER-TEXT": 1}\n')


def broken_value(folder: Path) -> None:
    np.save(folder / "data" / "marker-file-name-3.npy", np.full((2, 9), 0.123454321))


def broken_card(folder: Path) -> None:
    card = (folder / "dataset.toml").read_text(encoding="utf-8")
    (folder / "dataset.toml").write_text(card + 'MARKER-TEXT = "MARKER-TEXT"\n', encoding="utf-8")


def broken_settings(folder: Path) -> None:
    path = folder / "site.toml"
    path.write_text("MARKER_TEXT = 3\n" + path.read_text(encoding="utf-8"), encoding="utf-8")


def failing(folder: Path) -> None:
    """Library code that quotes a value."""
    warnings.warn("MARKER-TEXT of row 7", UserWarning, stacklevel=1)
    logging.getLogger("some.library").error("MARKER-TEXT of row %d", 7)
    logging.getLogger("motet.site").info("%s: loss on rows %.9f", "MARKER-GROUP", 0.123454321)


HARM: list[Callable[[Path], None]] = [broken_row, broken_value, broken_card, broken_settings, failing]


@pytest.mark.filterwarnings("default")
def test_nothing_of_the_data_stands_in_anything_that_the_agent_writes(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole rounds, refused ones, every kind of broken data, and code that raises with a value in its text."""
    said: list[str | None] = []
    run = RUN.model_copy(
        update={"data": RUN.data.model_copy(update={"labels": tuple(f"MARKER-LABEL-{each}" for each in "ABC")})}
    )
    scraped = b""
    for number, harm in enumerate([None, *HARM]):
        folder = tmp_path / str(number)
        folder.mkdir()
        path = marked_site(folder)
        if harm is not None:
            harm(folder)
        answers = KeptAnswers(folder / "answers", most_runs=2, most_rounds=2)
        journal, metrics = Journal(folder / "journal.jsonl", most_bytes=100_000), Metrics(version="1")
        site = Agent(path, answers=answers, journal=journal, metrics=metrics)
        server = MetricsPort(
            port := free_port(), registry=metrics.registry, checks=site.checks, setting="agent.metrics_port"
        )
        try:
            with listening(folder / "agent" / "socket", site.answer):
                if harm is failing:
                    failing(folder)
                    monkeypatch.setattr(agent, "train_round", lambda *_, **__: dict[str, int]()["MARKER-TEXT"])
                for records, kind in ((counts_records(run), "query"), (train_records(run), "train"),
                                      (train_records(run, value=0.5, attempt=1), "train")):  # fmt: skip
                    said.append(ask(kind, parts_of(records), agent=folder / "agent" / "socket").code)  # type: ignore[arg-type]
            for page in ("metrics", "health"):
                try:
                    scraped += urllib.request.urlopen(f"http://127.0.0.1:{port}/{page}", timeout=20).read()
                except urllib.error.HTTPError as error:
                    scraped += error.read()
                    error.close()
        finally:
            server.close()
            journal.close()
            answers.close()
    # every part of it was reached
    assert set(said) == {None, "replayed", "manifest-invalid", "settings-invalid", "internal"}
    assert b"motet_agent_requests_total" in scraped

    shown = capfd.readouterr()
    written = {"stdout": shown.out.encode(), "stderr": shown.err.encode(), "metrics": scraped}
    for found in tmp_path.rglob("*"):
        inside = found.relative_to(tmp_path).parts[1:]
        if found.is_file() and inside[0] not in {"data", "dataset.toml", "site.toml", "cache"}:
            written["/".join(inside)] = written.get("/".join(inside), b"") + found.read_bytes()
    assert {"stderr", "journal.jsonl", "ledger.sqlite", "answers/r/000001.answer", "answers/r/000001.note"} <= set(
        written
    )
    for name, content in written.items():
        assert not [marker for marker in MARKERS if marker.encode() in content], name


def test_an_answer_is_written_with_what_was_asked_and_what_came_of_it(tmp_path: Path, journal: Journal) -> None:
    site = Agent(site_file(tmp_path), journal=journal)
    with listening(tmp_path / "agent" / "socket", site.answer):
        for records in (train_records(), train_records(), train_records(run_id="s", attempt=2, number=9)):
            ask("train", parts_of(records), agent=tmp_path / "agent" / "socket")
    first = lines(tmp_path)[0]
    assert {key: first[key] for key in ("kind", "run", "round", "attempt", "outcome")} == {
        "kind": "train", "run": "r", "round": 1, "attempt": 0, "outcome": "sent",
    }  # fmt: skip
    assert isinstance(first["epsilon"], float)
    assert isinstance(first["seconds"], float)
    outcomes = [(line["run"], line["round"], line["outcome"]) for line in lines(tmp_path) if line["event"] == "answer"]
    assert outcomes == [("r", 1, "sent"), ("r", 1, "refused"), ("s", 9, "refused")]
    # and beside a refusal stands why
    reasons = [str(line["said"]) for line in lines(tmp_path) if line["event"] == "log"]
    assert "was reserved before" in reasons[0]
    assert "calibrated for 3 rounds" in reasons[1]


def test_the_values_of_a_log_line_are_left_out(tmp_path: Path, journal: Journal) -> None:
    logging.getLogger("motet.site").warning("%s: %d rows", "MARKER", 17)
    logging.getLogger("some.library").warning("MARKER with a value %s", "MARKER")
    ours, theirs = lines(tmp_path)
    assert (ours["template"], ours["level"]) == ("%s: %d rows", "warning")
    assert "template" not in theirs
    assert str(theirs["at"]).startswith("test_journal.py:")


def test_a_refusal_that_says_itself_what_it_is_has_neither_a_template_of_placeholders_nor_a_line_of_code(
    tmp_path: Path, journal: Journal
) -> None:
    log, refused = logging.getLogger("motet.site"), PermissionRefused("limits.rounds: too many")
    log.error("%s: %s", "site.toml", refused)
    log.error("%s: %d rows stay reserved: %s", "MARKER", 3, refused)
    log.error("%s: %s", "site.toml", ConfigError("MARKER"))
    log.error("%s: %s", "site.toml", KeyError("MARKER"))
    plain, worded, settings, unexpected = lines(tmp_path)
    assert plain.keys() == {"time", "level", "event", "logger", "code", "said"}
    assert plain["said"] == "limits.rounds: too many"
    assert worded["template"] == "%s: %d rows stay reserved: %s"
    assert settings.keys() == {"time", "level", "event", "logger", "code", "shown_by"}
    assert {"template", "at", "error"} <= unexpected.keys(), "of the unexpected the place is all there is"
    assert "MARKER" not in (tmp_path / "journal.jsonl").read_text(encoding="utf-8")


def test_every_log_line_of_ours_has_its_text_in_the_code() -> None:
    """No f-string, in which a value would stand in the template."""
    for path in [*(CHECKOUT / "client").rglob("*.py"), *(CHECKOUT / "shared").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("log."):
                assert isinstance(node.args[0], ast.Constant), f"{path}:{node.lineno}"


def test_an_error_is_described_by_what_it_may_say() -> None:
    fault = Fault(place="line 17", field="label", came="MARKER", allowed="a, b")
    many = ManifestError(folder="MARKER", manifest="MARKER", num_rows=9, faults=[fault] * 4)
    assert described(many) == {
        "code": "manifest-invalid", "num_faults": 4, "shown_by": "motet check, with the folder in data",
    }  # fmt: skip
    assert described(PermissionRefused("limits.rounds: too many")) == {
        "code": "refused", "said": "limits.rounds: too many",
    }  # fmt: skip
    try:
        raise ValueError("MARKER")
    except ValueError as error:
        said = described(error)
    assert said["error"] == "ValueError"
    assert str(said["at"]).startswith("test_journal.py:")
    assert "MARKER" not in str(said) + str(described(ConfigError("MARKER")))


def test_what_nobody_catches_is_written_without_its_text(
    tmp_path: Path, journal: Journal, capfd: pytest.CaptureFixture[str]
) -> None:
    thread = threading.Thread(target=lambda: dict[str, int]()["MARKER"])
    thread.start()
    thread.join()
    sys.excepthook(ValueError, ValueError("MARKER"), None)
    assert [(line["level"], line["error"]) for line in lines(tmp_path)] == [
        ("critical", "KeyError"),
        ("critical", "ValueError"),
    ]
    assert "MARKER" not in capfd.readouterr().err


def test_the_journal_is_the_owners_alone_to_read(tmp_path: Path) -> None:
    """The files that it has turned over too, which are as many as it says and no larger."""
    before = os.umask(0)
    try:
        journal = Journal(tmp_path / "journal.jsonl", most_bytes=2_000)
        for number in range(200):
            journal.write("answer", round=number)
        journal.close()
    finally:
        os.umask(before)
    files = sorted(tmp_path.iterdir())
    assert len(files) == 1 + NUM_OLDER
    for each in files:
        assert stat.S_IMODE(each.stat().st_mode) == 0o600
        assert each.stat().st_size <= 2_000


def test_metrics_and_health_are_of_the_agent_and_of_no_record(tmp_path: Path) -> None:
    path = site_file(tmp_path)
    (tmp_path / "agent").mkdir()
    answers, metrics = KeptAnswers(tmp_path / "agent" / "answers", most_runs=1, most_rounds=1), Metrics(version="1")
    site = Agent(path, answers=answers, metrics=metrics)
    server = MetricsPort(
        port := free_port(), registry=metrics.registry, checks=site.checks, setting="agent.metrics_port"
    )
    try:
        with listening(tmp_path / "agent" / "socket", site.answer):
            for records in (train_records(), train_records(), train_records(value=0.5)):
                ask("train", parts_of(records), agent=tmp_path / "agent" / "socket")
            assert ask("health", Parts(), agent=tmp_path / "agent" / "socket").code is None
        text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20).read().decode()
        assert 'motet_agent_requests_total{kind="train",outcome="sent"} 2.0' in text
        assert 'motet_agent_requests_total{kind="train",outcome="replayed"} 1.0' in text
        assert "motet_agent_sent_again 1.0" in text
        names = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE") and "motet" in line}
        assert names == {
            "motet_agent_info", "motet_agent_requests_total", "motet_agent_requests_created",
            "motet_agent_request_seconds", "motet_agent_request_seconds_created", "motet_agent_busy",
            "motet_agent_sent_again", "motet_agent_kept_bytes", "motet_agent_epsilon_spent",
        }  # fmt: skip
        said = json.loads(urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=20).read())
        assert said == {"well": True, "settings": True, "ledger": True, "disk": True}
        read_site(path).ledger.write_bytes(b"no ledger at all" * 100)
        with pytest.raises(urllib.error.HTTPError, match="503") as caught:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=20)
        assert json.loads(caught.value.read()) == {"well": False, "settings": True, "ledger": False, "disk": True}
        path.unlink()
        with pytest.raises(urllib.error.HTTPError, match="503") as caught:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=20)
        caught.value.close()
        with pytest.raises(ConfigError, match="metrics_port"):
            MetricsPort(port, registry=metrics.registry, checks=site.checks, setting="agent.metrics_port")
    finally:
        server.close()
        answers.close()
