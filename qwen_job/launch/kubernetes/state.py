"""One line of ``status`` from a job and its pods, as the API server has them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from qwen_job.launch.backend import Entry
from qwen_job.launch.kubernetes.reasons import QUEUED, pod_reason
from qwen_job.render.kubernetes.objects import MEMORY, OUTPUT

Object = dict[str, Any]
# Conditions, the most significant first, and the state that each one means.
_STATES = (
    ("Failed", "failed"),
    ("Succeeded", "completed"),
    ("Complete", "completed"),
    ("Completed", "completed"),
    ("Suspended", "suspended"),
    ("Restarting", "pending"),
    ("Running", "running"),
)


def name_of(thing: Object) -> str:
    """Return the object's name."""
    return str(thing["metadata"]["name"])


def place_of(thing: Object, name: str) -> tuple[str, str]:
    """Return (namespace, ``name``)."""
    return str(thing["metadata"].get("namespace", "default")), name


def entry_of(
    job: Object, pods: Sequence[Object], preparing: Sequence[Object] = (), evaluating: Sequence[Object] = ()
) -> Entry:
    """Return the entry of a job with its pods, those that prepare its data and those that evaluate its model."""
    metadata = job["metadata"]
    annotations = metadata.get("annotations") or {}
    pods = sorted(pods, key=name_of)
    wanted = pods_wanted(job)
    state, reason = _state(job, pods, wanted, str(annotations.get(MEMORY, "")))
    if state == "suspended" and preparing:
        pods = [_newest(preparing)]
        wanted, (state, reason) = 1, _preparation(pods[0])
    if state == "completed" and evaluating:
        reason = _evaluation(_newest(evaluating))
    nodes = sorted({pod["spec"]["nodeName"] for pod in pods if pod.get("spec", {}).get("nodeName")})
    counts = [c.get("restartCount", 0) for pod in pods for c in pod.get("status", {}).get("containerStatuses") or []]
    running = sum(_phase(pod) == "Running" for pod in pods)
    return Entry(
        target="kubernetes",
        id="/".join(place_of(job, metadata["name"])),
        name=metadata["name"],
        state=state,
        reason=reason,
        run=annotations.get(OUTPUT, ""),
        log=pods[0]["metadata"]["name"] if pods else "",
        nodes=",".join(nodes),
        pods=f"{running}/{max(wanted, len(pods))}" if pods else "",
        restarts=sum(counts) + int(job.get("status", {}).get("restarts") or 0),
    )


def _newest(pods: Sequence[Object]) -> Object:
    return max(pods, key=lambda pod: str(pod["metadata"].get("creationTimestamp")))


def _evaluation(pod: Object) -> str:
    """Return how far the evaluation of a complete training is, empty once it is complete, too."""
    phase, reason = _phase(pod), pod_reason(pod)
    if phase == "Succeeded":
        return ""
    if phase == "Failed":
        return f"the evaluation failed: {reason or name_of(pod)}"
    return f"{name_of(pod)}: evaluating" if phase == "Running" else f"waits to evaluate: {reason or name_of(pod)}"


def unseen_entry(job: Object) -> Entry:
    """Return the entry of a job whose pods the user may not list, from its conditions alone."""
    entry = entry_of({**job, "spec": {}}, [], [])
    master = "Master" in ((job.get("spec") or {}).get("pytorchReplicaSpecs") or {})
    log = f"{entry.name}-{'master' if master else 'worker'}-0" if job.get("kind") == "PyTorchJob" else ""
    return replace(entry, log=log if entry.state != "suspended" else "")


def _conditions(job: Object) -> list[Object]:
    return list(job.get("status", {}).get("conditions") or [])


def _phase(pod: Object) -> str:
    return str(pod.get("status", {}).get("phase") or "")


def pods_wanted(job: Object) -> int:
    """Return the number of pods that the job requests; 0 where its spec does not say."""
    spec = job.get("spec") or {}
    if "pytorchReplicaSpecs" in spec:
        return sum(int(replica.get("replicas", 1)) for replica in spec["pytorchReplicaSpecs"].values())
    if "trainer" in spec:
        return int(spec["trainer"].get("numNodes") or 1)
    jobs = [(part.get("replicas", 1), part["template"]["spec"]) for part in spec.get("replicatedJobs") or []]
    return sum(int(replicas) * int(one.get("parallelism", 1)) for replicas, one in jobs)


def _state(job: Object, pods: Sequence[Object], wanted: int, memory: str) -> tuple[str, str]:
    true = {condition["type"]: condition for condition in _conditions(job) if condition.get("status") == "True"}
    state, message = next(
        ((meaning, str(true[kind].get("message") or "")) for kind, meaning in _STATES if kind in true), ("", "")
    )
    phases = {_phase(pod) for pod in pods}
    missing = wanted - sum(_phase(pod) != "Failed" for pod in pods)
    if not state or (state == "running" and ("Pending" in phases or missing > 0)):
        # The condition is older than the pods, and so is its message.
        state, message = ("running" if phases == {"Running"} and missing <= 0 else "pending"), ""
    if state in ("completed", "running"):
        return state, ""
    if state == "suspended":
        queued = "kueue.x-k8s.io/queue-name" in (job["metadata"].get("labels") or {})
        return ("pending", QUEUED) if queued else (state, "suspended")
    reasons = [reason for pod in pods if (reason := pod_reason(pod, memory))]
    # The pod that ended first is the cause and the others followed; an OOM kill is always the cause.
    reasons.sort(key=lambda reason: "killed for memory" not in reason)
    said = reasons[0] if reasons else " ".join(message.split())
    if state == "pending" and pods and missing > 0:
        said = "; ".join(filter(None, (f"{missing} of {wanted} pods missing", said)))
    return state, said


def _preparation(pod: Object) -> tuple[str, str]:
    """Return the state and reason of a job that waits for its data; ``pod`` is the newest that prepares them."""
    phase, reason = (pod.get("status") or {}).get("phase"), pod_reason(pod)
    if phase == "Succeeded":
        return "suspended", "model and data are ready; waits for you to start it"
    if phase == "Failed" and "(final" in reason:
        return "failed", reason
    return "pending", reason or f"{name_of(pod)}: fetching the model and preparing the data"
