"""Reports in a real browser: they fit a desktop and a phone, load nothing, and show what alarms in red."""

import json
import os
import re
import shutil
import subprocess
import tempfile
from html import unescape
from pathlib import Path

import pytest

from server.records import RunRecord
from server.report.html import render
from server.report.page import render_page
from server.report.privacy import privacy_document
from tests.server.made_records import audited, build_record

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on this machine"),
]
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
# measures the page inside itself; the policy of the page forbids scripts, so the copy that is measured has none
MEASURE = """<script>addEventListener("load", () => {
  const wide = innerWidth, all = [...document.querySelectorAll("main *")];
  const out = all.filter(e => !e.closest(".wide") && !e.closest(".sr") && e.getBoundingClientRect().right > wide + 1);
  const alarm = document.querySelector(".banner.alarm");
  document.title = JSON.stringify({
    width: wide, page: document.documentElement.scrollWidth, outside: out.map(e => e.tagName + " " + e.className),
    charts: [...document.querySelectorAll("figure svg[role]")].map(e => e.getBoundingClientRect().width),
    smallest: Math.min(...[...document.querySelectorAll("td, p, li, th")].filter(e => e.offsetParent)
      .map(e => parseFloat(getComputedStyle(e).fontSize))),
    alarm: alarm ? getComputedStyle(alarm).backgroundColor : "", alarmTop: alarm ? alarm.offsetTop : -1,
    loaded: performance.getEntriesByType("resource").length,
  });
});</script>"""
RUNS = {
    "record": lambda: build_record(rounds=40, statistics=True, groups={"style": ("ink", "brush")}),
    "both, secret": lambda: audited(build_record(rounds=40, protection="subject+site", secret=True)),
    "alarm": lambda: audited(build_record(rounds=40), lower_bound=9.0),
    "many": lambda: build_record(rounds=40, sites=tuple(f"a-rather-long-site-name-{number}" for number in range(60))),
}


def chromium(*arguments: str) -> str:
    assert CHROMIUM is not None
    with tempfile.TemporaryDirectory() as profile:
        done = subprocess.run(
            [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", *arguments],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
            env={**os.environ, "HOME": profile},
        )
    return done.stdout


def measured(html: str, *, width: int, folder: Path) -> dict[str, object]:
    """What a browser of that width makes of the page."""
    page = folder / "page.html"
    page.write_text(re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", html) + MEASURE, encoding="utf-8")
    # headless Chromium is never narrower than 500 pixels: a frame is
    frame = folder / "frame.html"
    frame.write_text(
        f'<iframe id="f" src="page.html" style="border:0;width:{width}px;height:900px"></iframe><script>'
        'addEventListener("load", () => { document.title = document.getElementById("f").contentDocument.title; });'
        "</script>",
        encoding="utf-8",
    )
    dom = chromium("--allow-file-access-from-files", "--window-size=1400,1000", "--dump-dom", f"file://{frame}")
    (title,) = re.findall(r"<title>(.*?)</title>", dom)
    return dict(json.loads(unescape(title)))


def pages(record: RunRecord) -> tuple[str, str]:
    return render_page(privacy_document(record)), render(record)


@pytest.mark.parametrize("kind", RUNS)
@pytest.mark.parametrize("width", [1200, 390])
def test_both_pages_fit_a_desktop_and_a_phone(tmp_path: Path, kind: str, width: int) -> None:
    for html in pages(RUNS[kind]()):
        found = measured(html, width=width, folder=tmp_path)
        assert found["width"] == width
        assert found["outside"] == []
        assert found["page"] == width
        assert found["loaded"] == 0
        assert isinstance(found["smallest"], float | int)
        assert found["smallest"] >= 12
        charts = found["charts"]
        assert isinstance(charts, list)
        assert charts
        assert min(charts) >= 300


def test_an_alarm_is_red_and_on_top(tmp_path: Path) -> None:
    for html in pages(RUNS["alarm"]()):
        found = measured(html, width=1200, folder=tmp_path)
        assert found["alarm"] == "rgb(179, 20, 29)"
        assert isinstance(found["alarmTop"], int)
        assert 0 <= found["alarmTop"] < 60


def test_a_page_that_overflows_would_be_found(tmp_path: Path) -> None:
    html = render_page(privacy_document(RUNS["record"]()))
    broken = html.replace("</main>", '<p style="width: 3000px">wide</p></main>')
    assert measured(broken, width=1200, folder=tmp_path)["outside"] == ["P "]


def test_the_page_as_written_runs_no_script(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(render_page(privacy_document(RUNS["record"]())) + MEASURE, encoding="utf-8")
    dom = chromium("--dump-dom", f"file://{page}")
    assert "<title>Privacy budget of moods: Motet</title>" in dom
