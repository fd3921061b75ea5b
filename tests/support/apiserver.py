"""As much of an API server as a real helm needs to install, upgrade and remove a release: objects in memory.

It takes whatever it is given: what it is for is the order of what helm asks, and what is there afterwards. Given the
rules of a Role it forbids everything else, and it can refuse a user's credentials.
"""

from __future__ import annotations

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml

Object = dict[str, Any]
# Group and version -> kind -> resource.
KINDS = {
    "v1": {
        "Pod": "pods", "ConfigMap": "configmaps", "Secret": "secrets", "ServiceAccount": "serviceaccounts",
        "PersistentVolumeClaim": "persistentvolumeclaims", "Service": "services", "Event": "events",
    },
    "batch/v1": {"Job": "jobs"},
    "rbac.authorization.k8s.io/v1": {"Role": "roles", "RoleBinding": "rolebindings"},
    "networking.k8s.io/v1": {"NetworkPolicy": "networkpolicies"},
    "kubeflow.org/v1": {"PyTorchJob": "pytorchjobs"},
    "trainer.kubeflow.org/v1alpha1": {"TrainJob": "trainjobs", "TrainingRuntime": "trainingruntimes"},
    "jobset.x-k8s.io/v1alpha2": {"JobSet": "jobsets"},
    "kueue.x-k8s.io/v1beta1": {"LocalQueue": "localqueues", "Workload": "workloads"},
    "scheduling.k8s.io/v1": {"PriorityClass": "priorityclasses"},
}  # fmt: skip
_CLUSTER_WIDE = ("priorityclasses",)
_VERBS = {"GET": "get", "POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
_ASKED = re.compile(
    r"/(?:api|apis/(?P<group>[^/]+))/v[^/]+(?:/namespaces/(?P<namespace>[^/]+))?/(?P<resource>[^/]+)"
    r"(?:/(?P<name>[^/]+))?(?:/(?P<sub>[^/]+))?"
)


class ApiServer:
    """A running server; ``objects`` is path -> object, ``made`` what was made, in order, as Kind/name.

    ``rules`` are those of a Role in the namespace default, None for everything; ``logs`` is pod -> output. With
    ``expired`` nobody is known.
    """

    def __init__(self) -> None:
        self.rules: list[Object] | None = None
        self.expired = False
        self.logs: dict[str, str] = {}
        self.kinds = {version: dict(kinds) for version, kinds in KINDS.items()}
        self.objects: dict[str, Object] = {}
        self.made: list[str] = []
        # Helm's own records are Secrets, which its client writes as protocol buffers: kept as they come.
        self.records: dict[str, bytes] = {}
        server = self

        class Handler(BaseHTTPRequestHandler):
            def _answer(self) -> None:
                size = int(self.headers.get("Content-Length") or 0)
                status, body = server.answer(self.command, self.path, self.rfile.read(size))
                text = body if isinstance(body, bytes) else json.dumps(body).encode()
                kind = "vnd.kubernetes.protobuf" if isinstance(body, bytes) else "json"
                self.send_response(status)
                self.send_header("Content-Type", f"application/{kind}")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def __getattr__(self, name: str) -> Any:
                if name.startswith("do_"):
                    return self._answer
                raise AttributeError(name)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    def close(self) -> None:
        """Stop serving."""
        self.http.shutdown()
        self.http.server_close()

    def find(self, kind: str) -> list[Object]:
        """Return the objects of a kind."""
        return [thing for thing in self.objects.values() if thing["kind"] == kind]

    def answer(self, verb: str, address: str, body: bytes) -> tuple[int, Object | bytes]:
        """Return status and body."""
        parts = urlsplit(address)
        path, query = parts.path.rstrip("/"), parse_qs(parts.query)
        if self.expired:
            return 401, {**_FAILURE, "reason": "Unauthorized", "code": 401, "message": "Unauthorized"}
        if (forbidden := self._forbidden(verb, path)) is not None:
            return 403, forbidden
        if path == "/openapi/v2":
            return 200, b""  # a document without a schema
        if "/secrets" in path:
            return self._record(verb, path, body)
        if path.endswith("/log"):
            return 200, self.logs.get(path.split("/")[-2], "").encode()
        if (found := _discovery(path, self.kinds)) is not None:
            return 200, found
        if verb == "GET":
            return self._get(path, query)
        if verb == "DELETE":
            if path in self.objects:
                return 200, self.objects.pop(path)
            _, found = self._get(path, query)
            for thing in found.get("items", []):
                del self.objects[thing["metadata"]["uid"]]
            return (200, found) if "items" in found else _missing(path)
        thing = yaml.safe_load(body)
        if verb == "POST":
            path = f"{path}/{thing['metadata']['name']}"
            if path in self.objects:
                return 409, {"kind": "Status", "status": "Failure", "reason": "AlreadyExists", "code": 409}
        elif path in self.objects:
            thing = _merged(self.objects[path], thing)
        elif "fieldManager" not in query and verb == "PATCH":
            return _missing(path)
        if "dryRun" in query:
            return 200, thing
        return self._keep(path, thing)

    def _forbidden(self, verb: str, path: str) -> Object | None:
        asked = _ASKED.fullmatch(path)
        if self.rules is None or asked is None or path in ("/api/v1", "/apis"):
            return None
        group, resource = asked["group"] or "", "/".join(filter(None, (asked["resource"], asked["sub"])))
        word = _VERBS[verb] if asked["name"] or verb == "POST" else {"GET": "list"}.get(verb, "deletecollection")
        # What an apply makes takes both rights.
        words = [word, "create"] if word == "patch" and path not in self.objects else [word]
        for one in words:
            if not (asked["namespace"] == "default" and self._may(group, resource, one)):
                where = f'in the namespace "{asked["namespace"]}"' if asked["namespace"] else "at the cluster scope"
                said = f'User "u" cannot {one} resource "{resource}" in API group "{group}" {where}'
                message = f"{resource}.{group} is forbidden: {said}" if group else f"{resource} is forbidden: {said}"
                return {**_FAILURE, "reason": "Forbidden", "code": 403, "message": message}
        return None

    def _may(self, group: str, resource: str, verb: str) -> bool:
        return any(
            group in rule["apiGroups"] and resource in rule["resources"] and verb in rule["verbs"]
            for rule in self.rules or ()
        )

    def put(self, kind: str, version: str, name: str, **fields: Any) -> None:
        """Keep an object of the namespace default, as a controller would make it."""
        prefix = "/api/v1" if version == "v1" else f"/apis/{version}"
        path = f"{prefix}/namespaces/default/{self.kinds[version][kind]}/{name}"
        metadata = {"name": name, **fields.pop("metadata", {})}
        self._keep(path, {"kind": kind, "apiVersion": version, "metadata": metadata, **fields})

    def _record(self, verb: str, path: str, body: bytes) -> tuple[int, Object | bytes]:
        if verb == "POST":
            path = f"{path}/{len(self.records)}"
        if verb in ("POST", "PUT"):
            self.records[path] = body
            return 200, body
        if path.endswith("/secrets"):
            items = b"".join(_field(2, _unwrapped(record)) for record in self.records.values())
            return 200, _MAGIC + _field(1, _field(1, b"v1") + _field(2, b"SecretList")) + _field(2, items)
        # One record by its name, which is inside it.
        name = path.rpartition("/")[2].encode()
        found = [place for place, record in self.records.items() if place == path or name in record]
        if not found:
            return _missing(path)
        return 200, self.records.pop(found[0]) if verb == "DELETE" else self.records[found[0]]

    def _keep(self, path: str, thing: Object) -> tuple[int, Object]:
        if path not in self.objects:
            self.made.append(f"{thing['kind']}/{thing['metadata']['name']}")
        thing["metadata"] |= {"namespace": "default", "uid": path, "resourceVersion": str(len(self.made))}
        self.objects[path] = thing
        return 200, thing

    def _get(self, path: str, query: dict[str, list[str]]) -> tuple[int, Object]:
        if path in self.objects:
            return 200, self.objects[path]
        prefix, _, resource = path.rpartition("/")
        group = prefix.removeprefix("/apis/").removeprefix("/api/").partition("/namespaces/")[0]
        kinds = {resource: kind for kind, resource in self.kinds.get(group, {}).items()}
        if resource not in kinds:
            return _missing(path)
        wanted = dict(term.split("=") for term in query.get("labelSelector", [""])[0].split(",") if "=" in term)
        fields = dict(term.split("=") for term in query.get("fieldSelector", [""])[0].split(",") if "=" in term)
        # All objects are in one namespace, so a list of all namespaces is a list of that one.
        folder = path if "/namespaces/" in path else f"{prefix}/namespaces/default/{resource}"
        items = [
            thing
            for place, thing in self.objects.items()
            if place.startswith(f"{folder}/")
            and wanted.items() <= (thing["metadata"].get("labels") or {}).items()
            and all(str(thing.get(field, "")) == value for field, value in fields.items())
        ]
        return 200, {"kind": f"{kinds[resource]}List", "apiVersion": group, "metadata": {}, "items": items}


_MAGIC = b"k8s\x00"
_FAILURE = {"kind": "Status", "apiVersion": "v1", "status": "Failure"}


def _field(number: int, value: bytes) -> bytes:
    """Encode a length-delimited field of a protocol buffer."""
    size, length = b"", len(value)
    while length > 127:
        size, length = size + bytes([length & 127 | 128]), length >> 7
    return bytes([number << 3 | 2]) + size + bytes([length]) + value


def _unwrapped(record: bytes) -> bytes:
    """Return the object inside Kubernetes' envelope: its field 2, raw."""
    at = len(_MAGIC)
    while at < len(record):
        number, at, length, shift = record[at] >> 3, at + 1, 0, 0
        while True:
            byte, at = record[at], at + 1
            length, shift = length | (byte & 127) << shift, shift + 7
            if byte < 128:
                break
        if number == 2:
            return record[at : at + length]
        at += length
    raise ValueError("no object in the envelope")


def _missing(path: str) -> tuple[int, Object]:
    status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}
    return 404, {**status, "message": f"{path} not found"}


def _merged(old: Any, change: Any) -> Any:
    """Apply a JSON merge patch (RFC 7386)."""
    if not isinstance(change, dict):
        return change
    result = dict(old) if isinstance(old, dict) else {}
    for key, value in change.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = _merged(result.get(key), value)
    return result


def _discovery(path: str, kinds: dict[str, dict[str, str]]) -> Object | None:
    groups = [version for version in kinds if "/" in version]
    if path == "/version":
        return {"major": "1", "minor": "33", "gitVersion": "v1.33.0"}
    if path == "/api":
        return {"kind": "APIVersions", "versions": ["v1"]}
    if path == "/apis":
        found = []
        for group in groups:
            name, _, version = group.partition("/")
            entry = {"groupVersion": group, "version": version}
            found.append({"name": name, "versions": [entry], "preferredVersion": entry})
        return {"kind": "APIGroupList", "groups": found}
    version = path.removeprefix("/apis/").removeprefix("/api/")
    if version not in kinds:
        return None
    verbs = ["create", "delete", "get", "list", "patch", "update", "watch"]
    resources = [
        {
            "name": resource,
            "singularName": kind.lower(),
            "namespaced": resource not in _CLUSTER_WIDE,
            "kind": kind,
            "verbs": verbs,
        }
        for kind, resource in kinds[version].items()
    ]
    return {"kind": "APIResourceList", "groupVersion": version, "resources": resources}
