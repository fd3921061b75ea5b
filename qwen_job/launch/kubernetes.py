"""Backend kubernetes: kubectl underneath, JSON in."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections import defaultdict
from typing import Any

import yaml

from qwen_job.errors import ClusterRefused, EnvironmentFault
from qwen_job.launch.backend import Entry, Submitted
from qwen_job.launch.pods import pod_reason
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
# Words of a refusal -> what it means for the job.
_MEANINGS = (
    (r"no matches for kind \"?(\w+)", "kubernetes.kind: the cluster has no {0}: install its operator or take another"),
    (r"namespaces? \"([^\"]+)\" not found", "kubernetes.namespace: there is no namespace {0!r}: create it"),
    (r"cannot (\w+) resource \"([^\"]+)\"", "no permission to {0} {1}: ask for a role in this namespace"),
    (r"field is immutable", "name: a job of this name is there with other settings; cancel it, or take another name"),
    (r"exceeded quota", "cluster: over the namespace's quota; take fewer nodes or GPUs"),
)  # fmt: skip
_UNREACHABLE = (
    r"connection to the server|connection refused|no such host|i/o timeout|Unauthorized|current-context|"
    r"no configuration"
)


def available() -> bool:
    """Tell whether kubectl is on this machine."""
    return shutil.which("kubectl") is not None


def submit(bundle: Bundle) -> Submitted:
    """Ask the server whether it would take the objects, then apply them; the id is NAMESPACE/NAME.

    Errors: :class:`EnvironmentFault` without kubectl or a cluster; :class:`ClusterRefused` with the server's words.
    """
    _refuse_second(bundle)
    kubectl("apply", "--dry-run=server", "-f", "-", text=bundle.text)
    answer = json.loads(kubectl("apply", "-o", "json", "-f", "-", text=bundle.text))
    things = answer["items"] if answer.get("kind") == "List" else [answer]
    (job,) = [thing for thing in things if thing["kind"] in KINDS]
    return Submitted(f"{job['metadata'].get('namespace', 'default')}/{job['metadata']['name']}")


def _refuse_second(bundle: Bundle) -> None:
    """An apply over a job that is there would start nothing, or mix two jobs in one."""
    jobs = [thing for thing in yaml.load_all(bundle.text, _LOADER) if thing["kind"] in KINDS]
    for job in jobs:
        namespace = job["metadata"].get("namespace")
        where = ("--namespace", namespace) if namespace else ()
        name = job["metadata"]["name"]
        try:
            text = kubectl("get", KINDS[job["kind"]], name, *where, "--ignore-not-found", "-o", "json")
        except NoSuchKind:
            return
        if text.strip():
            state, _ = _state(json.loads(text), [])
            way_out = "'qwen-job cancel' removes it (the output stays, and a new job goes on from it)"
            raise ClusterRefused(f"name: {name!r} is there already ({state}); {way_out}, or take another name")


def entries() -> list[Entry]:
    """Return the jobs that were made by qwen-job, newest first; all namespaces where that is allowed."""
    pods: dict[tuple[str, str], list[Object]] = defaultdict(list)
    for pod in _list("pods"):
        pods[_place(pod, pod["metadata"].get("labels", {}).get(_INSTANCE, ""))].append(pod)
    jobs = [job for resource in KINDS.values() for job in _list(resource)]
    jobs.sort(key=lambda job: str(job["metadata"].get("creationTimestamp")), reverse=True)
    return [_entry(job, pods[_place(job, job["metadata"]["name"])]) for job in jobs]


def _place(thing: Object, name: str) -> tuple[str, str]:
    return str(thing["metadata"].get("namespace", "default")), name


def _entry(job: Object, pods: list[Object]) -> Entry:
    metadata = job["metadata"]
    pods = sorted(pods, key=lambda pod: str(pod["metadata"]["name"]))
    state, reason = _state(job, pods)
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
        return state, "waits for its queue to admit it" if "kueue.x-k8s.io/queue-name" in _labels(job) else "suspended"
    return state, reasons[0] if reasons else " ".join(message.split())


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
    for kind in ("configmap", "networkpolicy", "trainingruntimes.trainer.kubeflow.org", *KINDS.values()):
        selector = f"{_INSTANCE}={name},app.kubernetes.io/name=qwen-job"
        try:
            kubectl("delete", kind, "--namespace", namespace, "-l", selector, "--wait=false", "--ignore-not-found")
        except NoSuchKind:
            continue


class NoSuchKind(ClusterRefused):
    """The cluster does not know the resource."""


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


def kubectl(*words: str, text: str | None = None) -> str:
    """Run kubectl and return its output. Errors: as :func:`submit`; :class:`NoSuchKind` for an unknown resource."""
    try:
        done = subprocess.run(["kubectl", *words], input=text, capture_output=True, text=True, check=False, timeout=120)
    except FileNotFoundError:
        way_out = "install it, or carry the manifest of 'render' to a machine that has it"
        raise EnvironmentFault(f"kubectl: not on this machine; {way_out}") from None
    except subprocess.TimeoutExpired:
        raise EnvironmentFault("kubectl: no answer within two minutes; is the cluster reachable?") from None
    if done.returncode == 0:
        return done.stdout
    said = " ".join(done.stderr.split())
    if re.search(r"doesn't have a resource type|could not find the requested resource", said):
        raise NoSuchKind(said)
    if re.search(_UNREACHABLE, said):
        raise EnvironmentFault(f"kubectl reaches no cluster: {said}; check the kubeconfig ('kubectl cluster-info')")
    for pattern, meaning in _MEANINGS:
        found = re.search(pattern, said)
        if found:
            raise ClusterRefused(f"{meaning.format(*found.groups())} ({said})")
    raise ClusterRefused(f"Kubernetes refuses: {said}")
