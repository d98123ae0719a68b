"""The service: it says what the model says, refuses what is too much, and keeps nothing."""

import asyncio
import json
import logging
import os
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator, MutableMapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.prediction import Prediction, Predictor
from server.service.app import make_app
from server.service.run import is_loopback
from server.service.upload import Limits
from server.trained import TrainedModel, open_trained
from tests.server.using_models import picture, recording, small_run, write_run

with warnings.catch_warnings():
    # of Starlette about anyio
    warnings.simplefilter("ignore", DeprecationWarning)
    from fastapi.testclient import TestClient

HEADERS = [(b"host", b"localhost"), (b"content-type", b"multipart/form-data; boundary=x")]
SMALL = Limits(file_bytes=5_000, request_bytes=9_000, text_bytes=500, read_s=2.0, answer_s=0.3, waiting=1)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TrainedModel:
    return open_trained(write_run(tmp_path_factory.mktemp("runs") / "run", run=small_run(), private=True))


@pytest.fixture(scope="module")
def client(trained: TrainedModel) -> Iterator[TestClient]:
    with TestClient(make_app(trained), base_url="http://localhost") as client:
        yield client


@pytest.fixture(scope="module")
def narrow(trained: TrainedModel) -> Iterator[TestClient]:
    """The same with small limits."""
    with TestClient(make_app(trained, limits=SMALL), base_url="http://localhost") as client:
        yield client


def code(answer: object, status: int) -> str:
    assert hasattr(answer, "status_code")
    assert answer.status_code == status, getattr(answer, "text", "")
    assert hasattr(answer, "json")
    return str(answer.json()["error"]["code"])


def test_a_prediction_is_that_of_the_command(client: TestClient, trained: TrainedModel, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture())
    (tmp_path / "b.wav").write_bytes(recording())
    wanted = Predictor(trained).of_values({"photo": tmp_path / "a.png", "sound": tmp_path / "b.wav", "words": "sunny"})
    answer = client.post(
        "/predict",
        data={"words": "sunny"},
        files={"photo": ("a.png", picture()), "sound": ("b.wav", recording())},
    )
    assert answer.status_code == 200
    assert Prediction.model_validate(answer.json()).answers == wanted.answers
    assert list(answer.json()["answers"]["label"]["contributions"]) == ["photo", "words", "sound"]


def test_absent_modalities_may_be_left_out_or_empty(client: TestClient) -> None:
    alone = client.post("/predict", files={"words": (None, "sunny")}).json()
    beside = client.post("/predict", files={"words": (None, "sunny"), "photo": ("", b"")}).json()
    assert alone == beside
    assert alone["modalities"] == ["words"]


def test_the_model_tells_what_it_rests_on(client: TestClient) -> None:
    told = client.get("/model").json()
    assert told["about"]["tasks"]["label"]["labels"] == ["a", "b", "c"]
    assert told["about"]["modalities"] == {"photo": "image", "words": "text", "sound": "audio"}
    assert told["about"]["privacy"][0]["unit"] == "record"
    assert told["about"]["privacy"][0]["epsilon"] > 0
    assert ".png" in told["endings"]["photo"]
    assert client.get("/health").json() == {"status": "ok"}


@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        ({"photo": ("a.png", b"GIF89a")}, "photo: content is not PNG"),
        ({"photo": ("a.exe", picture())}, "name is ending in '.exe'"),
        ({"photo": ("a.png", picture()[:80])}, "truncated or damaged"),
        ({"sound": ("a.wav", recording()[:900])}, "sound: "),
        ({"photo": (None, "a text")}, "photo: value is a text"),
        ({"words": ("a.txt", b"\xff\xfe\x00")}, "not UTF-8"),
    ],
)
def test_a_value_that_is_not_sound_is_refused_with_the_reason(
    client: TestClient, files: dict[str, tuple[str | None, bytes | str]], wanted: str
) -> None:
    answer = client.post("/predict", files=files)
    assert code(answer, 422) == "value-invalid"
    assert wanted in answer.json()["error"]["message"]


def test_a_picture_that_declares_more_than_it_may_is_not_decoded(client: TestClient) -> None:
    """A PNG header of 40,000 x 40,000 pixels in a few bytes."""
    import struct
    import zlib

    header = b"IHDR" + struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    data = b"IDAT" + zlib.compress(b"\0" * 100)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", len(data) - 4) + data + struct.pack(">I", zlib.crc32(data))
    answer = client.post("/predict", files={"photo": ("a.png", bomb)})
    assert code(answer, 422) == "value-invalid"
    assert "declared pixels" in answer.json()["error"]["message"]


def test_requests_that_cannot_be_meant_are_refused(client: TestClient) -> None:
    assert code(client.post("/predict", json={"words": "sunny"}), 415) == "not-multipart"
    assert code(client.post("/predict", files={"words": (None, "  ")}), 422) == "nothing-given"
    assert code(client.post("/predict", files={"colour": (None, "red")}), 422) == "unknown-field"
    twice = [("words", (None, "a")), ("words", (None, "b"))]
    assert code(client.post("/predict", files=twice), 422) == "sent-twice"
    broken = {"content-type": "multipart/form-data; boundary=x"}
    assert code(client.post("/predict", content=b"--y\r\n", headers=broken), 400) == "malformed"
    assert (
        code(client.post("/predict", content=b"", headers={"content-type": "multipart/form-data"}), 400) == "malformed"
    )
    assert code(client.get("/nothing"), 404) == "not-found"
    assert code(client.get("/predict"), 405) == "method-not-allowed"


def test_another_name_for_this_machine_is_refused(client: TestClient) -> None:
    """A page of somebody else whose name was made to resolve to this machine."""
    assert client.get("/model", headers={"host": "somewhere.example"}).status_code == 400


def test_too_much_is_refused_before_it_is_read(narrow: TestClient) -> None:
    assert code(narrow.post("/predict", files={"photo": ("a.png", b"x" * 6_000)}), 413) == "too-large"
    read: list[int] = []

    def body() -> Iterator[bytes]:
        """Chunked, so that no header declares its length."""
        yield b'--x\r\nContent-Disposition: form-data; name="words"; filename="a.txt"\r\n\r\n'
        for piece in range(1000):
            read.append(piece)
            yield b"y" * 1000

    told = {"content-type": "multipart/form-data; boundary=x"}
    assert code(narrow.post("/predict", content=body(), headers=told), 413) == "too-large"
    declared = {**told, "content-length": "1000000"}
    assert code(narrow.post("/predict", content=b"--x", headers=declared), 413) == "too-large"
    many = [(f"f{number}", (None, "a")) for number in range(20)]
    assert code(narrow.post("/predict", files=many), 422) == "unknown-field"
    assert code(narrow.post("/predict", files={"words": (None, "a" * 600)}), 413) == "too-large"
    long = b'--x\r\nContent-Disposition: form-data; name="words"\r\nX-More: ' + b"z" * 5000 + b"\r\n\r\na\r\n--x--\r\n"
    assert code(narrow.post("/predict", content=long, headers=told), 400) == "malformed"
    cut = b'--x\r\nContent-Disposition: form-data; name="words"\r\n\r\nsunny'
    assert code(narrow.post("/predict", content=cut, headers=told), 400) == "malformed"


def test_no_upload_touches_the_disk(client: TestClient) -> None:
    """Watched by the interpreter's own audit events: nothing is opened to be written while a large file is answered."""
    opened: list[object] = []
    watching = True

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        if watching and event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR):
            opened.append(arguments[0])

    sys.addaudithook(watch)  # it cannot be taken away again
    try:
        answer = client.post("/predict", files={"photo": ("a.png", picture() + bytes(3_000_000))})
        assert answer.status_code in (200, 422)
        assert opened == []
        with tempfile.SpooledTemporaryFile(max_size=1) as file:
            file.write(b"as Starlette would have")
        assert opened
    finally:
        watching = False


def test_nothing_of_a_request_is_logged(
    client: TestClient, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(*_: object) -> None:
        raise ValueError("a secret sentence")

    monkeypatch.setattr(Predictor, "of_batch", breaks)
    with caplog.at_level(logging.DEBUG):
        answer = client.post("/predict", files={"words": (None, "a secret sentence")})
    assert code(answer, 500) == "internal"
    assert "secret" not in answer.text
    assert "ValueError" in caplog.text
    assert "secret" not in caplog.text


def test_a_model_that_takes_too_long_is_not_waited_for_and_a_long_queue_is_refused(
    narrow: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    going, held = threading.Event(), Predictor.of_batch

    def slow(self: Predictor, named: object) -> object:
        going.wait(20)
        return held(self, named)  # type: ignore[arg-type]

    monkeypatch.setattr(Predictor, "of_batch", slow)
    asked = {"words": (None, "sunny")}
    assert code(narrow.post("/predict", files=asked), 504) == "timeout"
    # the first still runs in the thread; one more may wait, and is given up; what was given up leaves the queue
    assert code(narrow.post("/predict", files=asked), 504) == "timeout"
    going.set()
    ends = time.monotonic() + 20
    while narrow.post("/predict", files=asked).status_code != 200:
        assert time.monotonic() < ends


def test_no_more_bodies_arrive_at_once_than_the_limit_says(trained: TrainedModel) -> None:
    """One that has begun and not ended holds the only place; the next is turned away unread, and one after it is not."""
    app = make_app(trained, limits=replace(SMALL, arriving=1, read_s=60.0))
    with TestClient(app, base_url="http://localhost") as client:
        begun, goes_on = threading.Event(), threading.Event()
        found: list[int] = []

        async def slow() -> None:
            asked = {"type": "http", "method": "POST", "path": "/predict", "query_string": b"", "headers": HEADERS}

            async def receive() -> dict[str, object]:
                begun.set()
                await asyncio.to_thread(goes_on.wait, 30)
                return {"type": "http.request", "body": b"--x--\r\n", "more_body": False}

            async def send(message: MutableMapping[str, Any]) -> None:
                if message["type"] == "http.response.start":
                    found.append(message["status"])

            await app({**asked, "raw_path": b"/predict", "scheme": "http", "server": ("localhost", 80)}, receive, send)

        assert client.portal is not None
        first = client.portal.start_task_soon(slow)
        assert begun.wait(20)
        assert code(client.post("/predict", files={"words": (None, "sunny")}), 503) == "busy"
        goes_on.set()
        first.result(20)
        assert found == [422]
        assert client.post("/predict", files={"words": (None, "sunny")}).status_code != 503


def test_requests_at_once_are_answered_one_after_the_other(client: TestClient) -> None:
    answers: list[object] = []
    words = ["sunny", "rain", "joy", "today"]
    alone = [client.post("/predict", files={"words": (None, word)}).json() for word in words]

    def ask(word: str) -> None:
        answers.append((word, client.post("/predict", files={"words": (None, word)}).json()))

    threads = [threading.Thread(target=ask, args=(word,)) for word in words]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers, key=str) == sorted(zip(words, alone, strict=True), key=str)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=300), st.sampled_from(["photo", "sound", "words"]), st.sampled_from(["a.png", "a.wav", "a"]))
def test_any_bytes_get_an_answer_in_json(client: TestClient, data: bytes, field: str, name: str) -> None:
    answer = client.post("/predict", files={field: (name, data)})
    assert answer.status_code in (200, 422)
    assert json.loads(answer.text)


def test_every_answer_forbids_what_the_page_does_not_need(client: TestClient) -> None:
    for answer in (client.get("/"), client.get("/nothing"), client.post("/predict")):
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["referrer-policy"] == "no-referrer"


def test_the_page_names_no_other_place_and_shows_what_was_spent(client: TestClient) -> None:
    page = client.get("/").text
    assert "http://" not in page
    assert "https://" not in page
    assert "Spent for each record" in page
    assert "epsilon" in page
    for name in ("photo", "words", "sound"):
        assert f'data-name="{name}"' in page


def test_a_model_without_privacy_says_so_on_its_page(tmp_path: Path) -> None:
    trained = open_trained(write_run(tmp_path / "run", run=small_run()))
    with TestClient(make_app(trained), base_url="http://localhost") as client:
        assert "trained without differential privacy" in client.get("/").text
        assert client.get("/model").json()["about"]["privacy"] == []


def test_openapi_names_the_fields_of_a_prediction(client: TestClient) -> None:
    told = client.get("/openapi.json").json()
    body = told["paths"]["/predict"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert set(body["properties"]) == {"photo", "words", "sound"}
    assert set(told["paths"]) == {"/health", "/model", "/predict"}


@pytest.mark.parametrize(
    ("host", "wanted"),
    [
        ("127.0.0.1", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("192.168.1.5", False),
        ("a.b", False),
    ],
)
def test_only_this_machines_own_addresses_go_without_a_warning(host: str, wanted: bool) -> None:
    assert is_loopback(host) is wanted


def test_a_service_for_others_warns_first(
    trained: TrainedModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from server.service.run import serve

    started: list[dict[str, object]] = []
    monkeypatch.setattr("uvicorn.run", lambda app, **options: started.append(options))
    serve(trained, host="0.0.0.0", port=8000)
    assert "WARNING" in capsys.readouterr().err
    serve(trained, host="127.0.0.1", port=8000)
    assert "WARNING" not in capsys.readouterr().err
    assert all(options["access_log"] is False for options in started)
