"""Faults in objects with a user's own fields that an API server rejects, or accepts although they are wrong."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any

from qwen_job.errors import Problem
from qwen_job.job.document import Path
from qwen_job.plan import Plan
from qwen_job.render.kubernetes.needs import simple_bytes

Object = dict[str, Any]
# The server's own limits: of all annotations of an object together, and of an object in etcd.
MAX_ANNOTATIONS = 256 * 1024
MAX_OBJECT = 1_500_000
_RESTARTS = ("Always", "OnFailure", "Never")
_QUANTITY = re.compile(r"\+?([0-9]+(\.[0-9]*)?|\.[0-9]+)([KMGTPE]i|[numkMGTPE]|[eE][-+]?[0-9]+)?")
_WORDS = {
    "dnsPolicy": ("ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"),
    "imagePullPolicy": ("Always", "IfNotPresent", "Never"),
    "preemptionPolicy": ("Never", "PreemptLowerPriority"),
}


def object_problems(plan: Plan, things: list[Object]) -> Iterator[Problem]:
    """Yield the problems, each with the field of job.yaml that causes it."""
    for field, text in _found(things):
        yield plan.job.problem(("kubernetes", *field), text)


def size_notes(things: list[Object]) -> list[str]:
    """Return notes about objects too large for ``kubectl apply``, which keeps a copy of each in an annotation."""
    return [
        f"{thing['kind']} {thing['metadata']['name']} is over 256 KiB: use kubectl apply --server-side"
        for thing in things
        if len(json.dumps(thing)) > MAX_ANNOTATIONS
    ]


def _found(things: list[Object]) -> Iterator[tuple[Path, str]]:
    job = things[-1]
    for thing in things:
        annotations = thing["metadata"].get("annotations") or {}
        if sum(len(f"{key}{value}".encode()) for key, value in annotations.items()) > MAX_ANNOTATIONS:
            yield ("annotations",), "together over 256 KiB, the limit for an object; shorten them"
            return
        if len(json.dumps(thing)) > MAX_OBJECT:
            yield (
                ("job",),
                f"the {thing['kind']} is over 1.5 MB, the server's limit; put large values in files",
            )
    if job["kind"] == "PyTorchJob":
        yield from _pytorchjob(job["spec"])
    elif job["kind"] == "TrainJob":
        yield from _trainjob(job["spec"])
    for thing in things:
        for field, pod, wanted in _pods(thing):
            yield from _pod(field, pod, wanted)


def _pods(thing: Object) -> Iterator[tuple[str, Object, str]]:
    """Yield (the field that is merged into the pod, the pod's spec, the container that it must have)."""
    spec = thing.get("spec") or {}
    if thing["kind"] == "PyTorchJob":
        for replica in spec["pytorchReplicaSpecs"].values():
            yield "pod", replica["template"]["spec"], "pytorch"
    elif thing["kind"] == "Job":
        yield from _side_pod(spec["template"])
    elif thing["kind"] in ("JobSet", "TrainingRuntime"):
        jobs = spec if thing["kind"] == "JobSet" else spec["template"]["spec"]
        for replicated in jobs["replicatedJobs"]:
            yield "pod", replicated["template"]["spec"]["template"]["spec"], "node"


def _side_pod(template: Object) -> Iterator[tuple[str, Object, str]]:
    pod, component = template["spec"], template["metadata"]["labels"]["app.kubernetes.io/component"]
    if component == "prepare":
        yield "prepare_pod", pod, "prepare"
    elif component == "evaluate":
        # The fields of the training's pods, which were checked there, are merged into it.
        yield "pod", pod, str(pod["containers"][0].get("name"))


def _word(field: Path, name: str, value: Any, words: tuple[str, ...]) -> Iterator[tuple[Path, str]]:
    if value is not None and value not in words:
        yield field, f"{name}: {value!r} must be one of {', '.join(words)}"


def _pytorchjob(spec: Object) -> Iterator[tuple[Path, str]]:
    field = ("job",)
    policy = spec.get("runPolicy") or {}
    yield from _word(field, "runPolicy.cleanPodPolicy", policy.get("cleanPodPolicy"), ("All", "Running", "None"))
    if not isinstance(spec.get("nprocPerNode", ""), str):
        yield field, "nprocPerNode: must be text: write it in quotes"
    for role, replica in spec["pytorchReplicaSpecs"].items():
        place = f"pytorchReplicaSpecs.{role}"
        yield from _word(field, place, role, ("Master", "Worker"))
        yield from _word(field, f"{place}.restartPolicy", replica.get("restartPolicy"), (*_RESTARTS, "ExitCode"))
        yield from _count(field, f"{place}.replicas", replica.get("replicas", 1))


def _trainjob(spec: Object) -> Iterator[tuple[Path, str]]:
    trainer = spec.get("trainer") or {}
    yield from _count(("job",), "trainer.numNodes", trainer.get("numNodes", 1))
    for entry in trainer.get("env") or []:
        if str(entry.get("name")).startswith("PET_"):
            yield ("job",), f"trainer.env: {entry['name']} is the trainer's own; remove it"


def _count(field: Path, name: str, value: Any) -> Iterator[tuple[Path, str]]:
    if type(value) is not int or value < 1:
        yield field, f"{name}: {value!r} is not a number of pods"


def _pod(field: str, pod: Object, wanted: str) -> Iterator[tuple[Path, str]]:
    containers = pod.get("containers")
    if not isinstance(containers, list) or wanted not in [_get(item, "name") for item in containers]:
        yield (
            (field,),
            f"containers: there must be one named {wanted!r}, which runs the job; use kubernetes.pod_container",
        )
        return
    names = [_get(item, "name") for item in [*(pod.get("initContainers") or []), *containers]]
    for name in {name for name in names if names.count(name) > 1}:
        yield (field,), f"containers: two have the name {name!r}"
    for word in ("dnsPolicy", "preemptionPolicy"):
        yield from _word((field,), word, pod.get(word), _WORDS[word])
    grace = pod.get("terminationGracePeriodSeconds", 0)
    if type(grace) is not int or grace < 0:
        yield (field,), f"terminationGracePeriodSeconds: {grace!r} is not a number of seconds"
    volumes = [_get(volume, "name") for volume in pod.get("volumes") or []]
    for container in [*(pod.get("initContainers") or []), *containers]:
        if isinstance(container, dict):
            where = "pod_container" if field == "pod" and container.get("name") == wanted else field
            yield from _container((where,), container, volumes)


def _get(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, dict) else None


def _container(field: Path, container: Object, volumes: list[Any]) -> Iterator[tuple[Path, str]]:
    yield from _word(field, "imagePullPolicy", container.get("imagePullPolicy"), _WORDS["imagePullPolicy"])
    if not isinstance(container.get("image"), str) or not container["image"]:
        yield field, f"image: {container.get('image')!r} is not an image"
    for port in container.get("ports") or []:
        if _get(port, "containerPort") not in range(1, 65536):
            yield field, f"ports: {_get(port, 'containerPort')!r} is not a port"
    for entry in container.get("env") or []:
        if not isinstance(_get(entry, "name"), str) or not isinstance(entry.get("value", ""), str):
            yield field, f"env: {_get(entry, 'name')}: must be text: write it in quotes"
    for mount in container.get("volumeMounts") or []:
        if _get(mount, "name") not in volumes:
            yield field, f"volumeMounts: no volume is named {_get(mount, 'name')!r}"
    for group in ("requests", "limits"):
        for name, amount in (_get(container.get("resources"), group) or {}).items():
            if not _QUANTITY.fullmatch(str(amount)):
                yield field, f"resources.{group}.{name}: {amount!r} is not a quantity"
    yield from _devices(field, container.get("resources") or {})
    for name in ("cpu", "memory"):
        asked, most = (str(_get(_get(container.get("resources"), group), name)) for group in ("requests", "limits"))
        if (simple_bytes(asked) or 0) > (simple_bytes(most) or math.inf):
            yield field, f"resources: requests.{name} ({asked}) is over limits.{name} ({most})"


def _devices(field: Path, resources: Object) -> Iterator[tuple[Path, str]]:
    requests, limits = resources.get("requests") or {}, resources.get("limits") or {}
    for name in sorted({*requests, *limits}):
        if "/" in name and str(requests.get(name)) != str(limits.get(name)):
            yield field, f"resources: requests and limits of {name} differ; a device cannot be shared"
