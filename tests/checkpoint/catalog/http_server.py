"""A web server on this machine that can misbehave in the ways the tests need."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Asked = tuple[str, str | None]  # path, Range


@dataclass
class Server:
    """What is served, and how; change it between requests.

    Attributes:
        files: path -> content.
        ranges: whether ``Range`` is heeded.
        length: whether answers say how long they are.
        drop_after: for each coming request, close the connection after so many bytes.
        statuses: for each coming request, answer with this status instead.
        hang_after: send so many bytes, then nothing until the server ends; -1: never.
        asked: all requests so far.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    ranges: bool = True
    length: bool = True
    drop_after: list[int] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    hang_after: int = -1
    asked: list[Asked] = field(default_factory=list)
    url: str = ""
    ended: threading.Event = field(default_factory=threading.Event)


@contextmanager
def serving(server: Server) -> Iterator[Server]:
    http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(server))
    server.url = f"http://127.0.0.1:{http.server_port}"
    thread = threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.ended.set()
        http.shutdown()
        http.server_close()
        thread.join()


def _handler(server: Server) -> Callable[..., BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            wanted = self.headers["Range"]
            server.asked.append((self.path, wanted))
            if server.statuses:
                self.send_error(server.statuses.pop(0))
                return
            content = server.files.get(self.path)
            if content is None:
                self.send_error(404)
                return
            start, status = 0, 200
            if wanted and server.ranges:
                start, status = int(wanted.removeprefix("bytes=").rstrip("-")), 206
                if start >= len(content):
                    self.send_error(416)
                    return
            self.send_response(status)
            if server.length:
                self.send_header("Content-Length", str(len(content) - start))
            if status == 206:
                last = len(content) - 1
                self.send_header("Content-Range", f"bytes {start}-{last}/{len(content)}")
            self.end_headers()
            body = content[start:]
            if server.drop_after:
                body = body[: server.drop_after.pop(0)]
            if server.hang_after >= 0:
                self.wfile.write(body[: server.hang_after])
                self.wfile.flush()
                server.ended.wait(30)
                return
            self.wfile.write(body)

    return Handler
