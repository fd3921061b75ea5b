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
JOBS = {
    "name": "pytorchjobs",
    "singularName": "pytorchjob",
    "namespaced": True,
    "kind": "PyTorchJob",
    "verbs": ["get", "list"],
}
PODS = {"name": "pods", "singularName": "pod", "namespaced": True, "kind": "Pod", "verbs": ["get", "list"]}
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
BATCH = {"groupVersion": "jobset.x-k8s.io/v1alpha2", "version": "v1alpha2"}
SETS = {**JOBS, "name": "jobsets", "singularName": "jobset", "kind": "JobSet"}
JOBS_PATH = "/apis/kubeflow.org/v1/namespaces/default/pytorchjobs"


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
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()
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


def running(server: Server, *arguments: str, **status: Any) -> None:
    """Let the server know the release's job as it was installed."""
    (job,) = [thing for thing in template(server, *arguments) if thing["kind"] == "PyTorchJob"]
    annotations = {**job["metadata"]["annotations"], "meta.helm.sh/release-name": "my-run"}
    metadata = {**job["metadata"], "namespace": "default", "uid": "1", "annotations": annotations}
    stranger = {**job, "metadata": {**metadata, "name": "another", "annotations": {}}}
    items = [stranger, {**job, "metadata": metadata, "status": status}]
    server.answers[JOBS_PATH] = {"apiVersion": "kubeflow.org/v1", "kind": "PyTorchJobList", "items": items}


def refusal(server: Server, *sets: str) -> str:
    with pytest.raises(AssertionError) as refused:
        template(server, "--is-upgrade", *[word for item in sets for word in ("--set", item)])
    return str(refused.value)


def test_an_upgrade_that_changes_the_run_is_refused(server: Server) -> None:
    running(server)
    change = "train.training.learning_rate=2.0e-5"
    assert "the PyTorchJob my-run exists and would compute something else" in refusal(server, change)
    assert template(server, "--is-upgrade", "--set", change, "--set", "allow_change=true")
    assert template(server, "--is-upgrade", "--set", "kubernetes.ttl_after_finished=60")


def test_an_upgrade_that_ends_the_pods_is_refused(server: Server) -> None:
    running(server)
    assert "kubernetes.suspend would end its pods" in refusal(server, "kubernetes.suspend=true")
    assert "would delete it, because the job would become the pytorchjob other" in refusal(server, "name=other")
    groups = server.answers["/apis"]["groups"]
    group = {"name": "jobset.x-k8s.io", "versions": [BATCH], "preferredVersion": BATCH}
    server.answers["/apis"] = {"kind": "APIGroupList", "groups": [*groups, group]}
    server.answers["/apis/jobset.x-k8s.io/v1alpha2"] = {
        "kind": "APIResourceList", "groupVersion": "jobset.x-k8s.io/v1alpha2", "resources": [SETS],
    }  # fmt: skip
    server.answers["/apis/jobset.x-k8s.io/v1alpha2/namespaces/default/jobsets"] = {
        "kind": "JobSetList", "apiVersion": "jobset.x-k8s.io/v1alpha2", "items": [],
    }  # fmt: skip
    assert "would become the jobset my-run" in refusal(server, "kubernetes.kind=jobset")


def test_a_finished_job_may_make_room_for_another(server: Server) -> None:
    running(server, conditions=[{"type": "Succeeded", "status": "True"}])
    assert template(server, "--is-upgrade", "--set", "name=other")


def test_a_job_that_its_preparation_has_started_stays_so(server: Server) -> None:
    batch = {"groupVersion": "batch/v1", "version": "v1"}
    groups = server.answers["/apis"]["groups"]
    server.answers["/apis"] = {
        "kind": "APIGroupList", "groups": [*groups, {"name": "batch", "versions": [batch], "preferredVersion": batch}],
    }  # fmt: skip
    server.answers["/apis/batch/v1"] = {
        "kind": "APIResourceList", "groupVersion": "batch/v1",
        "resources": [{**JOBS, "name": "jobs", "singularName": "job", "kind": "Job"}],
    }  # fmt: skip
    prepared = ("--set", "kubernetes.prepare=true,kubernetes.prepare_account=starter")

    def suspended(*arguments: str) -> bool:
        objects = template(server, *prepared, *arguments)
        (job,) = [thing for thing in objects if thing["kind"] == "PyTorchJob"]
        return bool(job["spec"]["runPolicy"]["suspend"])

    assert suspended()
    running(server, *prepared)
    assert suspended("--is-upgrade")
    server.answers[JOBS_PATH]["items"][1]["spec"]["runPolicy"]["suspend"] = False
    assert not suspended("--is-upgrade")


def test_without_the_operator_the_install_is_refused(server: Server) -> None:
    server.answers["/apis"] = {"kind": "APIGroupList", "groups": []}
    with pytest.raises(AssertionError, match=r"this cluster has no kubeflow\.org/v1/PyTorchJob"):
        template(server)
