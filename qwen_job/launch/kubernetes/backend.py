"""Backend kubernetes: kubectl underneath, JSON in."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache
from typing import Any

import yaml

from qwen_job.errors import ClusterRefused, EnvironmentFault
from qwen_job.launch.backend import Entry, Submitted
from qwen_job.launch.index import submissions
from qwen_job.launch.kubernetes.events import why
from qwen_job.launch.kubernetes.kubectl import Forbidden, NoSuchKind, kubectl, refusal
from qwen_job.launch.kubernetes.needed import refuse_missing
from qwen_job.launch.kubernetes.progress import pod_progress
from qwen_job.launch.kubernetes.state import entry_of, is_unexplained, name_of, place_of, unseen_entry
from qwen_job.launch.outputs import show_output
from qwen_job.render.bundle import Bundle
from qwen_job.run.progress import Progress
from qwen_job.strict_yaml import Loader

Object = dict[str, Any]
KINDS = {
    "PyTorchJob": "pytorchjobs.kubeflow.org",
    "TrainJob": "trainjobs.trainer.kubeflow.org",
    "JobSet": "jobsets.jobset.x-k8s.io",
}
_OURS = ("-l", "app.kubernetes.io/name=qwen-job", "-o", "json")
_APPLY = ("apply", "--server-side", "--force-conflicts", "--field-manager=qwen-job")
_ACCESS = ("rolebindings", "roles", "serviceaccounts")
_INSTANCE = "app.kubernetes.io/instance"
# Namespaces of past submissions that are looked into where a list of all namespaces is forbidden.
_MOST_NAMESPACES = 8


def available() -> bool:
    """Tell whether kubectl is on this machine."""
    return shutil.which("kubectl") is not None


def submit(bundle: Bundle) -> Submitted:
    """Ask the server whether it would take the objects, then apply them; the id is NAMESPACE/NAME.

    Errors: :class:`EnvironmentFault` without kubectl or a cluster; :class:`ClusterRefused` with the server's words.
    """
    things = list(yaml.load_all(bundle.text, Loader))
    _refuse_second(things)
    refuse_missing(things)
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
            state = entry_of(json.loads(text), [], []).state
            way_out = "'qwen-job cancel' removes it (the output stays, and a new job goes on from it)"
            raise ClusterRefused(f"name: {name!r} is there already ({state}); {way_out}, or take another name")
    # A ConfigMap and a Job's template never change: those of a job that is gone would be in the way.
    for kind in ("configmap", "jobs.batch"):
        with suppress(Forbidden):
            _remove(kind, name, *where)


def _remove(kind: str, name: str, *where: str) -> bool:
    """Delete what is ours and the job's; return whether there was any. Errors: :class:`Forbidden`.

    Who may not list may delete by name: what lies there is looked at first, for it might be somebody else's.
    """
    ours = {_INSTANCE: name, "app.kubernetes.io/name": "qwen-job"}
    delete = ("delete", kind, *where, "--wait=false", "--ignore-not-found", "-o", "name")
    try:
        return bool(kubectl(*delete, "-l", ",".join(f"{key}={value}" for key, value in ours.items())).strip())
    except Forbidden as error:
        own = f"{name}-prepare" if kind in ("jobs.batch", *_ACCESS) else name
        try:
            text = kubectl("get", kind, own, *where, "--ignore-not-found", "-o", "json")
            labels = json.loads(text)["metadata"].get("labels") or {} if text.strip() else {}
        except (ClusterRefused, ValueError, KeyError):
            raise error from None
        return ours.items() <= labels.items() and bool(kubectl(*delete, own).strip())


def entries() -> list[Entry]:
    """Return the jobs that were made by qwen-job, newest first; all namespaces where that is allowed.

    Kinds that the user may not list are left out, which is said once.

    Errors: :class:`Forbidden` where no kind may be listed.
    """
    with ThreadPoolExecutor() as several:
        found, *lists = several.map(_list, ("pods", *KINDS.values()))
    refused = [items for items in lists if isinstance(items, Forbidden)]
    jobs = [job for items in lists if not isinstance(items, Forbidden) for job in items or ()]
    if refused and not any(isinstance(items, list) for items in lists):
        raise refused[0]
    asked = zip(("pods", *KINDS.values()), (found, *lists), strict=True)
    unseen = [kind for kind, items in asked if isinstance(items, Forbidden)]
    if unseen:
        _say(f"no permission to list {', '.join(unseen)}: what they would tell is not shown")
    pods: dict[tuple[str, str], list[Object]] = defaultdict(list)
    for pod in found if isinstance(found, list) else ():
        pods[place_of(pod, pod["metadata"].get("labels", {}).get(_INSTANCE, ""))].append(pod)
    jobs.sort(key=lambda job: str(job["metadata"].get("creationTimestamp")), reverse=True)
    seen = not isinstance(found, Forbidden)
    made = [(job, pods[place_of(job, name_of(job))], pods[place_of(job, f"{name_of(job)}-prepare")]) for job in jobs]
    return [entry_of(*parts) if seen else unseen_entry(parts[0]) for parts in made]


@lru_cache(maxsize=64)
def _say(words: str) -> None:
    """Print a note to stderr, once a process."""
    print(f"note: {words}", file=sys.stderr)


def logs(entry: Entry, *, follow: bool) -> int:
    """Print the first pod's output, with ``follow`` until it ends or is interrupted. Errors: as :func:`kubectl`'s."""
    if not entry.log:
        raise EnvironmentFault(f"{entry.id}: has no pod (yet), so no output: {entry.reason or entry.state}")
    namespace = entry.id.partition("/")[0]
    words = ["kubectl", "logs", "--namespace", namespace, *(["--follow"] if follow else []), entry.log]
    errors: list[str] = []
    code = show_output(words, errors)
    if code:
        raise refusal("".join(errors))
    return 0


def cancel(entry: Entry) -> None:
    """Delete the job and what was made for it, claims excepted; its pods get their time to save.

    What the user may not delete does not stop the rest: nobody without the right to make it has made it, or it is said.

    Errors: :class:`Forbidden` where the job itself may not be deleted.
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
    left = []
    for kind in ("trainingruntimes.trainer.kubeflow.org", "jobs.batch", "configmap", "networkpolicy", *_ACCESS):
        try:
            _remove(kind, name, *where)
        except NoSuchKind:
            continue
        except Forbidden:
            # Most users may not look at roles or runtimes, and most jobs have none.
            if kind == "configmap":
                left.append(f"{kind} {name}")
    if left:
        _say(f"no permission to delete {', '.join(left)}: a changed job needs another name, or somebody who removes it")


def progress(entries: Sequence[Entry], *, seconds: float) -> list[Progress]:
    """Ask the jobs' own pods how far they are, all at once; one that does not answer in time gives nothing."""
    with ThreadPoolExecutor(8) as several:
        return list(several.map(lambda entry: pod_progress(entry, time.monotonic() + seconds), entries))


def unexplained(entry: Entry) -> bool:
    """Tell whether :func:`reasons` may know more of a job than its pods."""
    return is_unexplained(entry)


def reasons(entries: Sequence[Entry], *, seconds: float) -> list[str]:
    """Ask for the warnings about jobs whose pods do not say why they wait, all at once; empty where there is none."""
    with ThreadPoolExecutor(8) as several:
        return list(several.map(lambda entry: why(entry, time.monotonic() + seconds), entries))


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
        raise EnvironmentFault(f"kubectl get {resource}: not the JSON that was expected") from None
    return items
