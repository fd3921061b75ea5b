"""Backend kubernetes: runs kubectl and reads its JSON."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from qwen_job.errors import ClusterRefused, EnvironmentFault
from qwen_job.launch.backend import Backend, Entry, Submitted
from qwen_job.launch.index import submissions
from qwen_job.launch.kubernetes.kubectl import Forbidden, NoSuchKind, kubectl, refusal
from qwen_job.launch.kubernetes.needed import refuse_missing
from qwen_job.launch.kubernetes.pod_progress import pod_progress
from qwen_job.launch.kubernetes.reasons import is_unexplained, why
from qwen_job.launch.kubernetes.state import entry_of, name_of, place_of, unseen_entry
from qwen_job.launch.outputs import show_output
from qwen_job.render.bundle import Bundle
from qwen_job.run.progress import Progress

Object = dict[str, Any]
KINDS = {
    "PyTorchJob": "pytorchjobs.kubeflow.org",
    "TrainJob": "trainjobs.trainer.kubeflow.org",
    "JobSet": "jobsets.jobset.x-k8s.io",
}
_OURS = ("-l", "app.kubernetes.io/name=qwen-job", "-o", "json")
_APPLY = ("apply", "--server-side", "--force-conflicts", "--field-manager=qwen-job")
_ACCESS = ("rolebindings", "roles", "serviceaccounts")
# Names of the Jobs beside the training that have pods which status shows, and of all.
_SIDE_PODS = ("-prepare", "-evaluate")
_SIDE_JOBS = (*_SIDE_PODS, "-starter")
_INSTANCE = "app.kubernetes.io/instance"
# Where listing all namespaces is forbidden, at most this many namespaces of past submissions are listed.
_MOST_NAMESPACES = 8


class KubernetesBackend(Backend):
    """Submits, lists and deletes with kubectl, which uses the current context of the kubeconfig."""

    def available(self) -> bool:
        """Tell whether kubectl is on this machine."""
        return shutil.which("kubectl") is not None

    def set_up(self) -> bool:
        """Tell whether kubectl has a kubeconfig, or runs in a pod; without both it would ask localhost."""
        files = os.environ.get("KUBECONFIG", "").split(os.pathsep)
        config = any(Path(file).exists() for file in files if file) or (Path.home() / ".kube" / "config").exists()
        return self.available() and (config or "KUBERNETES_SERVICE_HOST" in os.environ)

    def submit(self, bundle: Bundle, options: Sequence[str] = ()) -> Submitted:
        """Let the server validate the objects, then apply them; the id is NAMESPACE/NAME.

        Raises:
            EnvironmentFault: without kubectl or a cluster.
            ClusterRefused: with the server's message.
        """
        things = [dict(thing) for thing in bundle.objects]
        _refuse_second(things)
        refuse_missing(things)
        # Trainer refuses a TrainJob without its runtime, which a dry run does not create.
        asked = [thing for thing in things if thing["kind"] != "TrainJob"]
        kubectl(*_APPLY, "--dry-run=server", "-f", "-", text=_documents(asked))
        answer = json.loads(kubectl(*_APPLY, "-o", "json", "-f", "-", text=bundle.text))
        things = answer["items"] if answer.get("kind") == "List" else [answer]
        (job,) = [thing for thing in things if thing["kind"] in KINDS]
        return Submitted(f"{job['metadata'].get('namespace', 'default')}/{job['metadata']['name']}")

    def entries(self, cluster: str = "") -> list[Entry]:
        """Return the jobs that qwen-job created, newest first, from all namespaces where that is allowed.

        Kinds that the user may not list are left out, with a note on stderr.

        Raises:
            Forbidden: when no kind may be listed.
        """
        pods, jobs = _listed()
        of_job: dict[tuple[str, str], list[Object]] = defaultdict(list)
        for pod in pods or ():
            of_job[place_of(pod, pod["metadata"].get("labels", {}).get(_INSTANCE, ""))].append(pod)
        jobs.sort(key=lambda job: str(job["metadata"].get("creationTimestamp")), reverse=True)
        if pods is None:
            return [unseen_entry(job) for job in jobs]
        return [
            entry_of(job, *(of_job[place_of(job, f"{name_of(job)}{suffix}")] for suffix in ("", *_SIDE_PODS)))
            for job in jobs
        ]

    def logs(self, entry: Entry, *, follow: bool) -> int:
        """Print the first pod's output, with ``follow`` until it ends or is interrupted.

        Raises:
            EnvironmentFault: when the job has no pod, and as :func:`kubectl`.
        """
        if not entry.log:
            raise EnvironmentFault(f"{entry.id}: has no pod (yet), so no output: {entry.reason or entry.state}")
        namespace = entry.id.partition("/")[0]
        words = ["kubectl", "logs", "--namespace", namespace, *(["--follow"] if follow else []), entry.log]
        errors: list[str] = []
        if show_output(words, errors):
            raise refusal("".join(errors))
        return 0

    def cancel(self, entry: Entry) -> None:
        """Delete the job and what was created for it, except claims; its pods get their time to save.

        Objects that the user may not delete do not stop the rest: the user cannot have created them either, or a note
        names them.

        Raises:
            Forbidden: when the job itself may not be deleted.
        """
        namespace, _, name = entry.id.partition("/")
        where = ("--namespace", namespace)
        refused: list[Forbidden] = []
        done = entry.is_over
        for kind in KINDS.values():
            try:
                done = _remove(kind, name, *where) or done
            except NoSuchKind:
                continue
            except Forbidden as error:
                refused.append(error)
        if refused and not done:
            raise refused[0]
        _remove_rest(name, *where)

    def progress(self, entries: Sequence[Entry], seconds: float) -> list[Progress]:
        """Ask the jobs' own pods for their progress, all at once; empty for one that does not answer in time."""
        with ThreadPoolExecutor(8) as several:
            return list(several.map(lambda entry: pod_progress(entry, time.monotonic() + seconds), entries))

    def is_unexplained(self, entry: Entry) -> bool:
        """Tell whether :meth:`reasons` may know more about the job than its pods do."""
        return is_unexplained(entry)

    def reasons(self, entries: Sequence[Entry], seconds: float) -> list[str]:
        """Ask for warnings about jobs whose pods do not explain why they wait, all at once; empty without any."""
        with ThreadPoolExecutor(8) as several:
            return list(several.map(lambda entry: why(entry, time.monotonic() + seconds), entries))


def _documents(things: list[Object]) -> str:
    return "".join(f"---\n{json.dumps(thing)}\n" for thing in things)


def _refuse_second(things: list[Object]) -> None:
    """Reject a job whose name is taken, since apply would mix the two; delete what a past job of that name left."""
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
            state = entry_of(json.loads(text), [], []).state
            fix = "'qwen-job cancel' removes it (its output stays, and a new job resumes from it)"
            raise ClusterRefused(f"name: job {name!r} already exists ({state}); {fix}, or use another name")
    # ConfigMaps and the template of a Job are immutable, so leftovers of a deleted job would be in the way.
    for kind in ("configmap", "jobs.batch"):
        with suppress(Forbidden):
            _remove(kind, name, *where)


def _remove(kind: str, name: str, *where: str) -> bool:
    """Delete the objects that we created for the job; return whether there were any.

    A user who may not list may still delete by name; the labels are checked first, because it may not be ours.

    Raises:
        Forbidden: when neither is allowed.
    """
    ours = {_INSTANCE: name, "app.kubernetes.io/name": "qwen-job"}
    delete = ("delete", kind, *where, "--wait=false", "--ignore-not-found", "-o", "name")
    try:
        return bool(kubectl(*delete, "-l", ",".join(f"{key}={value}" for key, value in ours.items())).strip())
    except Forbidden as error:
        names = [f"{name}{side}" for side in _SIDE_JOBS] if kind in ("jobs.batch", *_ACCESS) else [name]
        try:
            there = [own for own in names if ours.items() <= _labels(kind, own, *where).items()]
        except (ClusterRefused, ValueError, KeyError):
            raise error from None
        return bool(there) and bool(kubectl(*delete, *there).strip())


def _labels(kind: str, name: str, *where: str) -> Object:
    """Return the object's labels, empty where it does not exist."""
    text = kubectl("get", kind, name, *where, "--ignore-not-found", "-o", "json")
    return dict(json.loads(text)["metadata"].get("labels") or {}) if text.strip() else {}


def _listed() -> tuple[list[Object] | None, list[Object]]:
    """Return the pods (None where they may not be listed) and the jobs of all kinds."""
    resources = ("pods", *KINDS.values())
    with ThreadPoolExecutor() as several:
        pods, *lists = several.map(_list, resources)
    refused = [items for items in lists if isinstance(items, Forbidden)]
    if refused and not any(isinstance(items, list) for items in lists):
        raise refused[0]
    answers = zip(resources, (pods, *lists), strict=True)
    if unseen := [kind for kind, items in answers if isinstance(items, Forbidden)]:
        _note(f"no permission to list {', '.join(unseen)}: their information is not shown")
    jobs = [job for items in lists if not isinstance(items, Forbidden) for job in items or ()]
    return None if isinstance(pods, Forbidden) else pods or [], jobs


def _remove_rest(name: str, *where: str) -> None:
    """Delete what was created for a job."""
    left = []
    for kind in ("trainingruntimes.trainer.kubeflow.org", "jobs.batch", "configmap", "networkpolicy", *_ACCESS):
        try:
            _remove(kind, name, *where)
        except NoSuchKind:
            continue
        except Forbidden:
            # Most users may not read roles or runtimes, and most jobs have none.
            if kind == "configmap":
                left.append(f"{kind} {name}")
    if left:
        _note(
            f"no permission to delete {', '.join(left)}: give a changed job another name, or ask somebody to delete it"
        )


@lru_cache(maxsize=64)
def _note(words: str) -> None:
    """Print a note to stderr, once per process."""
    print(f"note: {words}", file=sys.stderr)


def _list(resource: str) -> list[Object] | Forbidden | None:
    """Return our objects, the refusal to list any, or None for a kind that the cluster does not know."""
    try:
        return _items(resource, "--all-namespaces")
    except NoSuchKind:
        return None
    except ClusterRefused:
        found: dict[str, Object] = {}
        refused: list[Forbidden] = []
        places = ["", *dict.fromkeys(i.id.partition("/")[0] for i in submissions() if i.target == "kubernetes")]
        for namespace in places[: _MOST_NAMESPACES + 1]:
            try:
                items = _items(resource, *(("--namespace", namespace) if namespace else ()))
                found |= {"/".join(place_of(item, name_of(item))): item for item in items}
            except NoSuchKind:
                return None
            except Forbidden as error:
                refused.append(error)
        return refused[0] if refused and len(refused) == len(places[: _MOST_NAMESPACES + 1]) else list(found.values())


def _items(resource: str, *where: str) -> list[Object]:
    text = kubectl("get", resource, *where, *_OURS)
    try:
        items: list[Object] = json.loads(text)["items"]
    except (ValueError, KeyError, TypeError):
        raise EnvironmentFault(f"kubectl get {resource}: unexpected JSON") from None
    return items
