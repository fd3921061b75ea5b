"""A hub on loopback: what modelscope-hub and huggingface_hub ask their hubs for, with faults to order."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"  # of main


class HubServer(ThreadingHTTPServer):
    """Serves ``files`` of the model owner/tiny; counts what was asked of it."""

    daemon_threads = True

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files = files
        self.asked: Counter[str] = Counter()
        self.ranges: list[str] = []
        self.cut_after: dict[str, int] = {}  # path -> bytes after which each transfer breaks off
        self.stall_after: dict[str, int] = {}  # path -> bytes after which the next transfer stalls until it is cut
        self.stalled, self.cut = Event(), Event()
        self.failures = 0  # the first N answers are 503
        self.wrong: dict[str, int] = {}  # path -> the first N transfers send other bytes
        self.listing = b""  # the answer to a request for a list of files, if not that list
        self.tokens: set[str | None] = set()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: HubServer

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub, url = self.server, urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        hub.tokens.add(self.headers.get("Authorization"))
        if hub.failures:
            hub.failures -= 1
            self.send_error(503)
        elif url.path == "/api/v1/models/owner/tiny/repo/files" and query["Revision"] == "master":
            entries = [
                {"Path": path, "Type": "blob", "Size": len(data), "Sha256": hashlib.sha256(data).hexdigest()}
                for path, data in hub.files.items()
            ]
            self._answer(
                {"Code": 200, "Data": {"Files": [*entries, {"Path": "assets", "Type": "tree"}]}}, body=hub.listing
            )
        elif url.path == "/api/models/owner/tiny/revision/main":
            self._answer({"id": "owner/tiny", "sha": COMMIT, "siblings": []})
        elif url.path in ("/api/models/owner/tiny/tree/main", f"/api/models/owner/tiny/tree/{COMMIT}"):
            self._page(int(query.get("page", 0)))
        elif url.path == "/api/v1/models/owner/tiny/repo":
            self._send(query["FilePath"])
        elif found := re.fullmatch(f"/owner/tiny/resolve/(?:main|{COMMIT})/(.+)", url.path):
            data = hub.files[unquote(found[1])]
            self.send_response(302)
            self.send_header("Location", f"http://localhost:{hub.server_address[1]}/cdn/{found[1]}")
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("X-Linked-Size", str(len(data)))
            self.send_header("X-Linked-Etag", f'"{hashlib.sha256(data).hexdigest()}"')
            self.end_headers()
        elif found := re.fullmatch("/cdn/(.+)", url.path):
            hub.tokens.add(f"cdn {self.headers.get('Authorization')}")
            self._send(unquote(found.group(1)))
        else:
            self.send_error(403 if "secret" in url.path else 404)

    def _page(self, page: int) -> None:
        names = sorted(self.server.files)[page * 3 : page * 3 + 3]
        entries = [{"type": "file", "path": name, "size": len(self.server.files[name])} for name in names]
        for entry in entries:
            data = self.server.files[str(entry["path"])]
            entry["oid"] = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            if str(entry["path"]).endswith(".safetensors"):
                entry["oid"] = "0" * 40  # of the pointer
                entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}  # type: ignore[assignment]
        more = len(self.server.files) > page * 3 + 3
        following = f"{self.server.address}/api/models/owner/tiny/tree/main?recursive=true&page={page + 1}"
        self._answer(entries, {"Link": f'<{following}>; rel="next"'} if more else {})

    def _answer(self, value: object, headers: dict[str, str] | None = None, body: bytes = b"") -> None:
        body = body or json.dumps(value).encode()
        self.send_response(200)
        for name, text in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _send(self, path: str) -> None:
        hub, data = self.server, self.server.files[path]
        hub.asked[path] += self.command == "GET"
        start = 0
        if asked := self.headers.get("Range"):
            hub.ranges.append(asked)
            start = int(asked.removeprefix("bytes=").rstrip("-"))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if self.command == "HEAD":
            return
        if hub.wrong.get(path, 0):
            hub.wrong[path] -= 1
            data = bytes(len(data))
        if limit := hub.stall_after.pop(path, 0):
            self.wfile.write(data[:limit])
            hub.stalled.set()
            hub.cut.wait(60)
            self.close_connection = True
            return
        stop = min(len(data), start + hub.cut_after.get(path, len(data)))
        self.wfile.write(data[start:stop])
        self.close_connection = True


@contextmanager
def serving(files: dict[str, bytes]) -> Iterator[HubServer]:
    """Run a hub for the block."""
    with HubServer(files) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
