"""A headless Chromium for tests that act on a page: its own pipe carries the commands, so no further package is needed.

in        a Chromium on this machine
out       Page: open, evaluate, choose files, take a picture
relies on the DevTools protocol over file descriptors 3 and 4 (--remote-debugging-pipe), messages ended by a zero byte
"""

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
MISSING = "no chromium, chromium-browser or google-chrome on this machine"
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--remote-debugging-pipe",
    "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream",
)  # fmt: skip
TIMEOUT_S = 60.0


class Page:
    """One tab."""

    def __init__(self, *, to: int, back: int) -> None:
        self._to, self._back, self._number, self._rest = to, back, 0, b""
        self._session: str | None = None
        self.problems: list[str] = []
        """what the browser complained of: errors of scripts, and what the policy blocked"""
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = str(self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"])
        for domain in ("Page", "Runtime", "DOM", "Log"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **values: object) -> dict[str, object]:
        """The browser's answer to one command."""
        self._number += 1
        message: dict[str, object] = {"id": self._number, "method": method, "params": values}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        ends = time.monotonic() + TIMEOUT_S
        while time.monotonic() < ends:
            told = self._next(ends)
            if told.get("id") == self._number:
                assert "error" not in told, told
                result = told["result"]
                assert isinstance(result, dict)
                return result
            self._notice(told)
        raise TimeoutError(method)

    def evaluate(self, script: str) -> object:
        """The value of an expression in the page, promises awaited."""
        told = self.ask("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in told, told
        result = told["result"]
        assert isinstance(result, dict)
        return result.get("value")

    def open(self, url: str, *, width: int = 1280, height: int = 900) -> None:
        """Loads a page in a window of that size."""
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.ask("Page.navigate", url=url)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    def wait(self, condition: str) -> None:
        """Until an expression is true."""
        ends = time.monotonic() + TIMEOUT_S
        while not self.evaluate(condition):
            assert time.monotonic() < ends, f"never true: {condition}; {self.problems}"
            time.sleep(0.05)

    def choose(self, selector: str, file: Path) -> None:
        """Puts a file into an input, as a person would."""
        root = self.ask("DOM.getDocument")["root"]
        assert isinstance(root, dict)
        node = self.ask("DOM.querySelector", nodeId=root["nodeId"], selector=selector)["nodeId"]
        self.ask("DOM.setFileInputFiles", files=[str(file)], nodeId=node)

    def picture(self, to: Path) -> None:
        """The whole page as a PNG."""
        told = self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        to.write_bytes(base64.b64decode(str(told["data"])))

    def _next(self, ends: float) -> dict[str, object]:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._back], [], [], max(0.0, ends - time.monotonic()))
            if not ready:
                raise TimeoutError("the browser does not answer")
            piece = os.read(self._back, 1 << 16)
            if not piece:
                raise ConnectionError("the browser has ended")
            self._rest += piece
        first, _, self._rest = self._rest.partition(b"\0")
        told = json.loads(first)
        assert isinstance(told, dict)
        return told

    def _notice(self, told: dict[str, object]) -> None:
        if told.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
            self.problems.append(json.dumps(told.get("params"))[:500])


@contextmanager
def browser() -> Iterator[Page]:
    """A Chromium with a fake microphone, ended afterwards with its profile."""
    assert CHROMIUM is not None
    theirs, to = os.pipe()
    back, ours = os.pipe()
    with tempfile.TemporaryDirectory() as profile:
        shell = f'exec "$0" "$@" 3<&{theirs} 4>&{ours}'
        running = subprocess.Popen(
            ["/bin/bash", "-c", shell, CHROMIUM, *FLAGS, f"--user-data-dir={profile}"],
            pass_fds=(theirs, ours), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "HOME": profile},
        )  # fmt: skip
        os.close(theirs)
        os.close(ours)
        try:
            yield Page(to=to, back=back)
        finally:
            os.close(to)
            running.terminate()
            running.wait(timeout=30)
            os.close(back)
