"""Start a suspended job from inside the cluster, or read one, with the pod's own service account.

The account may patch this one job only (templates/kubernetes/role.yaml.j2).
"""

from __future__ import annotations

import json
import os
import ssl
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from qwen_job.errors import ClusterRefused, EnvironmentFault, Retryable

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
# The job may be created some seconds after this pod; an API server that is upgraded is unreachable for minutes.
PATIENCE_SECONDS = 600.0
_RESOURCES = {
    "pytorchjob": "kubeflow.org/v1/namespaces/{}/pytorchjobs/{}",
    "trainjob": "trainer.kubeflow.org/v1alpha1/namespaces/{}/trainjobs/{}",
    "jobset": "jobset.x-k8s.io/v1alpha2/namespaces/{}/jobsets/{}",
    "job": "batch/v1/namespaces/{}/jobs/{}",
}
# The server's authorizer may not know a Role that was just created.
MOST_REFUSALS = 2


def release(
    kind: str, name: str, queue: str | None = None, *, account: Path = ACCOUNT, patience: float = PATIENCE_SECONDS
) -> None:
    """Unsuspend the job, or submit it to a Kueue queue, which then starts it.

    Raises:
        EnvironmentFault: this is not a pod with a service account token.
        ClusterRefused: the account lacks the permission, or the server rejects the change.
        Retryable: the server was unreachable, or the job did not appear, for ``patience`` seconds.
    """
    deadline, pause, refusals = time.monotonic() + patience, 0.5, 0
    while True:
        status, body = ask(kind, name, account, _change(kind, queue))
        if 200 <= status < 300:
            return
        reason = message_of(body)
        refusals += status in (401, 403)
        if refusals > MOST_REFUSALS:
            fix = "give kubernetes.prepare_account a role that may patch it, or start the job by hand"
            raise ClusterRefused(f"may not patch {kind}/{name}: {reason}; {fix}")
        if status and status not in (401, 403, 404, 409, 429) and status < 500:
            raise ClusterRefused(f"cannot start {kind}/{name}: {reason}")
        if time.monotonic() + pause > deadline:
            raise Retryable(f"could not start {kind}/{name} within {patience:.0f} s: {reason}")
        time.sleep(pause)
        pause = min(10.0, 2 * pause)


def _change(kind: str, queue: str | None) -> dict[str, Any]:
    if queue:
        return {"metadata": {"labels": {QUEUE_LABEL: queue}}}
    running = {"suspend": False}
    return {"spec": {"runPolicy": running} if kind == "pytorchjob" else running}


def _url(kind: str, name: str, account: Path) -> str:
    host = os.environ.get("KUBERNETES_SERVICE_HOST") or "kubernetes.default.svc"
    port = os.environ.get("KUBERNETES_SERVICE_PORT") or "443"
    where = f"[{host}]" if ":" in host else host
    return f"https://{where}:{port}/apis/{_RESOURCES[kind].format(_read(account / 'namespace'), name)}"


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8").strip()
    except OSError as error:
        raise EnvironmentFault(f"{path}: {error.strerror}: the pod has no service account token") from None


def ask(kind: str, name: str, account: Path, change: dict[str, Any] | None = None) -> tuple[int, bytes]:
    """Read a job, or patch it with ``change``; return the server's status (0 if unreachable) and the text it sent.

    Raises:
        EnvironmentFault: this is not a pod with a service account token.
    """
    request = urllib.request.Request(
        _url(kind, name, account),
        data=None if change is None else json.dumps(change).encode(),
        method="GET" if change is None else "PATCH",
        headers={
            "Authorization": f"Bearer {_read(account / 'token')}",
            "Content-Type": "application/merge-patch+json",
            "Accept": "application/json",
        },
    )
    trusted = ssl.create_default_context(cafile=str(account / "ca.crt"))
    # A proxy for model downloads does not reach the cluster's API server.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=trusted))
    try:
        with opener.open(request, timeout=30) as answer:
            return int(answer.status), answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read() or str(error.reason).encode()
    except OSError as error:
        return 0, str(getattr(error, "reason", error)).encode()


def message_of(body: bytes) -> str:
    """Return the message of a server's refusal, or the text itself."""
    try:
        return str(json.loads(body)["message"])
    except (ValueError, KeyError, TypeError):
        return body.decode(errors="replace").strip()[:300]
