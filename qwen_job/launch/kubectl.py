"""Running kubectl, and what its refusals mean for the job."""

from __future__ import annotations

import re
import subprocess

from qwen_job.errors import ClusterRefused, EnvironmentFault

# Words of a refusal -> what it means for the job.
_MEANINGS = (
    (r"no matches for kind \"?(\w+)", "kubernetes.kind: the cluster has no {0}: install its operator or take another"),
    (r"namespaces? \"([^\"]+)\" not found", "kubernetes.namespace: there is no namespace {0!r}: create it"),
    (r"cannot (\w+) resource \"([^\"]+)\"", "no permission to {0} {1}: ask for a role in this namespace"),
    (
        r"PersistentVolumeClaim.*spec is immutable",
        "kubernetes.volumes: the claim is there with other settings: name it",
    ),
    (r"field is immutable", "name: a job of this name is there with other settings; cancel it, or take another name"),
    (r"unknown field \"([^\"]+)\"", "kubernetes.pod, pod_container or job: the server knows no field {0}: correct it"),
    (
        r"violates PodSecurity \"([^:\"]+)",
        "the namespace admits pods of the level {0} only: see what render says of it",
    ),
    (r"exceeded quota", "cluster: over the namespace's quota; take fewer nodes or GPUs"),
)
_UNREACHABLE = (
    r"connection to the server|connection refused|no such host|i/o timeout|Unauthorized|current-context|"
    r"no configuration"
)


class NoSuchKind(ClusterRefused):
    """The cluster does not know the resource."""


class Forbidden(ClusterRefused):
    """The user may not do it."""


def kubectl(*words: str, text: str | None = None, seconds: float = 120) -> str:
    """Run kubectl and return its output.

    Raises:
        EnvironmentFault: there is no kubectl, no cluster, or no answer within ``seconds``.
        NoSuchKind: the cluster does not know the resource.
        Forbidden: the user may not do it.
        ClusterRefused: anything else, with the server's words and the field of job.yaml that they are about.
    """
    command = ["kubectl", *words]
    try:
        done = subprocess.run(command, input=text, capture_output=True, text=True, check=False, timeout=seconds)
    except FileNotFoundError:
        way_out = "install it, or carry the manifest of 'render' to a machine that has it"
        raise EnvironmentFault(f"kubectl: not on this machine; {way_out}") from None
    except subprocess.TimeoutExpired:
        raise EnvironmentFault(f"kubectl: no answer within {seconds:.0f} s; is the cluster reachable?") from None
    if done.returncode == 0:
        return done.stdout
    said = " ".join(done.stderr.split())
    if re.search(r"doesn't have a resource type|could not find the requested resource", said):
        raise NoSuchKind(said)
    if re.search(_UNREACHABLE, said):
        raise EnvironmentFault(f"kubectl reaches no cluster: {said}; check the kubeconfig ('kubectl cluster-info')")
    meant = meaning(said)
    raise (Forbidden if meant.startswith("no permission") else ClusterRefused)(meant or f"Kubernetes refuses: {said}")


def meaning(said: str) -> str:
    """Return what a server's words mean for the job, with the field; empty for words that are not known."""
    for pattern, meant in _MEANINGS:
        found = re.search(pattern, said)
        if found:
            return f"{meant.format(*found.groups())} ({said})"
    return ""
