"""Check that everything a job refers to exists: a server accepts the job without it, but its pods never start."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

from qwen_job.errors import ClusterRefused
from qwen_job.launch.kubernetes.kubectl import Forbidden, NoSuchKind, kubectl

Object = dict[str, Any]


class _Needed(NamedTuple):
    """An object that must exist; without a name, a kind that the cluster must have."""

    field: str
    resource: str
    name: str
    what: str
    instead: str


def refuse_missing(things: list[Object]) -> None:
    """Look up everything that the objects refer to.

    Objects that the user may not read are skipped; ``status`` shows the server's own message later.

    Raises:
        ClusterRefused: something is missing; the message names its field.
    """
    namespace = things[-1]["metadata"].get("namespace")
    where = ("--namespace", namespace) if namespace else ()
    for needed in dict.fromkeys(_needed(things)):
        try:
            name = (needed.name,) if needed.name else ()
            found = kubectl("get", needed.resource, *name, *where, "--ignore-not-found", "-o", "name")
        except Forbidden:
            continue
        except NoSuchKind:
            raise ClusterRefused(
                f"{needed.field}: the cluster has no {needed.what}; install it, or remove the line"
            ) from None
        if needed.name and not found.strip():
            place = f"in the namespace {namespace or 'of the current context'}"
            place = "in this cluster" if needed.resource in _CLUSTER else place
            raise ClusterRefused(f"{needed.field}: there is no {needed.what} {needed.name!r} {place}; {needed.instead}")


_CLUSTER = ("priorityclasses.scheduling.k8s.io", "queues.scheduling.volcano.sh")
_KUEUE, _VOLCANO = "localqueues.kueue.x-k8s.io", "podgroups.scheduling.volcano.sh"
_SCHEDULERS = {
    "volcano": (_VOLCANO, "Volcano"),
    "scheduler-plugins-scheduler": ("podgroups.scheduling.x-k8s.io", "scheduler plugins (coscheduling)"),
}


def _needed(things: list[Object]) -> Iterator[_Needed]:
    made = {(thing["kind"], thing["metadata"]["name"]) for thing in things}
    instead = "create it, name another, or remove the line"
    for key, value in (pair for thing in things for pair in _pairs(thing)):
        if not isinstance(value, str):
            continue
        if key == "claimName" and ("PersistentVolumeClaim", value) not in made:
            size = "create it, name another, or set a size to have it created"
            yield _Needed("kubernetes.volumes", "persistentvolumeclaims", value, "claim", size)
        elif key == "serviceAccountName" and ("ServiceAccount", value) not in made:
            yield _Needed("kubernetes.service_account", "serviceaccounts", value, "service account", instead)
        elif key == "priorityClassName":
            yield _Needed("kubernetes.priority_class", _CLUSTER[0], value, "priority class", instead)
        elif key in ("kueue.x-k8s.io/queue-name", "--queue"):
            yield _Needed("kubernetes.queue", _KUEUE, value, "Kueue LocalQueue", instead)
        elif key == "schedulerName" and value in _SCHEDULERS:
            yield _Needed("kubernetes.queue", _SCHEDULERS[value][0], "", _SCHEDULERS[value][1], instead)
    for queue in _volcano_queues(things):
        yield _Needed("kubernetes.queue", _CLUSTER[1], queue, "Volcano queue", instead)


def _volcano_queues(things: list[Object]) -> Iterator[str]:
    spec = things[-1].get("spec") or {}
    queue = ((spec.get("runPolicy") or {}).get("schedulingPolicy") or {}).get("queue")
    if isinstance(queue, str):
        yield queue
    for key, value in (pair for thing in things for pair in _pairs(thing)):
        if key == "scheduling.volcano.sh/queue-name":
            yield str(value)


def _pairs(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield every key with its value, and every option of a command with the word after it."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield str(key), item
            yield from _pairs(item)
    elif isinstance(value, list):
        yield from ((word, after) for word, after in pairwise(value) if word == "--queue")
        for item in value:
            yield from _pairs(item)
