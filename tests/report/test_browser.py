"""The page in a real browser; skipped where there is none."""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from urllib.parse import urlsplit

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


@pytest.fixture
def proxy() -> Iterator[tuple[str, list[str]]]:
    """A proxy that all requests of the browser go to; it notes and refuses them."""
    seen: list[str] = []

    class Refuse(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.path)
            self.send_error(403)

        do_CONNECT = do_POST = do_GET

        def log_message(self, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Refuse)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"127.0.0.1:{server.server_port}", seen
    server.shutdown()
    server.server_close()


def test_complete_and_without_requests(
    finished_run: Path, tmp_path: Path, proxy: tuple[str, list[str]]
) -> None:
    report = write_report(finished_run, tmp_path / "report.html")
    text = report.read_text(encoding="utf-8")
    # The page forbids scripts; the measuring one needs a copy that does not.
    assert len(POLICY.findall(text)) == text.count("</body>") == 1
    copy = tmp_path / "measured.html"
    copy.write_text(POLICY.sub("", text).replace("</body>", MEASURE), encoding="utf-8")
    dom = dump_dom(copy, tmp_path, proxy[0])
    page = Page(re.sub(r"<script>.*?</script>", "", dom, flags=re.DOTALL))

    (body,) = [values for tag, values in page.tags if tag == "body"]
    assert body["data-requests"] == "[]"
    assert not [a for a in page.addresses() if not a.startswith(("data:", "#"))]
    assert outside(proxy[1]) == []
    images = [values for tag, values in page.tags if tag == "img"]
    assert len(images) == 3  # curves, recall, precision
    assert all(int(values["data-width"]) > 0 for values in images)
    assert body["data-scroll"] == body["data-window"], "wider than the window"
    assert "71.5 %" in page.words("head")


def test_policy_stops_what_should_never_be_there(
    finished_run: Path, tmp_path: Path, proxy: tuple[str, list[str]]
) -> None:
    """An address put into the page: not fetched. Without the policy it is, so the proxy works."""
    text = write_report(finished_run, tmp_path / "report.html").read_text(encoding="utf-8")
    spoilt = text.replace("</body>", '<img src="http://spoilt.invalid/x.png"></body>')
    report = tmp_path / "spoilt.html"
    report.write_text(spoilt, encoding="utf-8")
    seen, written = Page(dump_dom(report, tmp_path, proxy[0])), Page(text)
    assert outside(proxy[1]) == []
    for name in written.sections:  # nothing is lost in parsing
        assert seen.words(name) == written.words(name), name
    report.write_text(POLICY.sub("", spoilt), encoding="utf-8")
    dump_dom(report, tmp_path, proxy[0])
    assert outside(proxy[1]) == ["spoilt.invalid"]


def outside(addresses: list[str]) -> list[str]:
    """Hosts that a page asked for; the browser's own services are Google's."""
    hosts = [urlsplit(a if "://" in a else f"//{a}").hostname or "" for a in addresses]
    own = (".google.com", ".googleapis.com", ".gstatic.com", ".gvt1.com")
    return [host for host in hosts if not f".{host}".endswith(own)]


def dump_dom(page: Path, folder: Path, proxy: str) -> str:
    done = subprocess.run(
        [
            str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            "--no-first-run", f"--user-data-dir={folder / 'profile'}",
            f"--proxy-server=http://{proxy}", "--window-size=1280,900", "--dump-dom",
            page.as_uri(),
        ],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout
