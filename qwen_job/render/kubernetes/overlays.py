"""Find user fields that would replace what the job needs, as the chart's ``qwen-job.guard_overlay`` does."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from typing import Any

from qwen_job.job.document import Path
from qwen_job.job.kubernetes import Volume
from qwen_job.render.kubernetes.decisions import CONFIG_PATH, Settings

Object = dict[str, Any]
Found = Iterator[tuple[Path, str]]
# Variables that tell each pod its place in the job: the operators', torch's and ours.
_PLACE = (
    r"QWEN_JOB_NODE_RANK|JOB_COMPLETION_INDEX|MASTER_(ADDR|PORT)|(LOCAL_|NODE_|GROUP_)?RANK|(LOCAL_)?WORLD_SIZE|PET_.*"
)
_SHM, _PORT = "/dev/shm", "pytorchjob-port"
_NUMBERS = "follows from the job; change {} instead"
_NAME = "the container that runs the job is called {!r}; add others in pod.containers"


def overlay_problems(chosen: Settings) -> Found:
    """Yield (the field below ``kubernetes``, what is wrong with it)."""
    k = chosen.section
    main = "pytorch" if k.kind == "pytorchjob" else "node"
    yield from _container(chosen, ("pod_container",), k.pod_container, main)
    yield from _pod(chosen, ("pod",), k.pod, main)
    yield from _pod(chosen, ("prepare_pod",), k.prepare_pod, "prepare")
    yield from {"pytorchjob": _pytorchjob, "trainjob": _trainjob, "jobset": _jobset}[k.kind](chosen, ("job",), k.job)


def _at(value: Any, *keys: str) -> Any:
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _items(value: Any, key: str) -> Iterator[tuple[int, Object]]:
    items = value.get(key) if isinstance(value, dict) else None
    for number, item in enumerate(items if isinstance(items, list) else ()):
        if isinstance(item, dict):
            yield number, item


def _pod(chosen: Settings, path: Path, pod: Any, main: str) -> Found:
    taken = {volume.name: volume for volume in chosen.section.volumes}
    for number, volume in _items(pod, "volumes"):
        if volume.get("name") == "config":
            yield (*path, "volumes", number), "the job reads its configuration from the volume 'config'; rename yours"
        elif volume.get("name") == "shm":
            yield (*path, "volumes", number), "the volume 'shm' is /dev/shm; use kubernetes.shm_size, or rename yours"
        elif (name := str(volume.get("name"))) in taken and _source(taken[name]) not in volume and len(volume) > 1:
            text = f"kubernetes.volumes has a volume {name!r} of another kind; change it there, or rename yours"
            yield (*path, "volumes", number), text
    for number, container in _items(pod, "containers"):
        if container.get("name") == main:
            yield from _container(chosen, (*path, "containers", number), container, main)
    grace = _at(pod, "terminationGracePeriodSeconds")
    if type(grace) is int and 0 <= grace < chosen.grace_seconds:
        text = f"{grace} s is less than the {chosen.grace_seconds} s that a pod needs to save; change retry.grace"
        yield (*path, "terminationGracePeriodSeconds"), text
    if _at(pod, "activeDeadlineSeconds") is not None:
        yield (
            (*path, "activeDeadlineSeconds"),
            "the training would not save before it; use kubernetes.active_deadline",
        )
    queue = (chosen.section.queue or "").partition(":")[0]
    if main != "prepare" and queue in ("volcano", "coscheduling") and _at(pod, "schedulerName") is not None:
        yield (*path, "schedulerName"), f"kubernetes.queue: {queue} needs its own scheduler; remove one of the two"


def _source(volume: Volume) -> str:
    return "nfs" if volume.nfs else "hostPath" if volume.host_path else "persistentVolumeClaim"


def _container(chosen: Settings, path: Path, container: Any, main: str) -> Found:
    for word in ("command", "args"):
        if _at(container, word) is not None:
            yield (*path, word), "the job's own command runs here; use an init container for what must run before it"
    if _at(container, "name") not in (None, main):
        yield (
            (*path, "name"),
            _NAME.format(main),
        )
    for number, variable in _items(container, "env"):
        if re.fullmatch(_PLACE, str(variable.get("name"))):
            yield (*path, "env", number), f"{variable['name']} gives a pod its place in the job; remove it"
    for number, mount in _items(container, "volumeMounts"):
        yield from _mount(chosen, (*path, "volumeMounts", number), mount)
    for number, port in _items(container, "ports"):
        if chosen.section.kind == "pytorchjob" and main != "prepare":
            own = (port.get("name") == _PORT, port.get("containerPort") == chosen.section.master_port)
            if any(own) and not (all(own) or (own[1] and "name" not in port)):
                text = f"{_PORT} is {chosen.section.master_port}, the rendezvous port; change kubernetes.master_port"
                yield (*path, "ports", number), text
    yield from _resources(chosen, (*path, "resources"), _at(container, "resources"), main)


def _mount(chosen: Settings, path: Path, mount: Object) -> Found:
    place, name = mount.get("mountPath"), mount.get("name")
    if not isinstance(place, str):
        return
    place = posixpath.normpath(place)
    taken = {posixpath.normpath(volume.mount_path): volume for volume in chosen.section.volumes}
    if place == "/" or f"{place}/".startswith((f"{CONFIG_PATH}/", f"{_SHM}/")):
        yield path, f"mountPath: {mount['mountPath']!r} is used by the job; choose another"
    elif place in taken and name not in (None, taken[place].name):
        text = f"mountPath: kubernetes.volumes mounts {taken[place].name!r} at {place!r}; change it there"
        yield path, text
    elif place in taken and mount.get("readOnly"):
        yield path, f"readOnly: kubernetes.volumes mounts {place!r}; set read_only there"


def _resources(chosen: Settings, path: Path, resources: Any, main: str) -> Found:
    gpu = chosen.section.gpu_resource if main != "prepare" else None
    for group in ("requests", "limits"):
        amount = _at(resources, group, gpu) if gpu else None
        if amount is not None and str(amount) != str(chosen.gpus_per_node):
            text = f"the job has a process for each of {chosen.gpus_per_node} GPUs; change cluster.gpus_per_node"
            yield (*path, group, gpu or ""), text


def _number(path: Path, value: Any, planned: int | str, field: str) -> Found:
    if value is not None and value != planned:
        yield path, f"{value!r} is not the planned {planned!r}, which {_NUMBERS.format(field)}"


def _pytorchjob(chosen: Settings, path: Path, spec: Object) -> Found:
    k = chosen.section
    per_node = spec.get("nprocPerNode")
    if isinstance(per_node, str):
        yield from _number((*path, "nprocPerNode"), per_node, str(chosen.gpus_per_node), "cluster.gpus_per_node")
    for word in ("minReplicas", "maxReplicas"):
        yield from _number(
            (*path, "elasticPolicy", word), _at(spec, "elasticPolicy", word), chosen.nodes, "cluster.nodes"
        )
    if k.master and spec.get("elasticPolicy") is not None:
        yield (*path, "elasticPolicy"), "needs a job of workers only; remove it, or kubernetes.master"
    yield from _run(k.prepare, (*path, "runPolicy"), spec.get("runPolicy"))
    workers = chosen.nodes - (1 if k.master else 0)
    for role, replica in (_at(spec, "pytorchReplicaSpecs") or {}).items():
        here = (*path, "pytorchReplicaSpecs", role)
        planned = {"Master": int(k.master), "Worker": workers}.get(role)
        if planned == 0:
            yield here, f"the job has no {role}; change kubernetes.master or cluster.nodes"
        elif planned:
            yield from _number((*here, "replicas"), _positive(_at(replica, "replicas")), planned, "cluster.nodes")
        yield from _pod(chosen, (*here, "template", "spec"), _at(replica, "template", "spec"), "pytorch")


def _positive(value: Any) -> Any:
    """Return a valid number of pods; the type check reports others."""
    return value if type(value) is int and value > 0 else None


def _run(prepare: bool, path: Path, run: Any) -> Found:
    if _at(run, "activeDeadlineSeconds") is not None:
        yield (
            (*path, "activeDeadlineSeconds"),
            "the training would not save before it; use kubernetes.active_deadline",
        )
    if prepare and _at(run, "suspend") is False:
        yield (*path, "suspend"), "kubernetes.prepare starts the job itself; remove one of the two"


def _trainjob(chosen: Settings, path: Path, spec: Object) -> Found:
    yield from _run(chosen.section.prepare, path, spec)
    if spec.get("runtimeRef") is not None:
        yield (*path, "runtimeRef"), "the job comes with its own TrainingRuntime, which defines its pods; remove it"
    trainer, here = spec.get("trainer"), (*path, "trainer")
    if _at(trainer, "image") is not None:
        yield (*here, "image"), "set image instead"
    yield from _number((*here, "numNodes"), _positive(_at(trainer, "numNodes")), chosen.nodes, "cluster.nodes")
    if _at(trainer, "numProcPerNode") is not None:
        yield (*here, "numProcPerNode"), _NUMBERS.format("cluster.gpus_per_node")
    parts = {name: _at(trainer, name) for name in ("command", "args", "env")}
    yield from _container(chosen, here, parts, "node")
    if _at(trainer, "resourcesPerNode") is not None:
        text = "replaces all requests of the pods, including GPUs; use kubernetes.cpu, memory or resources"
        yield (*here, "resourcesPerNode"), text


def _jobset(chosen: Settings, path: Path, spec: Object) -> Found:
    yield from _run(chosen.section.prepare, path, spec)
    for word in ("enableDNSHostnames", "publishNotReadyAddresses"):
        if _at(spec, "network", word) is False:
            yield (*path, "network", word), "the pods need it to find each other; remove it"
    if _at(spec, "network", "subdomain") is not None:
        yield (*path, "network", "subdomain"), "the pods use the job's name to find each other; remove it"
    for number, jobs in _items(spec, "replicatedJobs"):
        here = (*path, "replicatedJobs", number)
        if jobs.get("name") != "node":
            continue
        yield from _number((*here, "replicas"), jobs.get("replicas"), 1, "cluster.nodes")
        job = _at(jobs, "template", "spec")
        for word in ("parallelism", "completions"):
            yield from _number((*here, "template", "spec", word), _at(job, word), chosen.nodes, "cluster.nodes")
        yield from _pod(chosen, (*here, "template", "spec", "template", "spec"), _at(job, "template", "spec"), "node")
