"""Run kubectl, and translate its errors into fields of job.yaml."""

from __future__ import annotations

import re
import subprocess

from qwen_job.errors import ClusterRefused, EnvironmentFault, QwenJobError

# Pattern in an error -> what it means for the job.
_MEANINGS = (
    (
        r"no matches for kind \"?(\w+)",
        "kubernetes.kind: the cluster has no {0}; install its operator, or choose another kind",
    ),
    (r"namespaces? \"([^\"]+)\" not found", "kubernetes.namespace: there is no namespace {0!r}; create it"),
    (
        r"unable to create new content in namespace (\S+) because it is being terminated",
        "kubernetes.namespace: {0} is being deleted; choose another",
    ),
    (
        r"cannot (\w+) resource \"(roles|rolebindings|serviceaccounts)\"|attempting to grant RBAC permissions",
        "kubernetes.prepare, evaluate: no permission to create the account that starts a suspended job; set "
        "kubernetes.prepare_account to one that may get and patch them, or set suspend: true and start them yourself",
    ),
    (r"cannot (\w+) resource \"([^\"]+)\"", "no permission to {0} {1}; ask for a role in this namespace"),
    (
        r"PersistentVolumeClaim.*spec is immutable",
        "kubernetes.volumes: the claim already exists with other settings; name it with pvc",
    ),
    (
        r"field is immutable",
        "name: a job of this name already exists with other settings; cancel it, or choose another name",
    ),
    (r"unknown field \"([^\"]+)\"", "kubernetes.pod, pod_container or job: the server has no field {0}; correct it"),
    (
        r"violates PodSecurity \"([^:\"]+)",
        "the namespace admits only pods of level {0}; see render's warnings",
    ),
    (
        r"must specify ([\w./,-]*(?:cpu|memory)[\w./,-]*)",
        "kubernetes.cpu, memory: the namespace's quota requires {0}; set both",
    ),
    (r"exceeded quota", "cluster: over the namespace's quota; use fewer nodes or GPUs"),
    (r"m(?:ax|in)imum (cpu|memory) usage per (?:Container|Pod)", "kubernetes.{0}: outside the namespace's LimitRange"),
    (r"no PriorityClass with name (\S+) was found", "kubernetes.priority_class: there is no class {0!r}; create it"),
    (r"serviceaccount \"([^\"]+)\" not found", "kubernetes.service_account: there is no account {0!r}; create it"),
    (r"persistentvolumeclaim \"([^\"]+)\" not found", "kubernetes.volumes: there is no claim {0!r}; create it"),
    (r"(secret|configmap) \"([^\"]+)\" not found", "there is no {0} {1!r}, which a pod needs; create it"),
    (r"references non-existent secret key: (\S+)", "a volume uses the key {0!r}, which its secret does not have"),
    (r"RuntimeClass.*\"([^\"]+)\" not found", "kubernetes.pod.runtimeClassName: there is no class {0!r}"),
    (r"(?:unable to|cannot|failed to) (?:find|get) queue (\S+)", "kubernetes.queue: there is no queue {0}; create it"),
    (r"queue \"?(\S+?)\"? not found", "kubernetes.queue: there is no queue {0!r}; create it"),
    (r"admission webhook \"([^\"]+)\" denied", "rejected by the cluster's admission webhook {0}"),
    (r"MountVolume\S* failed for volume \"([^\"]+)\"", "kubernetes.volumes: the volume {0!r} cannot be mounted"),
)
_FORBIDDEN = r"cannot \w+ resource|attempting to grant RBAC permissions"
_UNKNOWN_KIND = r"doesn't have a resource type|could not find the requested resource"
_CREDENTIALS = (
    r"Unauthorized|must be logged in to the server|provide credentials|getting credentials|token (?:has|is) expired|"
    r"certificate has expired|failed to refresh token|invalid_grant"
)
_UNREACHABLE = (
    r"connection to the server|connection refused|no such host|i/o timeout|current-context|no configuration|"
    r"TLS handshake|certificate signed by unknown authority|no route to host|Unable to connect to the server|"
    r"context deadline exceeded|invalid configuration|context \S+ does not exist"
)
# kubectl's own log: E1128 00:50:15.123456   12345 memcache.go:265] "Unhandled Error" err="..."
_LOG_LINE = re.compile(r"^[IWEF]\d{4} \d\d:\d\d:\d\d\.\d+\s+\d+ [\w.-]+:\d+\] ")


class NoSuchKind(ClusterRefused):
    """The cluster has no such resource."""


class Forbidden(ClusterRefused):
    """The user lacks the permission."""


def kubectl(*words: str, text: str | None = None, seconds: float = 120) -> str:
    """Run kubectl and return its output.

    Raises:
        EnvironmentFault: kubectl is missing, or the cluster does not answer within ``seconds``.
        NoSuchKind: the cluster has no such resource.
        Forbidden: the user lacks the permission.
        ClusterRefused: any other error, with the server's message and the field of job.yaml that it concerns.
    """
    command = ["kubectl", *words]
    try:
        done = subprocess.run(command, input=text, capture_output=True, text=True, check=False, timeout=seconds)
    except FileNotFoundError:
        suggestion = "install it, or apply the manifest of 'render' from a machine that has it"
        raise EnvironmentFault(f"kubectl: not on this machine; {suggestion}") from None
    except subprocess.TimeoutExpired:
        raise EnvironmentFault(f"kubectl: no answer within {seconds:.0f} s; is the cluster reachable?") from None
    if done.returncode == 0:
        return done.stdout
    raise refusal(done.stderr)


def refusal(stderr: str) -> QwenJobError:
    """Return the error for kubectl's stderr, without its log lines; where there is nothing else, the last of them."""
    lines = [line for line in stderr.splitlines() if line.strip()]
    said = " ".join(" ".join([line for line in lines if not _LOG_LINE.match(line)] or lines[-1:]).split())
    if re.search(_UNKNOWN_KIND, said):
        return NoSuchKind(said)
    if re.search(_CREDENTIALS, said):
        return EnvironmentFault(f"the cluster rejects your credentials (expired?); log in again ({said})")
    if re.search(_UNREACHABLE, said):
        return EnvironmentFault(
            f"kubectl cannot reach the cluster: {said}; check your kubeconfig ('kubectl cluster-info')"
        )
    meant = meaning(said) or f"Kubernetes rejects it: {said}"
    return Forbidden(meant) if re.search(_FORBIDDEN, said) else ClusterRefused(meant)


def meaning(said: str) -> str:
    """Return what a server's message means for the job, with the field; empty for an unknown message."""
    for pattern, meant in _MEANINGS:
        found = re.search(pattern, said)
        if found:
            return f"{meant.format(*found.groups())} ({said})"
    return ""
