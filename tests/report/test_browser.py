"""The page in a real browser; skipped where there is none."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from frcnn_plugin.report import write_report

from .html_page import Page

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")

POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')
# Written into the page by the test only: the page itself has no script.
MEASURE = """<script>
for (const img of document.images) img.setAttribute("data-width", img.naturalWidth);
document.body.setAttribute("data-scroll", document.documentElement.scrollWidth);
document.body.setAttribute("data-window", document.documentElement.clientWidth);
const request = performance.getEntriesByType("resource").map(entry => entry.name);
document.body.setAttribute("data-requests", JSON.stringify(
    request.filter(name => !name.startsWith("data:"))));
</script></body>"""


def test_complete_and_without_requests(finished_run: Path, tmp_path: Path) -> None:
    report = write_report(finished_run, tmp_path / "report.html")
    text = report.read_text(encoding="utf-8")
    # The page forbids scripts; the measuring one needs a copy that does not.
    assert len(POLICY.findall(text)) == text.count("</body>") == 1
    copy = tmp_path / "measured.html"
    copy.write_text(POLICY.sub("", text).replace("</body>", MEASURE), encoding="utf-8")
    dom = dump_dom(copy, tmp_path)
    seen, written = Page(re.sub(r"<script>.*?</script>", "", dom, flags=re.DOTALL)), Page(text)
    for name in written.sections:  # nothing is lost in parsing
        assert seen.words(name) == written.words(name), name

    (body,) = [values for tag, values in seen.tags if tag == "body"]
    assert body["data-requests"] == "[]"
    assert body["data-scroll"] == body["data-window"], "wider than the window"
    images = [values for tag, values in seen.tags if tag == "img"]
    assert len(images) == 2  # curves and recall
    assert all(int(values["data-width"]) > 0 for values in images)


def dump_dom(page: Path, folder: Path) -> str:
    done = subprocess.run(
        [
            str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            "--no-first-run", f"--user-data-dir={folder / 'profile'}",
            "--proxy-server=http://127.0.0.1:9",  # nothing answers there
            "--window-size=1280,900", "--dump-dom", page.as_uri(),
        ],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout
