"""Decide the settings of a Kubernetes job, for the manifest and the Helm chart alike."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from qwen_job.errors import JobError, Problem
from qwen_job.job.document import dotted
from qwen_job.job.kubernetes import Kubernetes, Volume
from qwen_job.job.paths import JobPath, paths_of
from qwen_job.plan import Plan
from qwen_job.render.configs import config_files, sweep_index
from qwen_job.render.default_image import built_image, default_image
from qwen_job.render.evaluation import has_suite
from qwen_job.render.kubernetes.needs import (
    LEAVING_SECONDS,
    Evaluation,
    amount_problems,
    evaluation,
    needs,
    request_notes,
    written,
)
from qwen_job.render.quote import literal
from qwen_job.run.folder import SWEEP

# Pods are called NAME-worker-9999 or, of a JobSet, which a TrainJob makes too, NAME-node-0-9999-abcde: DNS labels of at
# most 63 characters. JobSet's webhook rejects longer ones; a PyTorchJob is accepted, but its pods are never created.
MAX_NAME = 63 - len("-worker-9999")
_MAX_NAME_JOBSET = 63 - len("-node-0-9999-abcde")
MAX_NAMES = {"pytorchjob": MAX_NAME, "trainjob": _MAX_NAME_JOBSET, "jobset": _MAX_NAME_JOBSET}
_DOMAIN = r"[A-Za-z0-9]([-A-Za-z0-9.]*[A-Za-z0-9])?(:[0-9]+)?"
_PATH = r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*"
# The grammar of a reference (github.com/distribution/reference); the API server accepts any text, but no pod starts.
IMAGE = rf"({_DOMAIN}/)?{_PATH}(/{_PATH})*(:[A-Za-z0-9_][-A-Za-z0-9_.]{{0,127}})?(@sha256:[0-9a-f]{{64}})?"
# The server rejects ConfigMaps over 1 MiB; this leaves room for the rest of the object.
MAX_CONFIG_BYTES = 1_000_000


@dataclass(frozen=True)
class Settings:
    """A job for Kubernetes, with the final value of every field."""

    name: str
    image: str
    output: str
    nodes: int
    gpus_per_node: int
    grace_seconds: int
    max_without_progress: int
    in_place: int
    env: dict[str, str]
    needs: dict[str, str]
    files: dict[str, str]
    section: Kubernetes
    notes: tuple[str, ...]
    evaluate: Evaluation | None = None


def settings(plan: Plan) -> Settings:
    """Choose values for everything that the ``kubernetes:`` section leaves out.

    Raises:
        JobError: with all problems.
    """
    job, notes = plan.job, []
    problems = [*_name_problems(plan), *_section_problems(plan), *amount_problems(plan)]
    volumes = job.kubernetes.volumes
    own = own_mounts(job.kubernetes, "pod")
    unheld = {one.field: one.path for one in _paths(plan) if not _holders(one.path, own)}
    if volumes or not unheld:
        problems += _outside(plan, [*volumes, *own.values()])
        problems += _unprepared(plan, volumes)
    elif not problems:
        volumes = [_shared_claim(plan, unheld.values())]
        notes.append(
            f"kubernetes.volumes: not set, so the claim {volumes[0].pvc!r} is mounted at {volumes[0].mount_path}; list "
            f"your volumes there"
        )
    index = sweep_index(plan)
    files = config_files(plan) | ({SWEEP: index} if index else {})
    if sum(len(text.encode()) for text in files.values()) > MAX_CONFIG_BYTES:
        problems.append(job.problem(("env",), "the configuration is over 1 MB, the limit for a ConfigMap"))
    if problems:
        raise JobError(problems)
    notes += [*_section_notes(plan, volumes), *request_notes(plan), *_prepare_notes(plan), *_evaluation_notes(plan)]
    return Settings(
        name=job.name,
        image=job.image or default_image(plan) or built_image(plan),
        output=job.output,
        nodes=plan.nodes,
        gpus_per_node=plan.gpus_per_node,
        grace_seconds=job.retry.grace + LEAVING_SECONDS,
        max_without_progress=job.retry.max_without_progress,
        in_place=job.retry.in_place,
        env=plan.env,
        needs=needs(plan),
        files=files,
        section=_settled(plan, volumes),
        notes=tuple(notes),
        evaluate=evaluation(plan),
    )


def _settled(plan: Plan, volumes: list[Volume]) -> Kubernetes:
    """Return the section with the values that other fields determine; ``cpu`` stays unset if it is set elsewhere."""
    section, cpus = plan.job.kubernetes, plan.job.cluster.cpus_per_gpu
    cores = str(cpus * plan.gpus_per_node) if cpus and not written(section, "cpu") else section.cpu
    resource = None if plan.gpu.is_cpu else section.gpu_resource
    return section.model_copy(update={"volumes": volumes, "cpu": cores, "gpu_resource": resource})


def _name_problems(plan: Plan) -> Iterator[Problem]:
    name, kind = plan.job.name, plan.job.kubernetes.kind
    most, pods = MAX_NAMES[kind], "NAME-worker-N" if kind == "pytorchjob" else "NAME-node-0-N-XXXXX"
    if re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name) and len(name) <= most:
        return
    near = re.sub(r"[^-a-z0-9]+", "-", name.lower()).lstrip("-0123456789")[:most].rstrip("-")
    what = f"has {len(name)} characters, over {most}" if len(name) > most else "is not a Kubernetes name"
    hint = f"e.g. {near!r}" if near else "e.g. 'my-run'"
    text = f"{name!r} {what} (a-z, 0-9 and -, a letter first; pods are called {pods}); use {hint}"
    yield plan.job.problem(("name",), text)


def _section_problems(plan: Plan) -> Iterator[Problem]:
    job, section = plan.job, plan.job.kubernetes
    if job.image and not re.fullmatch(IMAGE, job.image):
        yield job.problem(("image",), f"{job.image!r} is not a valid image name; use e.g. registry/qwen-job:ampere")
    gang = (section.queue or "").partition(":")[0]
    if section.kind == "jobset" and gang in ("volcano", "coscheduling"):
        yield job.problem(("kubernetes", "queue"), f"{gang} does not gang-schedule a JobSet; use kueue:QUEUE")
    if section.master and section.kind != "pytorchjob":
        yield job.problem(("kubernetes", "master"), f"a {section.kind} has no Master; remove the line")
    if section.egress and not section.network_policy:
        yield job.problem(("kubernetes", "egress"), "has no effect without network_policy: true; set that too")
    for field, merged in (("pod", section.pod), ("prepare_pod", section.prepare_pod)):
        if "restartPolicy" in merged:
            yield job.problem(("kubernetes", field), f"restartPolicy: a {section.kind} sets it itself; remove the line")
    names = [volume.name for volume in section.volumes]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield job.problem(("kubernetes", "volumes"), f"two have the name {name!r}; give each its own name")
    paths = [posixpath.normpath(volume.mount_path) for volume in section.volumes]
    for index, volume in enumerate(section.volumes):
        where = ("kubernetes", "volumes", index)
        if volume.name in RESERVED_VOLUMES:
            yield job.problem((*where, "name"), f"{volume.name!r} is used by the job; choose another")
        if paths[index] in ("/", "/tmp") or f"{paths[index]}/".startswith(OWN_MOUNTS) or paths.count(paths[index]) > 1:
            yield job.problem((*where, "mount_path"), f"{volume.mount_path!r} is already in use; choose another")


CONFIG_PATH = "/etc/qwen-job"
RESERVED_VOLUMES = ("config", "shm", "tmp")
# Nothing can be mounted below a ConfigMap, which is read-only, or over system folders.
OWN_MOUNTS = (f"{CONFIG_PATH}/", "/dev/", "/proc/", "/sys/", "/var/run/secrets/")


def _section_notes(plan: Plan, volumes: list[Volume]) -> Iterator[str]:
    section, nodes = plan.job.kubernetes, plan.nodes
    if section.kind == "trainjob" and section.ttl_after_finished is not None:
        yield "kubernetes.ttl_after_finished: a TrainJob has no such field, so it stays until you delete it"
    if section.queue is None and nodes > 1:
        gangs = "kueue:QUEUE" if section.kind == "jobset" else "kueue:QUEUE, volcano or coscheduling"
        yield (
            f"kubernetes.queue: not set, so the {nodes} pods are scheduled one by one, and two such jobs can block "
            f"each other while waiting for GPUs; {gangs} schedules them together"
        )
    if section.suspend and (section.queue or "").startswith("kueue:") and not section.prepare:
        yield "kubernetes.suspend: Kueue still starts the job as soon as it admits it"
    for volume in volumes:
        if nodes > 1 and volume.size and volume.access_mode in ("ReadWriteOnce", "ReadWriteOncePod"):
            yield (
                f"kubernetes.volumes: {volume.name!r} is {volume.access_mode}, which only one node can mount, but the "
                f"job has {nodes}; use ReadWriteMany"
            )


def suite_words(chosen: Settings) -> list[str]:
    """Return the options that make a pod check the job's suite first, empty without a suite."""
    options = chosen.evaluate.options if chosen.evaluate else ()
    # Equals signs keep options from being read as the program's.
    return [literal(f"--word={word}") for word in options] if has_suite(options) else []


def _prepare_notes(plan: Plan) -> Iterator[str]:
    section, name = plan.job.kubernetes, plan.job.name
    if not section.prepare:
        return
    if section.suspend:
        yield (
            f"kubernetes.prepare: Job {name}-prepare fetches model and data; the {section.kind} then stays "
            "suspended (kubernetes.suspend) until you start it"
        )
        return
    account = f"the account {section.prepare_account!r}" if section.prepare_account else "its own account"
    yield (
        f"kubernetes.prepare: Job {name}-prepare fetches model and data and then starts the {section.kind}; its pod "
        f"has the token of {account}, which may patch only this {section.kind}"
    )


def _evaluation_notes(plan: Plan) -> Iterator[str]:
    section, name = plan.job.kubernetes, plan.job.name
    if plan.job.evaluate is None:
        return
    if section.suspend:
        namespace = f"-n {section.namespace} " if section.namespace else ""
        patch = f'kubectl {namespace}patch job {name}-evaluate --type merge -p \'{{"spec":{{"suspend":false}}}}\''
        yield f"evaluate: Job {name}-evaluate stays suspended (kubernetes.suspend); after the training: {patch}"
        return
    account = f"the account {section.prepare_account!r}" if section.prepare_account else "its own account"
    yield (
        f"evaluate: Job {name}-evaluate evaluates on one GPU; it holds none until Job {name}-starter, a pod without "
        f"GPUs and with the token of {account}, has seen the {section.kind} complete and starts it"
    )


def _paths(plan: Plan) -> list[JobPath]:
    """Return the paths that the pods must see."""
    found = paths_of(plan.job)
    if not plan.job.model.cache_dir:
        found.insert(1, JobPath(("model", "cache_dir"), plan.job.model_cache, writes=True))
    return found


def _outside(plan: Plan, volumes: list[Volume | OwnMount]) -> Iterator[Problem]:
    mounts = {posixpath.normpath(volume.mount_path): volume for volume in volumes}
    for field, path, writes, _ in _paths(plan):
        holders = _holders(path, mounts)
        if not holders:
            text = f"{path!r} is not below any volume's mount_path ({', '.join(mounts)}), so no pod would see it"
            yield plan.job.problem(field, text)
            continue
        volume = mounts[max(holders, key=len)]
        if writes and volume.read_only:
            yield plan.job.problem(field, f"{path!r} is on the read-only volume {volume.name!r}")
        elif field == ("output",) and isinstance(volume, OwnMount) and volume.passing:
            yield plan.job.problem(field, f"{path!r} is on the volume {volume.name!r}, which is deleted with its pod")


def _unprepared(plan: Plan, volumes: list[Volume]) -> Iterator[Problem]:
    """Yield paths that the preparing pod does not see: it has kubernetes.volumes and what ``prepare_pod`` adds."""
    section = plan.job.kubernetes
    paths = [*(volume.mount_path for volume in volumes), *own_mounts(section, "prepare_pod")]
    mounts = dict.fromkeys(map(posixpath.normpath, paths))
    for field, path, _, _ in _paths(plan) if section.prepare else ():
        if not _holders(path, mounts):
            text = (
                f"{dotted(field)}: {path!r} is not mounted in the preparing pod, to which kubernetes.pod does "
                "not apply; add its volume, and the container 'prepare' with its mount, here too"
            )
            yield plan.job.problem(("kubernetes", "prepare_pod"), text)


def _holders(path: str, mounts: Mapping[str, object]) -> list[str]:
    return [mount for mount in mounts if f"{posixpath.normpath(path)}/".startswith(f"{mount}/")]


class OwnMount(NamedTuple):
    """A mount that ``kubernetes.pod_container`` or ``pod`` adds; a ``passing`` volume is deleted with its pod."""

    name: str
    mount_path: str
    read_only: bool
    passing: bool


_READ_ONLY = ("configMap", "secret", "downwardAPI", "projected")


def own_mounts(section: Kubernetes, field: Literal["pod", "prepare_pod"]) -> dict[str, OwnMount]:
    """Return mount path -> what the user's own fields mount there in the main container."""
    main, pod = ("pytorch" if section.kind == "pytorchjob" else "node"), section.pod
    if field == "prepare_pod":
        main, pod = "prepare", section.prepare_pod
    containers = [c for c in _dicts(pod, "containers") if c.get("name") == main]
    containers += [section.pod_container] if field == "pod" else []
    sources = {str(volume.get("name")): volume for volume in _dicts(pod, "volumes")}
    found = {}
    for mount in (mount for container in containers for mount in _dicts(container, "volumeMounts")):
        name, path = mount.get("name"), mount.get("mountPath")
        if isinstance(name, str) and isinstance(path, str):
            volume = sources.get(name, {})
            locked = bool(mount.get("readOnly")) or any(kind in volume for kind in _READ_ONLY)
            passing = name == "tmp" or "emptyDir" in volume or "ephemeral" in volume
            found[posixpath.normpath(path)] = OwnMount(name, path, locked, passing)
    return found


def _dicts(value: dict[str, Any], key: str) -> list[dict[str, Any]]:
    items = value.get(key)
    return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []


def _shared_claim(plan: Plan, paths: Iterable[str]) -> Volume:
    """Return the claim that a job without volumes uses, mounted at the common folder of all its paths."""
    top = posixpath.commonpath([posixpath.dirname(path) for path in paths])
    if top == "/" or ":" in top:
        text = "not set, and the job's paths have no common folder: list the volumes and their mount paths"
        raise JobError([plan.job.problem(("kubernetes", "volumes"), text)])
    return Volume.model_validate({"name": "shared", "mount_path": top, "pvc": "shared"})
