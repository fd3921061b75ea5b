"""Why a pod is not running, in one line, with the field of job.yaml that has to do with it."""

from __future__ import annotations

import re
from typing import Any

from qwen_job.errors import is_retryable

Object = dict[str, Any]
_UNSCHEDULABLE = (
    (r'persistentvolumeclaim "([^"]+)" not found', "there is no claim {0!r}: create it, or change kubernetes.volumes"),
    (r"unbound immediate PersistentVolumeClaims", "its claim has no volume yet: look at 'kubectl get pvc'"),
    (r"Insufficient ([\w./-]*\w)", "no node has enough {0} free"),
    (r"didn't match Pod's node affinity/selector", "no node matches kubernetes.gpu_products or node_selector"),
    (
        r"untolerated taint\(?s?\)? ?\{?([^}:]*)",
        "nodes are tainted ({0}): add it to kubernetes.tolerations",
    ),
    (r"didn't match pod topology spread", "kubernetes.spread cannot be met"),
)
_WAITING = {
    "ErrImagePull": "the image cannot be pulled: check image and kubernetes.image_pull_secrets",
    "ImagePullBackOff": "the image cannot be pulled: check image and kubernetes.image_pull_secrets",
    "InvalidImageName": "image: is not a valid name",
    "CreateContainerConfigError": "a secret or a ConfigMap is missing: check secret_env and env_from_secrets",
    "CrashLoopBackOff": "starts again and again: look at the logs",
}


def pod_reason(pod: Object) -> str:
    """Return one line about a pod that does not run; empty for one that does, or has ended well."""
    status = pod.get("status") or {}
    name = pod["metadata"]["name"]
    text = _scheduling(status) or _containers(status) or _eviction(status)
    return f"{name}: {text}" if text else ""


def _scheduling(status: Object) -> str:
    for condition in status.get("conditions") or []:
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            message = " ".join(str(condition.get("message") or "").split())
            if condition.get("reason") == "SchedulingGated":
                return "waits for its queue to admit it"
            known = [
                meaning.format(*found.groups())
                for pattern, meaning in _UNSCHEDULABLE
                if (found := re.search(pattern, message))
            ]
            return f"{'; '.join(known)} ({message})" if known else message
    return ""


def _containers(status: Object) -> str:
    for container in [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]:
        state = container.get("state") or {}
        waiting, ended = state.get("waiting") or {}, state.get("terminated") or {}
        reason = waiting.get("reason")
        if reason and reason not in ("ContainerCreating", "PodInitializing"):
            said = " ".join(str(waiting.get("message") or reason).split())
            return f"{_WAITING.get(reason, reason)} ({said})"
        code = ended.get("exitCode")
        if ended.get("reason") == "OOMKilled":
            return "killed for memory (OOMKilled): raise kubernetes.memory, or take more nodes"
        if code:
            what = "tried again" if is_retryable(code) else "final; 'qwen-job exit-codes' says what it means"
            return f"ended with exit code {code} ({what})"
    return ""


def _eviction(status: Object) -> str:
    if status.get("reason") in ("Evicted", "NodeLost", "Preempting", "NodeShutdown", "Terminated"):
        return f"{status['reason']}: {' '.join(str(status.get('message') or '').split())}"
    return ""
