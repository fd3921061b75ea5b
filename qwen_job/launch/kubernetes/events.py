"""Why a job's pods are not there, or are there no more: the events of its namespace, and Kueue's own record of it."""

from __future__ import annotations

import json
import re
import time
from typing import Any

from qwen_job.errors import QwenJobError
from qwen_job.launch.backend import Entry
from qwen_job.launch.kubernetes.kubectl import NoSuchKind, kubectl, meaning
from qwen_job.launch.kubernetes.pods import MEMORY_ADVICE
from qwen_job.launch.kubernetes.state import QUEUED

Object = dict[str, Any]
# What the training-operator notes of a container that it starts again: Pod: NAMESPACE.NAME exited with code 137
_EXITED = re.compile(r"Pod: \S+?\.(\S+) exited with code (\d+)")
_KILLED = 137
# Kueue's words -> what they mean.
_QUEUE = (
    (
        r"LocalQueue (\S+) (?:doesn't exist|is inactive)",
        "kubernetes.queue: there is no LocalQueue {0!r} that is active",
    ),
    (r"ClusterQueue (\S+) (?:doesn't exist|is inactive)", "kubernetes.queue: its ClusterQueue {0!r} takes no jobs"),
    (r"insufficient (?:unused )?quota (?:for|in \S+ for) (\S+)", "the queue has not enough {0} free"),
)


def why(entry: Entry, deadline: float) -> str:
    """Return in one line why the job waits or failed; empty where nothing tells. ``deadline``: monotonic seconds."""
    try:
        if entry.state == "failed":
            return _killed(entry, deadline)
        if entry.reason == QUEUED:
            return _queued(entry, deadline)
        return _warning(entry, deadline)
    except (QwenJobError, ValueError, KeyError, TypeError, AttributeError):
        return ""


def _warning(entry: Entry, deadline: float) -> str:
    """Return the newest warning about the job, its pods or what the operators made for it, one that is known first."""
    events = _events(entry, "type=Warning", deadline)
    said = [" ".join(str(event.get("message") or "").split()) for event in sorted(events, key=_when, reverse=True)]
    known = [meant for text in said if (meant := meaning(text))]
    text = next(iter([*known, *said]), "")
    missing = entry.reason if "missing" in entry.reason else ""
    return "; ".join(filter(None, (missing.partition(";")[0], text))) if text else ""


def _killed(entry: Entry, deadline: float) -> str:
    """Return the reason, with the kill for memory that came before it: the killed pod itself is gone."""
    exits = [_EXITED.search(str(event.get("message"))) for event in _events(entry, "reason=ExitedWithCode", deadline)]
    pods = list(dict.fromkeys(found[1] for found in exits if found and int(found[2]) == _KILLED))
    if not pods:
        return ""
    killed = f"{', '.join(pods[:3])}: killed (exit code {_KILLED}), most often for memory: {MEMORY_ADVICE}"
    return "; ".join(filter(None, (killed, entry.reason)))


def _events(entry: Entry, selector: str, deadline: float) -> list[Object]:
    """Return the events about what bears the job's name, as the operators build theirs from it."""
    namespace, _, name = entry.id.partition("/")
    items = _get(deadline, "events", namespace, f"--field-selector={selector}")
    name = re.escape(name)
    ours = re.compile(
        rf"{name}(-prepare|-node-0)?|{name}-(worker|master)-\d+|{name}-node-0-\d+-\w{{5}}|{name}-prepare-\w{{5}}"
        rf"|(pytorchjob|trainjob|jobset)-{name}-\w{{5}}"
    )
    return [item for item in items if ours.fullmatch(str((item.get("involvedObject") or {}).get("name")))]


def _queued(entry: Entry, deadline: float) -> str:
    """Return what Kueue says of the job."""
    namespace, _, name = entry.id.partition("/")
    try:
        items = _get(deadline, "workloads.kueue.x-k8s.io", namespace)
    except NoSuchKind:
        return "kubernetes.queue: the cluster has no Kueue, which would start it"
    mine = [
        item for item in items if any(_is_owner(owner, name) for owner in item["metadata"].get("ownerReferences", ()))
    ]
    if not mine:
        return f"{QUEUED}, which has not seen it: is Kueue's integration for this kind of job enabled?"
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
