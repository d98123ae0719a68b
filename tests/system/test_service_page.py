"""The page of the service in a real browser: a picture, a sentence and a recording are asked about and answered."""

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.service.app import make_app
from server.trained import open_trained
from tests.server.using_models import picture, recording, small_run, write_run
from tests.system.browser import CHROMIUM, MISSING, Page, browser

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason=MISSING)]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A service that listens, in a thread of its own."""
    import uvicorn

    trained = open_trained(write_run(tmp_path_factory.mktemp("runs") / "run", run=small_run(), private=True))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(make_app(trained), log_level="error", access_log=False, ws="none"))
        running = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        running.start()
        ends = time.monotonic() + 60
        while not server.started:
            assert time.monotonic() < ends
            time.sleep(0.02)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
        server.should_exit = True
        running.join(timeout=30)


@pytest.fixture
def page(address: str) -> Iterator[Page]:
    with browser() as tab:
        tab.open(address)
        tab.wait("facts !== null")
        yield tab
        # what the page's policy blocked would stand here, and so would an error of its script
        assert tab.problems == []


def ask(page: Page) -> str:
    """What stands in the answer after the button was pressed."""
    page.evaluate("document.getElementById('ask').click()")
    page.wait("!document.getElementById('ask').disabled && !document.querySelector('.result .empty')")
    return str(page.evaluate("document.getElementById('result').innerText"))


def write(page: Page, words: str) -> None:
    page.evaluate(
        "(() => { const area = document.querySelector('textarea'); area.value = "
        f"{words!r}; area.dispatchEvent(new Event('input')); }})()"
    )


def test_a_picture_a_sentence_and_a_recording_are_answered(page: Page, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture())
    (tmp_path / "b.wav").write_bytes(recording())
    page.choose("#in-photo", tmp_path / "a.png")
    page.choose("#in-sound", tmp_path / "b.wav")
    write(page, "sunny today")
    said = ask(page)
    assert "How probable each label is" in said
    assert "What spoke for" in said
    widths = page.evaluate(
        "[...document.querySelectorAll('.row .fill:not(.for):not(.against)')].map(e => e.style.width)"
    )
    assert isinstance(widths, list)
    assert sum(float(width.rstrip("%")) for width in widths) == pytest.approx(100, abs=0.1)
    assert page.evaluate("document.querySelectorAll('.track.both').length") == 3


def test_a_recording_of_the_microphone_reaches_the_model(page: Page) -> None:
    """Chromium's fake microphone beeps; the page makes WAV of what its MediaRecorder gave."""
    page.evaluate("document.querySelector('.record').click()")
    page.wait("document.querySelector('.record.on') !== null")
    time.sleep(1.0)
    page.evaluate("document.querySelector('.record').click()")
    page.wait("files.has('sound')")
    assert page.evaluate("files.get('sound').name") == "recording.wav"
    assert "sound" in ask(page)
    assert page.evaluate("document.querySelectorAll('.track.both').length") == 1


def test_what_the_service_refuses_is_shown_in_its_words(page: Page, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"GIF89a")
    assert "Nothing to go by yet" in ask(page)
    page.choose("#in-photo", tmp_path / "a.png")
    page.evaluate("document.getElementById('ask').click()")
    page.wait("document.getElementById('result').innerText.includes('content is not PNG')")
    page.problems = [each for each in page.problems if "422" not in each]


def test_a_model_s_words_are_shown_and_never_run(page: Page) -> None:
    page.evaluate(
        "show({answers: {label: {labels: ['<img src=x onerror=alert(1)>'], "
        "probabilities: {'<img src=x onerror=alert(1)>': 1}, contributions: {}}}})"
    )
    assert page.evaluate("document.querySelectorAll('#result img').length") == 0
    assert "<img" in str(page.evaluate("document.getElementById('result').innerText"))


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_fits_a_desktop_and_a_phone(page: Page, address: str, width: int) -> None:
    page.open(address, width=width)
    write(page, "sunny today")
    ask(page)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.evaluate("performance.getEntriesByType('resource').every(e => e.name.startsWith(location.origin))")
