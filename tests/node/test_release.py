"""Starting the suspended job, against a server with TLS as an API server has it."""

from __future__ import annotations

import json
import ssl
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from qwen_job.data.prepare import cores
from qwen_job.errors import ClusterRefused, EnvironmentFault, Retryable
from qwen_job.node import start_evaluation
from qwen_job.node.release import release
from qwen_job.node.start_evaluation import wait_for_training

JOB = "/apis/kubeflow.org/v1/namespaces/ml/pytorchjobs/run"


class Server:
    """``answers`` is the statuses to give, the last one for good; ``seen`` is what was asked.

    Every job has ``conditions``.
    """

    def __init__(self, certificate: Path, key: Path) -> None:
        self.answers: list[int] = [200]
        self.conditions: list[dict[str, str]] = []
        self.seen: list[tuple[str, str, str, Any]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer(None)

            def do_PATCH(self) -> None:
                self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def _answer(self, body: Any) -> None:
                kind, token = self.headers["Content-Type"], self.headers["Authorization"]
                server.seen.append((self.path, kind, token, body))
                status = server.answers.pop(0) if len(server.answers) > 1 else server.answers[0]
                text = json.dumps({"message": f"status {status}", "status": {"conditions": server.conditions}}).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        self.http.socket = context.wrap_socket(self.http.socket, server_side=True)
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()


def make_account(folder: Path) -> Path:
    """Make what a pod finds of its service account, and the key of the server that trusts it."""
    folder.mkdir(exist_ok=True)
    words = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    names = ["-subj", "/CN=server", "-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-keyout", str(folder / "key"), "-out", str(folder / "ca.crt")]
    subprocess.run([*words, *names, *files], check=True, capture_output=True, timeout=60)
    (folder / "token").write_text("secret\n")
    (folder / "namespace").write_text("ml")
    return folder


@pytest.fixture
def account(tmp_path: Path) -> Path:
    return make_account(tmp_path)


@pytest.fixture
def server(account: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    running = Server(account / "ca.crt", account / "key")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(running.http.server_port))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # of the download, not of the cluster
    yield running
    running.http.shutdown()
    running.http.server_close()


def test_a_job_is_started(server: Server, account: Path) -> None:
    release("pytorchjob", "run", account=account)
    change = {"spec": {"runPolicy": {"suspend": False}}}
    assert server.seen == [(JOB, "application/merge-patch+json", "Bearer secret", change)]


@pytest.mark.parametrize(
    ("kind", "queue", "change"),
    [
        ("jobset", None, {"spec": {"suspend": False}}),
        ("trainjob", None, {"spec": {"suspend": False}}),
        ("job", None, {"spec": {"suspend": False}}),
        ("trainjob", "team", {"metadata": {"labels": {"kueue.x-k8s.io/queue-name": "team"}}}),
    ],
)
def test_every_kind_has_its_own_switch(
    server: Server, account: Path, kind: str, queue: str | None, change: dict[str, Any]
) -> None:
    release(kind, "run", queue, account=account)
    assert server.seen[0][3] == change


def test_a_job_that_is_made_later_is_waited_for(server: Server, account: Path) -> None:
    server.answers = [404, 503, 200]
    release("pytorchjob", "run", account=account)
    assert len(server.seen) == 3


def test_a_role_that_comes_a_moment_later_is_waited_for(server: Server, account: Path) -> None:
    server.answers = [403, 200]
    release("pytorchjob", "run", account=account)


@pytest.mark.parametrize(("status", "said"), [(403, "prepare_account"), (422, "status 422")])
def test_a_refusal_is_final(server: Server, account: Path, status: int, said: str) -> None:
    server.answers = [status]
    with pytest.raises(ClusterRefused, match=said):
        release("pytorchjob", "run", account=account)


def test_a_server_that_is_away_is_tried_again_later(server: Server, account: Path) -> None:
    server.answers = [500]
    with pytest.raises(Retryable, match=r"within 0 s: status 500"):
        release("pytorchjob", "run", account=account, patience=0.1)


def test_another_servers_certificate_is_not_trusted(server: Server, account: Path) -> None:
    other = make_account(account / "other")
    with pytest.raises(Retryable, match="CERTIFICATE_VERIFY_FAILED"):
        release("pytorchjob", "run", account=other, patience=0.1)
    assert server.seen == []


def test_outside_a_pod_there_is_no_token(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault, match="no service account token"):
        release("pytorchjob", "run", account=tmp_path)


def wait(run: Path, account: Path, patience: float = 60.0) -> None:
    wait_for_training(run, "pytorchjob", "run", account=account, patience=patience, pause=0.01)


def condition(kind: str) -> list[dict[str, str]]:
    return [{"type": "Created", "status": "True"}, {"type": kind, "status": "True", "message": "a pod exited with 4"}]


def test_a_training_that_is_complete_is_evaluated(
    server: Server, account: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(start_evaluation, "wait_for_training", lambda run, *_: wait(run, account))
    monkeypatch.setattr(start_evaluation, "release", lambda *words: release(*words, account=account))
    server.answers, server.conditions = [404, 503, 200], condition("Succeeded")
    words = ["--run", str(tmp_path), "--job", "pytorchjob/run", "--release", "run-evaluate"]
    assert start_evaluation.main(words) == 0
    asked = [(place, body) for place, _, _, body in server.seen]
    assert asked[:3] == [(JOB, None)] * 3
    assert asked[3:] == [("/apis/batch/v1/namespaces/ml/jobs/run-evaluate", {"spec": {"suspend": False}})]


def test_a_training_is_complete_with_its_done_json_also_where_its_job_was_deleted(
    server: Server, account: Path, tmp_path: Path
) -> None:
    (tmp_path / "done.json").touch()
    wait(tmp_path, account)
    assert server.seen == []


def test_a_training_that_runs_is_waited_for(server: Server, account: Path, tmp_path: Path) -> None:
    server.conditions = condition("Running")
    waiting = threading.Thread(target=wait, args=(tmp_path, account))
    waiting.start()
    while len(server.seen) < 4:
        waiting.join(0.01)
        assert waiting.is_alive()
    server.conditions = condition("Complete")
    waiting.join(60)
    assert not waiting.is_alive()


@pytest.mark.parametrize(
    ("answers", "kind", "said"),
    [
        ([200], "Failed", "pytorchjob/run failed, so there is nothing to evaluate: a pod exited with 4"),
        ([200, 404], "Running", "pytorchjob/run was deleted, and .* has no done.json"),
        ([404], "Running", "did not appear within 0 s"),
        ([403], "Running", "may not read pytorchjob/run: status 403; give kubernetes.prepare_account"),
    ],
)
def test_a_training_that_gave_up_is_not_evaluated(
    server: Server, account: Path, tmp_path: Path, answers: list[int], kind: str, said: str
) -> None:
    server.answers, server.conditions = answers, condition(kind)
    with pytest.raises(ClusterRefused, match=said):
        wait(tmp_path, account, patience=0.0)


@pytest.mark.parametrize(("text", "most"), [("100000 100000", 1), ("50000 100000", 1), ("max 100000", 10_000)])
def test_cores_are_those_of_the_container(tmp_path: Path, text: str, most: int) -> None:
    (tmp_path / "cpu.max").write_text(text)
    assert 1 <= cores(tmp_path / "cpu.max") <= most
