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
from qwen_job.node.release import release

JOB = "/apis/kubeflow.org/v1/namespaces/ml/pytorchjobs/run"


class Server:
    """``answers`` is the statuses to give, the last one for good; ``seen`` is what was asked."""

    def __init__(self, certificate: Path, key: Path) -> None:
        self.answers: list[int] = [200]
        self.seen: list[tuple[str, str, str, Any]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_PATCH(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                kind, token = self.headers["Content-Type"], self.headers["Authorization"]
                server.seen.append((self.path, kind, token, body))
                status = server.answers.pop(0) if len(server.answers) > 1 else server.answers[0]
                text = json.dumps({"kind": "Status", "message": f"status {status}"}).encode()
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


@pytest.mark.parametrize(("text", "most"), [("100000 100000", 1), ("50000 100000", 1), ("max 100000", 10_000)])
def test_cores_are_those_of_the_container(tmp_path: Path, text: str, most: int) -> None:
    (tmp_path / "cpu.max").write_text(text)
    assert 1 <= cores(tmp_path / "cpu.max") <= most
