"""A hub on loopback: what modelscope-hub and huggingface_hub ask their hubs for, with faults to order.

Also a web server, /files/PATH, and a bucket of OSS, /bucket/PATH: with ETags and ranges, and breaks to order.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import TypeVar
from urllib.parse import parse_qs, unquote, urlsplit

Server = TypeVar("Server", bound=ThreadingHTTPServer)
COMMIT = "0123456789abcdef0123456789abcdef01234567"  # of main


class HubServer(ThreadingHTTPServer):
    """Serves ``files`` of the model owner/tiny and of the data set owner/chats; counts what was asked of it."""

    daemon_threads = True

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files = files
        self.commits = {COMMIT: files}  # of the data set; ``push`` adds one
        self.main = COMMIT
        self.requests = 0
        self.ranges_taken = True
        self.lengths_sent = True
        self.break_once_after = 0  # bytes from the start of a file at which one transfer breaks off
        self.asked: Counter[str] = Counter()
        self.ranges: list[str] = []
        self.cut_after: dict[str, int] = {}  # path -> bytes after which each transfer breaks off
        self.stall_after: dict[str, int] = {}  # path -> bytes after which the next transfer stalls until it is cut
        self.stalled, self.cut = Event(), Event()
        self.failures = 0  # the first N answers are 503
        self.wrong: dict[str, int] = {}  # path -> the first N transfers send other bytes
        self.listing = b""  # the answer to a request for a list of files, if not that list
        self.tokens: set[str | None] = set()

    def push(self, files: dict[str, bytes]) -> str:
        """Make ``files`` the newest content of the data set; return its commit."""
        self.main = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        self.commits[self.main] = self.files = files
        return self.main

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
        hub.requests += 1
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
        elif found := re.fullmatch("/files/(.+)", url.path):
            name = unquote(found[1])
            self._send(name) if name in hub.files else self.send_error(404)
        elif found := re.fullmatch("/bucket/(.*)", url.path):
            name = unquote(found[1])
            if not name:
                self._list_bucket(query.get("prefix", ""), query.get("delimiter", ""))
            else:
                self._send(name) if name in hub.files else self.send_error(404)
        elif self._is_of_the_data_set(url.path, query):
            pass
        else:
            self.send_error(403 if "secret" in url.path else 404)

    def _list_bucket(self, prefix: str, delimiter: str) -> None:
        """Answer OSS's ListObjects: the objects below a prefix and, with a delimiter, the folders."""
        below = {name: data for name, data in self.server.files.items() if name.startswith(prefix)}
        parts = [f"<Name>bucket</Name><Prefix>{prefix}</Prefix><IsTruncated>false</IsTruncated>"]
        folders = set()
        for name, data in below.items():
            head, found, _ = name.removeprefix(prefix).partition(delimiter or "\0")
            if found:
                folders.add(prefix + head + delimiter)
                continue
            etag = hashlib.md5(data, usedforsecurity=False).hexdigest().upper()
            parts.append(f"<Contents><Key>{name}</Key><Size>{len(data)}</Size><ETag>\"{etag}\"</ETag><Type>Normal</Type>"
                         "<StorageClass>Standard</StorageClass>"
                         "<LastModified>2026-01-02T03:04:05.000Z</LastModified></Contents>")  # fmt: skip
        parts += [f"<CommonPrefixes><Prefix>{folder}</Prefix></CommonPrefixes>" for folder in sorted(folders)]
        body = f"<?xml version='1.0' encoding='UTF-8'?><ListBucketResult>{''.join(parts)}</ListBucketResult>"
        self._answer(None, {"Content-Type": "application/xml"}, body.encode())

    def _is_of_the_data_set(self, path: str, query: dict[str, str]) -> bool:
        """Answer a request about the data set owner/chats; False for any other request."""
        hub = self.server
        if path == "/api/v1/datasets/owner/chats/repo/tree" and query["Revision"] == "master":
            entries = [{"Path": name, "Type": "blob", "Size": len(data), "Sha256": hashlib.sha256(data).hexdigest()}
                       for name, data in hub.files.items()]  # fmt: skip
            start = 200 * (int(query["PageNumber"]) - 1)
            self._answer({"Code": 200, "Data": {"Files": entries[start : start + 200]}}, body=hub.listing)
        elif path == "/api/v1/datasets/owner/chats/repo":
            self._send(query["FilePath"])
        elif found := re.fullmatch(r"/(?:api/)?datasets/owner/chats/(revision|tree|resolve)/(\w+)(?:/(.+))?", path):
            commit = hub.main if found[2] == "main" else found[2]
            if commit not in hub.commits:
                self.send_error(404)
            elif found[1] == "revision":
                self._answer({"id": "owner/chats", "sha": commit, "siblings": []})
            elif found[1] == "tree":
                self._answer(_entries(hub.commits[commit], sorted(hub.commits[commit])), body=hub.listing)
            else:
                name = unquote(found[3])
                data = hub.commits[commit][name]
                facts = {"X-Repo-Commit": commit, "X-Linked-Size": str(len(data))}
                self._send(name, data, {**facts, "X-Linked-Etag": f'"{hashlib.sha256(data).hexdigest()}"'})
        else:
            return False
        return True

    def _page(self, page: int) -> None:
        entries = _entries(self.server.files, sorted(self.server.files)[page * 3 : page * 3 + 3])
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

    def _send(self, path: str, content: bytes | None = None, headers: dict[str, str] | None = None) -> None:
        hub, data = self.server, self.server.files[path] if content is None else content
        hub.asked[path] += self.command == "GET"
        start, end = 0, len(data)
        asked = self.headers.get("Range") if hub.ranges_taken else None
        if asked:
            hub.ranges.append(asked)
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start, end = int(first), min(int(last) + 1, len(data)) if last else len(data)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(data)}")
        else:
            self.send_response(200)
        for name, text in (headers or {}).items():
            self.send_header(name, text)
        self.send_header("Last-Modified", "Fri, 02 Jan 2026 03:04:05 GMT")
        self.send_header("ETag", f'"{hashlib.md5(data, usedforsecurity=False).hexdigest()}"')
        if hub.lengths_sent:
            self.send_header("Content-Length", str(end - start))
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
        if 0 < hub.break_once_after < end:
            end, hub.break_once_after = hub.break_once_after - 1000, 0
        stop = min(end, start + hub.cut_after.get(path, len(data)))
        self.wfile.write(data[start:stop])
        self.close_connection = True


def _entries(files: dict[str, bytes], names: list[str]) -> list[dict[str, object]]:
    """Return the listing of Hugging Face: weights and tables are in LFS."""
    entries: list[dict[str, object]] = []
    for name in names:
        data = files[name]
        oid = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        entry: dict[str, object] = {"type": "file", "path": name, "size": len(data), "oid": oid}
        if name.endswith((".safetensors", ".parquet")):
            entry["oid"] = "0" * 40  # of the pointer
            entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
        entries.append(entry)
    return entries


def serving(files: dict[str, bytes]) -> AbstractContextManager[HubServer]:
    """Run a hub for the block."""
    return answering(HubServer(files))


@contextmanager
def answering(made: Server) -> Iterator[Server]:
    """Run a server in a thread for the block."""
    with made as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
