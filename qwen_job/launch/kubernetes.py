"""Backend kubernetes: kubectl underneath, JSON in."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import yaml

from qwen_job.errors import ClusterRefused, EnvironmentFault
from qwen_job.launch.backend import Entry, Submitted
from qwen_job.launch.events import why_no_pods
from qwen_job.launch.kubectl import Forbidden, NoSuchKind, kubectl
from qwen_job.launch.pod_progress import pod_progress
from qwen_job.launch.pods import pod_reason
from qwen_job.launch.progress import Progress
from qwen_job.render.bundle import Bundle
from qwen_job.render.kubernetes import OUTPUT

Object = dict[str, Any]
KINDS = {
    "PyTorchJob": "pytorchjobs.kubeflow.org",
    "TrainJob": "trainjobs.trainer.kubeflow.org",
    "JobSet": "jobsets.jobset.x-k8s.io",
}
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_OURS = ("-l", "app.kubernetes.io/name=qwen-job", "-o", "json")
_APPLY = ("apply", "--server-side", "--force-conflicts", "--field-manager=qwen-job")
_ACCESS = ("rolebindings", "roles", "serviceaccounts")
_INSTANCE = "app.kubernetes.io/instance"
# Conditions from the most telling on, and the state that each one means.
_STATES = (
    ("Failed", "failed"),
    ("Succeeded", "completed"),
    ("Complete", "completed"),
    ("Completed", "completed"),
    ("Suspended", "suspended"),
    ("Restarting", "pending"),
    ("Running", "running"),
)


def available() -> bool:
    """Tell whether kubectl is on this machine."""
    return shutil.which("kubectl") is not None


def submit(bundle: Bundle) -> Submitted:
    """Ask the server whether it would take the objects, then apply them; the id is NAMESPACE/NAME.

    Errors: :class:`EnvironmentFault` without kubectl or a cluster; :class:`ClusterRefused` with the server's words.
    """
    things = list(yaml.load_all(bundle.text, _LOADER))
    _refuse_second(things)
    _refuse_missing_claims(things)
    # Trainer refuses a TrainJob whose runtime is not there, as in a dry run it cannot be.
    asked = [thing for thing in things if thing["kind"] != "TrainJob"]
    kubectl(*_APPLY, "--dry-run=server", "-f", "-", text=_documents(asked))
    answer = json.loads(kubectl(*_APPLY, "-o", "json", "-f", "-", text=bundle.text))
    things = answer["items"] if answer.get("kind") == "List" else [answer]
    (job,) = [thing for thing in things if thing["kind"] in KINDS]
    return Submitted(f"{job['metadata'].get('namespace', 'default')}/{job['metadata']['name']}")


def _documents(things: list[Object]) -> str:
    return "".join(f"---\n{json.dumps(thing)}\n" for thing in things)


def _refuse_second(things: list[Object]) -> None:
    """An apply over a job that is there would start nothing, or mix two jobs; what a past one left is cleared away."""
    (job,) = [thing for thing in things if thing["kind"] in KINDS]
    name, namespace = job["metadata"]["name"], job["metadata"].get("namespace")
    where = ("--namespace", namespace) if namespace else ()
    for kind, resource in KINDS.items():
        try:
            text = kubectl("get", resource, name, *where, "--ignore-not-found", "-o", "json")
        except NoSuchKind:
            continue
        except Forbidden:
            if kind == job["kind"]:
                raise
            continue
        if text.strip():
            state, _ = _state(json.loads(text), [])
            way_out = "'qwen-job cancel' removes it (the output stays, and a new job goes on from it)"
            raise ClusterRefused(f"name: {name!r} is there already ({state}); {way_out}, or take another name")
    # A ConfigMap and a Job's template never change: those of a job that is gone would be in the way.
    for kind in ("configmap", "jobs.batch"):
        with suppress(Forbidden):
            _remove(kind, name, *where)


def _refuse_missing_claims(things: list[Object]) -> None:
    """A pod whose claim is not there waits for ever, and the server takes it all the same."""
    made = {_name(thing) for thing in things if thing["kind"] == "PersistentVolumeClaim"}
    wanted = {name for thing in things for name in _claims(thing)} - made
    namespace = things[-1]["metadata"].get("namespace")
    where = ("--namespace", namespace) if namespace else ()
    for name in sorted(wanted):
        try:
            found = kubectl("get", "persistentvolumeclaims", name, *where, "--ignore-not-found", "-o", "name")
        except Forbidden:
            return
        if not found.strip():
            raise ClusterRefused(
                f"kubernetes.volumes: there is no claim {name!r} in the namespace {namespace or 'of this context'}: "
                "create it, name another, or write a size to have it created"
            )


def _claims(value: Any) -> Iterator[str]:
    if isinstance(value, dict) and isinstance(value.get("claimName"), str):
        yield value["claimName"]
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _claims(item)


def _remove(kind: str, name: str, *where: str) -> None:
    selector = f"{_INSTANCE}={name},app.kubernetes.io/name=qwen-job"
    kubectl("delete", kind, *where, "-l", selector, "--wait=false", "--ignore-not-found")


def entries() -> list[Entry]:
    """Return the jobs that were made by qwen-job, newest first; all namespaces where that is allowed."""
    with ThreadPoolExecutor() as several:
        found, *lists = several.map(_list, ("pods", *KINDS.values()))
    pods: dict[tuple[str, str], list[Object]] = defaultdict(list)
    for pod in found:
        pods[_place(pod, pod["metadata"].get("labels", {}).get(_INSTANCE, ""))].append(pod)
    jobs = [job for jobs in lists for job in jobs]
    jobs.sort(key=lambda job: str(job["metadata"].get("creationTimestamp")), reverse=True)
    return [_entry(job, pods[_place(job, _name(job))], pods[_place(job, f"{_name(job)}-prepare")]) for job in jobs]


def _name(thing: Object) -> str:
    return str(thing["metadata"]["name"])


def _place(thing: Object, name: str) -> tuple[str, str]:
    return str(thing["metadata"].get("namespace", "default")), name


def _entry(job: Object, pods: list[Object], preparing: list[Object]) -> Entry:
    metadata = job["metadata"]
    pods = sorted(pods, key=_name)
    state, reason = _state(job, pods)
    if state == "suspended" and preparing:
        pods = [max(preparing, key=lambda pod: str(pod["metadata"].get("creationTimestamp")))]
        state, reason = _preparation(pods[0])
    nodes = sorted({pod["spec"]["nodeName"] for pod in pods if pod.get("spec", {}).get("nodeName")})
    counts = [c.get("restartCount", 0) for pod in pods for c in pod.get("status", {}).get("containerStatuses") or []]
    return Entry(
        target="kubernetes",
        id="/".join(_place(job, metadata["name"])),
        name=metadata["name"],
        state=state,
        reason=reason,
        run=(metadata.get("annotations") or {}).get(OUTPUT, ""),
        log=pods[0]["metadata"]["name"] if pods else "",
        nodes=",".join(nodes),
        pods=f"{sum(pod.get('status', {}).get('phase') == 'Running' for pod in pods)}/{len(pods)}" if pods else "",
        restarts=sum(counts) + int(job.get("status", {}).get("restarts") or 0),
    )


def _state(job: Object, pods: list[Object]) -> tuple[str, str]:
    given = job.get("status", {}).get("conditions") or []
    true = {condition["type"]: condition for condition in given if condition.get("status") == "True"}
    state, message = "", ""
    for kind, meaning in _STATES:
        if kind in true:
            state, message = meaning, str(true[kind].get("message") or "")
            break
    phases = {pod.get("status", {}).get("phase") for pod in pods}
    if not state or (state == "running" and "Pending" in phases):
        state = "running" if phases == {"Running"} else "pending"
    if state in ("completed", "running"):
        return state, ""
    reasons = [reason for pod in pods if (reason := pod_reason(pod))]
    if state == "suspended":
        queued = "kueue.x-k8s.io/queue-name" in _labels(job)
        return ("pending", "waits for its queue to admit it") if queued else (state, "suspended")
    return state, reasons[0] if reasons else " ".join(message.split())


def _preparation(pod: Object) -> tuple[str, str]:
    """Return state and reason of a job that waits for its preparation, whose newest pod this is."""
    phase, reason = (pod.get("status") or {}).get("phase"), pod_reason(pod)
    if phase == "Succeeded":
        return "suspended", "model and data are prepared; waits for somebody to start it"
    if phase == "Failed" and "(final" in reason:
        return "failed", reason
    return "pending", reason or f"{_name(pod)}: fetches the model and prepares the data"


def _labels(job: Object) -> Object:
    return job["metadata"].get("labels") or {}


def logs(entry: Entry, *, follow: bool) -> int:
    """Print the first pod's output, with ``follow`` until it ends or is interrupted."""
    if not entry.log:
        raise EnvironmentFault(f"{entry.id}: has no pod (yet), so no output: {entry.reason or entry.state}")
    namespace = entry.id.partition("/")[0]
    words = ["kubectl", "logs", "--namespace", namespace, *(["--follow"] if follow else []), entry.log]
    try:
        return subprocess.run(words, check=False).returncode
    except KeyboardInterrupt:
        return 0


def cancel(entry: Entry) -> None:
    """Delete the job and what was made for it, claims excepted; its pods get their time to save."""
    namespace, _, name = entry.id.partition("/")
    kinds = (
        *KINDS.values(),
        "trainingruntimes.trainer.kubeflow.org",
        "jobs.batch",
        "configmap",
        "networkpolicy",
        *_ACCESS,
    )
    for kind in kinds:
        try:
            _remove(kind, name, "--namespace", namespace)
        except NoSuchKind:
            continue
        except Forbidden:
            # Most users may not look at roles, and most jobs have none.
            if kind not in _ACCESS:
                raise


def progress(entries: Sequence[Entry], *, seconds: float) -> list[Progress]:
    """Ask the jobs' own pods how far they are, all at once; one that does not answer in time gives nothing."""
    with ThreadPoolExecutor(8) as several:
        return list(several.map(lambda entry: pod_progress(entry, time.monotonic() + seconds), entries))


def reasons(entries: Sequence[Entry], *, seconds: float) -> list[str]:
    """Ask for the warnings about jobs that have no pods, all at once; empty where there is none, or not in time."""
    with ThreadPoolExecutor(8) as several:
        return list(several.map(lambda entry: why_no_pods(entry, time.monotonic() + seconds), entries))


def _list(resource: str) -> list[Object]:
    try:
        text = kubectl("get", resource, "--all-namespaces", *_OURS)
    except NoSuchKind:
        return []
    except ClusterRefused:
        text = kubectl("get", resource, *_OURS)
    try:
        items: list[Object] = json.loads(text)["items"]
    except (ValueError, KeyError, TypeError):
        raise EnvironmentFault(f"kubectl get {resource}: not the JSON that was expected") from None
    return items
