"""What the chart asks a server for: the job's kind before an install, and the running job before an upgrade.

The server answers discovery and one PyTorchJob, as an API server does; that is all that 'helm template' asks of it.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from qwen_job.resources import resource
from tests.support.helm import run_helm
from tests.support.schemas import load

CHART = resource("charts", "qwen-job")
GROUP = {"groupVersion": "kubeflow.org/v1", "version": "v1"}
JOBS = {"name": "pytorchjobs", "singularName": "pytorchjob", "namespaced": True, "kind": "PyTorchJob", "verbs": ["get"]}
PODS = {"name": "pods", "singularName": "pod", "namespaced": True, "kind": "Pod", "verbs": ["get"]}
MAPS = {**PODS, "name": "configmaps", "singularName": "configmap", "kind": "ConfigMap"}
DISCOVERY: dict[str, dict[str, Any]] = {
    "/version": {"major": "1", "minor": "33", "gitVersion": "v1.33.0"},
    "/api": {"kind": "APIVersions", "versions": ["v1"]},
    "/api/v1": {"kind": "APIResourceList", "groupVersion": "v1", "resources": [PODS, MAPS]},
    "/apis": {
        "kind": "APIGroupList",
        "groups": [{"name": "kubeflow.org", "versions": [GROUP], "preferredVersion": GROUP}],
    },
    "/apis/kubeflow.org/v1": {"kind": "APIResourceList", "groupVersion": "kubeflow.org/v1", "resources": [JOBS]},
}
JOB_PATH = "/apis/kubeflow.org/v1/namespaces/default/pytorchjobs/my-run"


class Server:
    """A running server; ``answers`` is path -> object."""

    def __init__(self) -> None:
        self.answers = dict(DISCOVERY)
        answers = self.answers

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                found = answers.get(self.path.partition("?")[0])
                missing = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}
                body = json.dumps(found or missing).encode()
                self.send_response(200 if found else 404)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_port}"


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.http.shutdown()
    running.http.server_close()


def template(server: Server, *arguments: str) -> list[dict[str, Any]]:
    words = (
        "template",
        "my-run",
        CHART,
        "--dry-run=server",
        "--disable-openapi-validation",
        "--kube-apiserver",
        server.url,
        *arguments,
    )
    return load(run_helm(*words))


def job_of(objects: list[dict[str, Any]]) -> dict[str, Any]:
    (job,) = [thing for thing in objects if thing["kind"] == "PyTorchJob"]
    return {**job, "metadata": {**job["metadata"], "namespace": "default", "uid": "1"}}


def test_an_upgrade_that_changes_the_run_is_refused(server: Server) -> None:
    server.answers[JOB_PATH] = job_of(template(server))
    assert template(server, "--is-upgrade", "--set", "kubernetes.suspend=true")
    change = "train.training.learning_rate=2.0e-5"
    with pytest.raises(AssertionError, match="the PyTorchJob my-run exists and would compute something else"):
        template(server, "--is-upgrade", "--set", change)
    assert template(server, "--is-upgrade", "--set", change, "--set", "allow_change=true")


def test_without_the_operator_the_install_is_refused(server: Server) -> None:
    server.answers["/apis"] = {"kind": "APIGroupList", "groups": []}
    with pytest.raises(AssertionError, match=r"this cluster has no kubeflow\.org/v1/PyTorchJob"):
        template(server)
