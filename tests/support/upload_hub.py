"""A hub on loopback that takes uploads: what huggingface_hub (LFS) and modelscope-hub send to theirs, with faults.

Repositories live in ``repos``: name -> files and whether it is private. A blob that was sent once is not sent again.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Lock
from typing import Any
from urllib.parse import urlsplit

from tests.support.hub_server import answering

TOKEN = "hub-token"
COMMIT = "c" * 40


@dataclass
class Repo:
    private: bool
    files: dict[str, bytes] = field(default_factory=dict)


class UploadHub(ThreadingHTTPServer):
    """Faults: ``fail_blobs``: the first N blobs are refused with 403; ``take``: from the Nth on, blobs wait for ``go``.

    ``refused``: requests by path that had no handler. ``waiting``: a blob waits; one that waited is never stored.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos: dict[str, Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.sent: list[str] = []  # hashes of the blobs that came, in their order
        self.refused: list[str] = []
        self.fail_blobs = 0
        self.take: int | None = None
        self.slots = Lock()
        self.waiting, self.go = Event(), Event()
        self.denied = False

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: UploadHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        hub, path = self.server, urlsplit(self.path).path
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/main)?", path):
            repo = hub.repos.get(found[1])
            if repo is None:
                self._answer({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
            else:
                self._answer({"id": found[1], "private": repo.private, "sha": COMMIT, "siblings": []})
        elif found := re.fullmatch(r"(?:/openapi/v1|/api/v1)/models/([^/]+/[^/]+)", path):
            repo = hub.repos.get(found[1])
            if repo is None:
                self._answer({"Code": 10010205001, "Message": "not found", "Success": False}, 404)
            else:
                data = {"Path": found[1].split("/")[0], "Name": found[1].split("/")[1], "private": repo.private}
                self._answer({"Code": 200, "Data": data, "data": data, "success": True, "Success": True})
        elif path == "/api/agent-harnesses":  # what huggingface_hub puts into its user agent
            self._answer({})
        else:
            self._unknown()

    def do_POST(self) -> None:
        hub, path = self.server, urlsplit(self.path).path
        body = self._body()
        if hub.denied or TOKEN not in str(self.headers.get("Authorization")) + str(self.headers.get("Cookie")):
            self._answer({"error": "denied", "Code": 401, "Message": "denied", "Success": False}, 401)
        elif path == "/api/repos/create":
            wanted = json.loads(body)
            name = f"{wanted.get('organization') or 'me'}/{wanted['name']}"
            assert name not in hub.repos
            hub.repos[name] = Repo(wanted.get("private") is True or wanted.get("visibility") == "private")
            self._answer({"url": f"{hub.address}/{name}", "name": name})
        elif path == "/api/v1/models":
            wanted = json.loads(body)
            name = f"{wanted['Path']}/{wanted['Name']}"
            # Its library asks again before each upload.
            if name in hub.repos:
                self._answer({"Code": 10010101001, "Message": "it exists", "Success": False}, 409)
                return
            hub.repos[name] = Repo(wanted["Visibility"] == 1)
            self._answer({"Code": 200, "Data": {"Path": wanted["Path"], "Name": wanted["Name"]}, "Success": True})
        elif path == "/api/validate-yaml":
            self._answer({"errors": [], "warnings": []})
        elif re.fullmatch(r"/api/models/[^/]+/[^/]+/preupload/main", path):
            files = [
                {"path": one["path"], "uploadMode": "lfs" if one["path"].endswith(".safetensors") else "regular",
                 "shouldIgnore": False, "oid": None}
                for one in json.loads(body)["files"]
            ]  # fmt: skip
            self._answer({"files": files, "commitOid": COMMIT})
        elif path.endswith("/info/lfs/objects/batch"):
            self._batch(json.loads(body))
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", path):
            self._commit(found[1], [json.loads(line) for line in body.splitlines()])
            self._answer({"commitOid": COMMIT, "commitUrl": f"{hub.address}/{found[1]}/commit/{COMMIT}"})
        elif found := re.fullmatch(r"/api/v1/repos/models/([^/]+/[^/]+)/commit/master", path):
            for one in json.loads(body)["actions"]:
                content = hub.blobs[one["sha256"]] if one["type"] == "lfs" else base64.b64decode(one["content"])
                hub.repos[found[1]].files[one["path"]] = content
            self._answer({"Code": 200, "Data": {"oid": COMMIT}, "Success": True})
        else:
            self._unknown()

    def do_PUT(self) -> None:
        hub, body = self.server, self._body()
        if not self._taken():
            self.close_connection = True
        elif not urlsplit(self.path).path.startswith("/blobs/"):
            self._unknown()
        elif hub.fail_blobs:
            hub.fail_blobs -= 1
            self._answer({"error": "refused"}, 403)
        else:
            digest = hashlib.sha256(body).hexdigest()
            hub.blobs[digest] = body
            hub.sent.append(digest)
            self._answer({"Code": 200})

    def _taken(self) -> bool:
        """Tell whether this blob is one of those to take; another waits until its sender is gone."""
        hub = self.server
        with hub.slots:
            if hub.take is None or hub.take > 0:
                hub.take = None if hub.take is None else hub.take - 1
                return True
        hub.waiting.set()
        hub.go.wait()
        return False

    def _batch(self, wanted: dict[str, Any]) -> None:
        """Answer git-lfs's batch request: only what is missing has an upload action."""
        objects: list[dict[str, Any]] = []
        for one in wanted["objects"]:
            upload = {"upload": {"href": f"{self.server.address}/blobs/{one['oid']}"}}
            objects.append({**one, **({} if one["oid"] in self.server.blobs else {"actions": upload})})
        self._answer({"objects": objects, "Code": 200, "Data": {"objects": objects}, "Success": True})

    def _commit(self, name: str, lines: list[dict[str, Any]]) -> None:
        files = self.server.repos[name].files
        for line in lines:
            value = line["value"]
            if line["key"] == "lfsFile":
                files[value["path"]] = self.server.blobs[value["oid"]]
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _unknown(self) -> None:
        self.server.refused.append(f"{self.command} {self.path}")
        self._answer({"error": "no such route", "Code": 404, "Message": "no such route"}, 404)

    def _answer(self, value: object, status: int = 200, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        for name, text in {
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            **(headers or {}),
        }.items():
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(body)


def taking_uploads() -> AbstractContextManager[UploadHub]:
    """Run a hub for the block."""
    return answering(UploadHub())
