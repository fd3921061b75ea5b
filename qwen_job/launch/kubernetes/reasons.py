"""Why a job waits or failed, in one line, with the field of job.yaml to look at.

:func:`pod_reason` reads a pod's status. Where the pods do not explain it, or are gone, :func:`why` asks for the events
of the namespace and for Kueue's own record of the job.
"""

from __future__ import annotations

import json
import re
import time
from typing import Any

from qwen_job.errors import QwenJobError, is_retryable
from qwen_job.launch.backend import Entry
from qwen_job.launch.kubernetes.kubectl import NoSuchKind, kubectl, meaning

Object = dict[str, Any]
QUEUED = "waits for its queue to admit it"
MEMORY_ADVICE = "raise kubernetes.memory, or use more nodes"
_MISSING = re.compile(r"\d+ of \d+ pods missing")
_KILLED = 137
_LONGEST = 200
_UNSCHEDULABLE = (
    (
        r'persistentvolumeclaim "([^"]+)" not found',
        "claim {0!r} does not exist: create it, or change kubernetes.volumes",
    ),
    (r"unbound immediate PersistentVolumeClaims", "its claim has no volume yet: see 'kubectl get pvc'"),
    (r"Insufficient ([\w./-]*\w)", "no node has enough {0} free"),
    (r"didn't match Pod's node affinity/selector", "no node matches kubernetes.gpu_products or node_selector"),
    (
        r"untolerated taint\(?s?\)? ?\{?([^}:]*)",
        "nodes are tainted ({0}): add it to kubernetes.tolerations",
    ),
    (r"didn't match pod topology spread", "kubernetes.spread cannot be met"),
    (
        r"(?:find|get|not found)[^.]*queue \"?(\S+)|queue \"?([\w-]+)\"? (?:not found|does not exist)",
        "kubernetes.queue: it does not exist",
    ),
)
_WAITING = {
    "ErrImagePull": "the image cannot be pulled: check image and kubernetes.image_pull_secrets",
    "ImagePullBackOff": "the image cannot be pulled: check image and kubernetes.image_pull_secrets",
    "InvalidImageName": "image: is not a valid name",
    "CreateContainerConfigError": "a secret or a ConfigMap is missing: check secret_env and env_from_secrets",
    "CrashLoopBackOff": "keeps restarting: see the logs",
}
# The training-operator's event for a container that it restarts: Pod: NAMESPACE.NAME exited with code 137
_EXITED = re.compile(r"Pod: \S+?\.(\S+) exited with code (\d+)")
# Kueue's messages -> what they mean.
_QUEUE = (
    (
        r"LocalQueue (\S+) (?:doesn't exist|is inactive)",
        "kubernetes.queue: LocalQueue {0!r} does not exist or is inactive",
    ),
    (r"ClusterQueue (\S+) (?:doesn't exist|is inactive)", "kubernetes.queue: its ClusterQueue {0!r} accepts no jobs"),
    (r"insufficient (?:unused )?quota (?:for|in \S+ for) (\S+)", "the queue has not enough {0} free"),
)


def pod_reason(pod: Object, needs_memory: str = "") -> str:
    """Return one line about a pod that does not run; empty for one that runs, or succeeded.

    ``needs_memory`` is the host memory that the plan estimates per pod, e.g. 57Gi.
    """
    status = pod.get("status") or {}
    name = pod["metadata"]["name"]
    text = _scheduling(status) or _unseen(pod) or _containers(pod, needs_memory) or _eviction(status)
    return f"{name}: {text}" if text else ""


def _unseen(pod: Object) -> str:
    """A scheduler that does not exist leaves no condition; the default one always exists."""
    status, scheduler = pod.get("status") or {}, (pod.get("spec") or {}).get("schedulerName", "default-scheduler")
    looked = any(condition.get("type") == "PodScheduled" for condition in status.get("conditions") or [])
    if status.get("phase") != "Pending" or looked or scheduler == "default-scheduler":
        return ""
    return f"kubernetes.queue: the scheduler {scheduler!r} has not seen the pod; is it installed in this cluster?"


def _scheduling(status: Object) -> str:
    for condition in status.get("conditions") or []:
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            message = " ".join(str(condition.get("message") or "").split())
            if condition.get("reason") == "SchedulingGated":
                return "waits for its queue to admit it"
            known = [
                meant.format(*found.groups())
                for pattern, meant in _UNSCHEDULABLE
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
            what = "retried" if is_retryable(code) else "final; 'qwen-job exit-codes' explains it"
            killed = f"; killed, most likely for memory: {MEMORY_ADVICE}" if code == _KILLED else ""
            return f"ended with exit code {code} ({what}){killed}{_last_words(ended)}"
    return ""


def _for_memory(pod: Object, container: str, needs_memory: str) -> str:
    """Name the limit that the container hit, and the plan's estimate."""
    containers = (pod.get("spec") or {}).get("containers") or []
    limits = [(c.get("resources") or {}).get("limits") or {} for c in containers if c.get("name") == container]
    limit = str(limits[0].get("memory") or "") if limits else ""
    had = f"its limit is {limit}" if limit else "it has no limit"
    planned = f", the plan estimates {needs_memory} per pod" if needs_memory else ""
    return f"killed for memory (OOMKilled): {had}{planned}; {MEMORY_ADVICE}"


def _last_words(ended: Object) -> str:
    """Return the last line of a failed container's output, which the kubelet keeps."""
    lines = [" ".join(line.split()) for line in str(ended.get("message") or "").splitlines() if line.strip()]
    return f": {lines[-1][:_LONGEST]}" if lines else ""


def _eviction(status: Object) -> str:
    reason, said = status.get("reason"), " ".join(str(status.get("message") or "").split())
    if status.get("phase") == "Running" or not reason:
        return ""
    memory = f"; {MEMORY_ADVICE}" if reason == "Evicted" and "low on resource: memory" in said else ""
    return f"{reason}: {said}{memory}" if said else str(reason)


def is_unexplained(entry: Entry) -> bool:
    """Tell whether the job's pods leave its state unexplained, so that the events are worth a query."""
    if entry.state in ("pending", "suspended"):
        return entry.reason in ("", "suspended", QUEUED) or bool(_MISSING.match(entry.reason))
    return entry.state == "failed" and "killed for memory" not in entry.reason


def why(entry: Entry, deadline: float) -> str:
    """Return in one line why the job waits or failed; empty where unknown. ``deadline``: monotonic seconds."""
    try:
        if entry.state == "failed":
            return _killed(entry, deadline)
        if entry.reason == QUEUED:
            return _queued(entry, deadline)
        return _warning(entry, deadline)
    except (QwenJobError, ValueError, KeyError, TypeError, AttributeError):
        return ""


def _warning(entry: Entry, deadline: float) -> str:
    """Return the newest warning about the job, its pods or what the operators created for it, known ones first."""
    events = _events(entry, "type=Warning", deadline)
    said = [" ".join(str(event.get("message") or "").split()) for event in sorted(events, key=_when, reverse=True)]
    known = [meant for text in said if (meant := meaning(text))]
    text = next(iter([*known, *said]), "")
    missing = entry.reason if "missing" in entry.reason else ""
    return "; ".join(filter(None, (missing.partition(";")[0], text))) if text else ""


def _killed(entry: Entry, deadline: float) -> str:
    """Return the reason, preceded by an earlier OOM kill, whose pod is gone."""
    exits = [_EXITED.search(str(event.get("message"))) for event in _events(entry, "reason=ExitedWithCode", deadline)]
    pods = list(dict.fromkeys(found[1] for found in exits if found and int(found[2]) == _KILLED))
    if not pods:
        return ""
    killed = f"{', '.join(pods[:3])}: killed (exit code {_KILLED}), most likely for memory: {MEMORY_ADVICE}"
    return "; ".join(filter(None, (killed, entry.reason)))


def _events(entry: Entry, selector: str, deadline: float) -> list[Object]:
    """Return the events about the job and the objects that operators name after it."""
    namespace, _, name = entry.id.partition("/")
    items = _get(deadline, "events", namespace, f"--field-selector={selector}")
    name = re.escape(name)
    ours = re.compile(
        rf"{name}(-prepare|-node-0)?|{name}-(worker|master)-\d+|{name}-node-0-\d+-\w{{5}}|{name}-prepare-\w{{5}}"
        rf"|(pytorchjob|trainjob|jobset)-{name}-\w{{5}}"
    )
    return [item for item in items if ours.fullmatch(str((item.get("involvedObject") or {}).get("name")))]


def _queued(entry: Entry, deadline: float) -> str:
    """Return what Kueue says about the job."""
    namespace, _, name = entry.id.partition("/")
    try:
        items = _get(deadline, "workloads.kueue.x-k8s.io", namespace)
    except NoSuchKind:
        return "kubernetes.queue: Kueue is not installed, so nothing will start the job"
    mine = [
        item for item in items if any(_is_owner(owner, name) for owner in item["metadata"].get("ownerReferences", ()))
    ]
    if not mine:
        return f"{QUEUED}, which has not seen it; is Kueue's integration for this kind of job enabled?"
    conditions = mine[-1].get("status", {}).get("conditions") or []
    said = [" ".join(str(c.get("message") or "").split()) for c in conditions if c.get("status") == "False"]
    for text in said:
        for pattern, meant in _QUEUE:
            if found := re.search(pattern, text):
                return f"{meant.format(*found.groups())} ({text})"
    return f"{QUEUED} ({said[0]})" if said else ""


def _is_owner(owner: Object, name: str) -> bool:
    return owner.get("name") == name and owner.get("kind") in ("PyTorchJob", "TrainJob", "JobSet")


def _get(deadline: float, resource: str, namespace: str, *words: str) -> list[Object]:
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        return []
    text = kubectl("get", resource, "--namespace", namespace, *words, "-o", "json", seconds=seconds)
    items: list[Object] = json.loads(text)["items"]
    return items


def _when(event: Object) -> str:
    return str(event.get("lastTimestamp") or event.get("eventTime") or "")
