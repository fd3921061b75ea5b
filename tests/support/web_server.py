"""A web server on loopback that keeps what it is sent, and answers as told: a webhook's service, or an API server."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Received:
    """One request."""

    path: str
    headers: dict[str, str]
    body: Any


@dataclass
class WebServer:
    """Set ``status``, ``answer`` or ``delay`` (seconds) to answer otherwise; ``sent`` grows with each request."""

    url: str = ""
    sent: list[Received] = field(default_factory=list)
    status: int = 200
    answer: str = "ok"
    delay: float = 0.0

    def wait_for(self, count: int, seconds: float = 30.0) -> list[Received]:
        """Return the requests once there are ``count`` of them."""
        deadline = time.monotonic() + seconds
        while len(self.sent) < count and time.monotonic() < deadline:
            time.sleep(0.01)
        assert len(self.sent) >= count, f"{len(self.sent)} of {count} requests came"
        return self.sent


@contextmanager
def web_server() -> Iterator[WebServer]:
    """Serve until the block ends."""
    told = WebServer()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            data = self.rfile.read(int(self.headers["Content-Length"]))
            told.sent.append(Received(self.path, dict(self.headers), json.loads(data)))
            time.sleep(told.delay)
            self.send_response(told.status)
            if 300 <= told.status < 400:
                self.send_header("Location", "/elsewhere")
            self.end_headers()
            self.wfile.write(told.answer.encode())

        def log_message(self, *_: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    told.url = f"http://127.0.0.1:{server.server_port}/hook"
    try:
        yield told
    finally:
        server.shutdown()
        server.server_close()
