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
    (
        r"(?:find|get|not found)[^.]*queue \"?(\S+)|queue \"?([\w-]+)\"? (?:not found|does not exist)",
        "kubernetes.queue: it is not there",
    ),
)
_WAITING = {
    "ErrImagePull": "the image cannot be pulled: check image and kubernetes.image_pull_secrets",
    "ImagePullBackOff": "the image cannot be pulled: check image and kubernetes.image_pull_secrets",
    "InvalidImageName": "image: is not a valid name",
    "CreateContainerConfigError": "a secret or a ConfigMap is missing: check secret_env and env_from_secrets",
    "CrashLoopBackOff": "starts again and again: look at the logs",
}


MEMORY_ADVICE = "raise kubernetes.memory, or take more nodes"
_KILLED = 137
_LONGEST = 200


def pod_reason(pod: Object, needs_memory: str = "") -> str:
    """Return one line about a pod that does not run; empty for one that does, or has ended well.

    ``needs_memory`` is what the plan counts for a pod, e.g. 57Gi.
    """
    status = pod.get("status") or {}
    name = pod["metadata"]["name"]
    text = _scheduling(status) or _unseen(pod) or _containers(pod, needs_memory) or _eviction(status)
    return f"{name}: {text}" if text else ""


def _unseen(pod: Object) -> str:
    """A scheduler that is not there leaves no word; the cluster's own is always there."""
    status, scheduler = pod.get("status") or {}, (pod.get("spec") or {}).get("schedulerName", "default-scheduler")
    looked = any(condition.get("type") == "PodScheduled" for condition in status.get("conditions") or [])
    if status.get("phase") != "Pending" or looked or scheduler == "default-scheduler":
        return ""
    return f"kubernetes.queue: the scheduler {scheduler!r} has not looked at it; does it run in this cluster?"


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


def _containers(pod: Object, needs_memory: str) -> str:
    status = pod.get("status") or {}
    for container in [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]:
        state = container.get("state") or {}
        waiting, ended = state.get("waiting") or {}, state.get("terminated") or {}
        before = (container.get("lastState") or {}).get("terminated") or {}
        reason = waiting.get("reason")
        if "OOMKilled" in (ended.get("reason"), before.get("reason") if reason else None):
            return _for_memory(pod, str(container.get("name")), needs_memory)
        if reason and reason not in ("ContainerCreating", "PodInitializing"):
            said = " ".join(str(waiting.get("message") or reason).split())
            return f"{_WAITING.get(reason, reason)} ({said})"
        code = ended.get("exitCode")
        if code:
            what = "tried again" if is_retryable(code) else "final; 'qwen-job exit-codes' says what it means"
            killed = f"; killed, most often for memory: {MEMORY_ADVICE}" if code == _KILLED else ""
            return f"ended with exit code {code} ({what}){killed}{_last_words(ended)}"
    return ""


def _for_memory(pod: Object, container: str, needs_memory: str) -> str:
    """Say which limit the container met, and what the plan counts."""
    containers = (pod.get("spec") or {}).get("containers") or []
    limits = [(c.get("resources") or {}).get("limits") or {} for c in containers if c.get("name") == container]
    limit = str(limits[0].get("memory") or "") if limits else ""
    had = f"its limit is {limit}" if limit else "it has no limit of its own"
    planned = f", the plan counts {needs_memory} for a pod" if needs_memory else ""
    return f"killed for memory (OOMKilled): {had}{planned}; {MEMORY_ADVICE}"


def _last_words(ended: Object) -> str:
    """Return the last line of the container's output, which the kubelet keeps of one that failed."""
    lines = [" ".join(line.split()) for line in str(ended.get("message") or "").splitlines() if line.strip()]
    return f": {lines[-1][:_LONGEST]}" if lines else ""


def _eviction(status: Object) -> str:
    reason, said = status.get("reason"), " ".join(str(status.get("message") or "").split())
    if status.get("phase") == "Running" or not reason:
        return ""
    memory = f"; {MEMORY_ADVICE}" if reason == "Evicted" and "low on resource: memory" in said else ""
    return f"{reason}: {said}{memory}" if said else str(reason)
