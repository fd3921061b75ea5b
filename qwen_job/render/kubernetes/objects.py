"""Target kubernetes: claims, ConfigMap, NetworkPolicy and the job, in one manifest for ``kubectl apply -f -``."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from qwen_job import __version__
from qwen_job.errors import JobError, UsageError
from qwen_job.job import Job
from qwen_job.plan import Plan
from qwen_job.render.bundle import Bundle
from qwen_job.render.engine import render_template
from qwen_job.render.kubernetes.decisions import CONFIG_PATH, Settings, settings, suite_words
from qwen_job.render.kubernetes.evaluation import evaluate_context, one_gpu, starter_context
from qwen_job.render.kubernetes.merge import Unmergeable, merge
from qwen_job.render.kubernetes.needs import written
from qwen_job.render.kubernetes.object_checks import object_problems, size_notes
from qwen_job.render.kubernetes.overlays import overlay_problems
from qwen_job.render.kubernetes.pod_security import LEVELS, pod_security_level
from qwen_job.render.kubernetes.prepare import prepare_context
from qwen_job.render.quote import literal, to_yaml
from qwen_job.run.folder import DEEPSPEED, TRAIN
from qwen_job.strict_yaml import Loader, check

Object = dict[str, Any]
OUTPUT = "qwen-job/output"  # the annotation with the run folder
MEMORY = "qwen-job/needs-memory"  # the annotation with the host memory that the plan estimates per pod
_CONTAINERS = {"pytorchjob": "pytorch", "trainjob": "node", "jobset": "node"}
_SCHEDULERS = {"volcano": "volcano", "coscheduling": "scheduler-plugins-scheduler"}
_CONTAINER_SECURITY = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}


def render(plan: Plan, folders: Sequence[str | Path] = ()) -> Bundle:
    """Return NAME.yaml with all objects.

    Raises:
        JobError: for a job that Kubernetes could not run.
    """
    chosen = settings(plan)
    things = checked_objects(plan, chosen, folders)
    text = "".join(f"---\n{to_yaml(thing)}" for thing in things)
    notes = [*chosen.notes, *own_notes(things), *size_notes(things), *security_notes(things)]
    if chosen.section.master and chosen.nodes > 1:
        notes.append(
            "kubernetes.master: the operator adds an init container to each Worker, with a separate image and without "
            "a security context, which a restricted namespace rejects"
        )
    name = f"{chosen.name}.yaml"
    return Bundle("kubernetes", {name: text}, name, notes=tuple(notes), objects=tuple(things))


def checked_objects(plan: Plan, chosen: Settings, folders: Sequence[str | Path] = ()) -> list[Object]:
    """Return the objects in the order in which they are applied.

    Raises:
        JobError: as :func:`render`.
    """
    try:
        things = _objects(chosen, folders)
    except Unmergeable as error:
        raise JobError([plan.job.problem(("kubernetes", *error.path), error.text)]) from None
    problems = [plan.job.problem(("kubernetes", *path), text) for path, text in overlay_problems(chosen)]
    problems = problems or list(object_problems(plan, things))
    if problems:
        raise JobError(problems)
    return things


def _objects(chosen: Settings, folders: Sequence[str | Path]) -> list[Object]:
    context = _context(chosen)
    pod = _load("pod", context, folders)
    pod["containers"][0] = merge(pod["containers"][0], chosen.section.pod_container, ("pod_container",))
    context["pod"] = merge(pod, chosen.section.pod, ("pod",))
    result = [_claim(volume, context, folders) for volume in chosen.section.volumes if volume.size]
    result.append(_load("configmap", context, folders))
    if chosen.section.network_policy:
        result.append(_load("networkpolicy", context, folders))
    if chosen.section.prepare:
        result += _side_job(chosen, prepare_context(chosen, context), folders)
    if chosen.evaluate is not None:
        result += _evaluation(chosen, context, folders)
    if chosen.section.kind != "pytorchjob":
        context["jobset"] = _load("jobset-spec", context, folders)
    if chosen.section.kind == "trainjob":
        result.append(_load("runtime", context, folders))
    job = _load(chosen.section.kind, context, folders)
    job["spec"] = merge(job["spec"], chosen.section.job, ("job",))
    return [*result, job]


def _side_job(chosen: Settings, there: dict[str, Any], folders: Sequence[str | Path]) -> list[Object]:
    """Return a Job without GPUs and the account that lets it start another job, unless the user does."""
    pod = _load("pod", there, folders)
    if there["container"] == "prepare":
        pod = merge(pod, chosen.section.prepare_pod, ("prepare_pod",))
    access = ("account", "role", "rolebinding") if there["own_account"] else ()
    return [_load(template, {**there, "pod": pod}, folders) for template in (*access, "side-job")]


def _evaluation(chosen: Settings, context: dict[str, Any], folders: Sequence[str | Path]) -> list[Object]:
    """Return the Job that evaluates and, unless the user starts it, the Job that waits for the training to do so."""
    there = evaluate_context(chosen, context)
    pod = _load("pod", there, folders)
    pod["containers"][0] = merge(pod["containers"][0], chosen.section.pod_container, ("pod_container",))
    there["pod"] = one_gpu(chosen, merge(pod, chosen.section.pod, ("pod",)))
    starter = [] if chosen.section.suspend else _side_job(chosen, starter_context(chosen, context), folders)
    return [*starter, _load("side-job", there, folders)]


def own_notes(things: list[Object]) -> Iterator[str]:
    """Yield notes about additional containers, which affect how the job ends."""
    mains = (*_CONTAINERS.values(), "prepare", "starter")
    names = [c.get("name") for thing in things for pod in _pods(thing) for c in pod["containers"]]
    for name in dict.fromkeys(name for name in names if name not in mains):
        yield (
            f"kubernetes.pod.containers: {name!r} must exit by itself, or the pods never complete; an init container "
            "with restartPolicy: Always it ends with the job"
        )


def security_notes(things: list[Object]) -> list[str]:
    """Return a note with the Pod Security level of the pods, and why it is not the strictest."""
    found = [pod_security_level(pod) for thing in things for pod in _pods(thing)]
    if {"Master", "Worker"} <= set(things[-1]["spec"].get("pytorchReplicaSpecs") or ()):
        found.append((LEVELS[1], ["the operator's init container of each Worker"]))
    level = max((level for level, _ in found), key=LEVELS.index, default=LEVELS[0])
    reasons = list(dict.fromkeys(reason for _, several in found for reason in several))
    why = f" ({', '.join(reasons)})" if reasons else ""
    return [f"the pods meet the Pod Security level {level!r}{why}"]


def _pods(value: Any) -> Iterator[Object]:
    """Yield every pod's spec inside an object."""
    containers = value.get("containers") if isinstance(value, dict) else None
    if isinstance(containers, list) and all(isinstance(container, dict) for container in containers):
        yield value
        return
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _pods(item)


def _load(template: str, context: dict[str, Any], folders: Sequence[str | Path]) -> Object:
    """Render a template and read it back, so that a broken template of the user is found here."""
    text = render_template(f"kubernetes/{template}.yaml.j2", context, folders)
    try:
        check(text, Loader)
        value = yaml.load(text, Loader)
    except (yaml.YAMLError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"template kubernetes/{template}.yaml.j2 renders invalid YAML: {reason[:300]}") from None
    if not isinstance(value, dict):
        raise UsageError(f"template kubernetes/{template}.yaml.j2 does not render a mapping")
    return value


def _claim(volume: Any, context: dict[str, Any], folders: Sequence[str | Path]) -> Object:
    metadata = {
        **context["metadata"],
        "name": volume.pvc or f"{context['name']}-{volume.name}",
        # Helm keeps it when the release is removed, because the trained model is on it.
        "annotations": {**context["k"]["annotations"], "helm.sh/resource-policy": "keep"},
    }
    return _load("claim", {**context, "metadata": metadata, "volume": volume.model_dump()}, folders)


def _context(chosen: Settings) -> dict[str, Any]:
    k = chosen.section
    gang, _, queue = (k.queue or "").partition(":")
    checksum = config_checksum(chosen)
    labels = {
        "app.kubernetes.io/name": "qwen-job",
        "app.kubernetes.io/instance": chosen.name,
        # A local version has a plus sign, which a label cannot contain.
        "app.kubernetes.io/version": __version__.replace("+", "_"),
        **k.labels,
    }
    # Kueue starts what it admits, so a job that waits for its preparation gets the label only afterwards.
    queued = gang == "kueue" and not k.prepare
    job_labels = {**labels, **({"kueue.x-k8s.io/queue-name": queue} if queued else {})}
    namespace = {"namespace": k.namespace} if k.namespace else {}
    pod_annotations = {**k.annotations, "qwen-job/checksum": checksum}
    memory = {MEMORY: chosen.needs["memory"]} if "memory" in chosen.needs else {}
    annotations = {**pod_annotations, OUTPUT: chosen.output, **memory}
    if gang == "kueue" and k.topology:
        pod_annotations["kueue.x-k8s.io/podset-required-topology"] = k.topology
    return {
        "name": chosen.name,
        "image": chosen.image,
        "nodes": chosen.nodes,
        "nproc_per_node": str(chosen.gpus_per_node),
        "grace_seconds": chosen.grace_seconds,
        "files": chosen.files,
        # With the job's existing serializer: building one for the section takes longer than rendering.
        "k": Job.model_construct(kubernetes=k).model_dump(include={"kubernetes"})["kubernetes"],
        "suspend": k.suspend or k.prepare,
        "token": False,
        "metadata": {"name": chosen.name, **namespace, "labels": job_labels, "annotations": annotations},
        "pod_metadata": {"labels": labels, "annotations": pod_annotations},
        "container": _CONTAINERS[k.kind],
        "container_security": _container_security(chosen),
        "command": command(chosen),
        "env": environment(chosen),
        "resources": resources(chosen),
        "tainted": tainted(k.gpu_resource),
        "mounts": _mounts(chosen),
        "volumes": _volumes(chosen),
        "gang": gang if gang != "kueue" else "",
        "queue": queue,
        "scheduler": _SCHEDULERS.get(gang, ""),
        "pod_affinity": k.topology if gang != "kueue" else None,
        "replicas": _replicas(chosen),
        "final_codes": list(range(1, 128)),
        # The other pods wait for the one that is replaced, which is a restart in place.
        "pod_restarts": chosen.in_place if chosen.nodes > 1 else 0,
    }


def config_checksum(chosen: Settings) -> str:
    """Return a checksum that changes with what the pods compute, since a restart would otherwise mix two jobs."""
    parts = [chosen.image, str(chosen.nodes), str(chosen.gpus_per_node)]
    text = "\n".join([*parts, chosen.files[TRAIN], chosen.files[DEEPSPEED]])
    return hashlib.sha256(text.encode()).hexdigest()


def command(chosen: Settings) -> list[str]:
    """Return the words of one pod; ``$(NAME)`` is expanded by Kubernetes."""
    address, port, rank = _rendezvous(chosen)
    limit = chosen.section.active_deadline
    words = suite_words(chosen)
    return [
        "python3", "-m", *(["qwen_job.node.suite_check", *words, "--"] if words else ["qwen_job.node.launcher"]),
        "--nnodes", str(chosen.nodes), "--node_rank", rank, "--nproc_per_node", str(chosen.gpus_per_node),
        "--master_addr", address, "--master_port", port, "--rdzv_id", chosen.name,
        "--rdzv_timeout", str(chosen.section.rendezvous_timeout),
        "--max_without_progress", str(chosen.max_without_progress), "--in_place", str(chosen.in_place),
        # The operator, or the Job of a JobSet, replaces a lost pod: the others wait for it.
        *(["--rejoin"] if chosen.nodes > 1 else []),
        *([] if limit is None else ["--time_limit_seconds", str(limit)]),
        "--", "--config", f"{CONFIG_PATH}/{TRAIN}",
    ]  # fmt: skip


def _rendezvous(chosen: Settings) -> tuple[str, str, str]:
    k, port = chosen.section, str(chosen.section.master_port)
    if chosen.nodes == 1:
        return "127.0.0.1", port, "0"
    if k.kind != "pytorchjob":
        return f"{chosen.name}-node-0-0.{chosen.name}", port, "$(JOB_COMPLETION_INDEX)"
    if k.master:
        return "$(MASTER_ADDR)", "$(MASTER_PORT)", "$(RANK)"
    return f"{chosen.name}-worker-0", port, "$(QWEN_JOB_NODE_RANK)"


def environment(chosen: Settings) -> list[Object]:
    """Return the container's ``env``, sorted by name: the plan's variables, secrets, and the node's rank."""
    k = chosen.section
    entries: dict[str, Object] = {name: {"value": literal(value)} for name, value in chosen.env.items()}
    for name, reference in k.secret_env.items():
        secret, _, key = reference.partition("/")
        entries[name] = {"valueFrom": {"secretKeyRef": {"name": secret, "key": key}}}
    if k.kind == "pytorchjob" and not k.master:
        label = "metadata.labels['training.kubeflow.org/replica-index']"
        entries["QWEN_JOB_NODE_RANK"] = {"valueFrom": {"fieldRef": {"fieldPath": label}}}
    return [{"name": name, **entries[name]} for name in sorted(entries)]


def resources(chosen: Settings) -> dict[str, dict[str, str]]:
    """Return a pod's requests and limits: the user's amounts are both, the plan's needs are only requested."""
    k = chosen.section
    limits = {
        **({"cpu": k.cpu} if k.cpu else {}),
        **({"memory": k.memory} if k.memory else {}),
        **({k.gpu_resource: str(chosen.gpus_per_node)} if k.gpu_resource else {}),
        **k.resources,
    }
    needed = {name: amount for name, amount in chosen.needs.items() if not written(k, name)}
    return {"requests": {**needed, **limits}, "limits": limits}


def tainted(resource: str | None) -> list[str]:
    """Return the taints that nodes with such a GPU may have: its resource, and the vendor's name for whole GPUs."""
    return list(dict.fromkeys([resource, f"{resource.partition('/')[0]}/gpu"])) if resource else []


def _container_security(chosen: Settings) -> Object:
    capabilities: Object = {"drop": ["ALL"], **({"add": ["IPC_LOCK"]} if chosen.section.ipc_lock else {})}
    return {**_CONTAINER_SECURITY, "capabilities": capabilities}


def _mounts(chosen: Settings) -> list[Object]:
    own: list[Object] = [
        {"name": "config", "mountPath": CONFIG_PATH, "readOnly": True},
        {"name": "shm", "mountPath": "/dev/shm"},
        {"name": "tmp", "mountPath": "/tmp"},
    ]
    users: list[Object] = [
        {
            "name": volume.name,
            "mountPath": volume.mount_path,
            **({"subPath": volume.sub_path} if volume.sub_path else {}),
            **({"readOnly": True} if volume.read_only else {}),
        }
        for volume in chosen.section.volumes
    ]
    return [*own, *users]


def _volumes(chosen: Settings) -> list[Object]:
    own: list[Object] = [
        {"name": "config", "configMap": {"name": chosen.name}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": chosen.section.shm_size}},
        {"name": "tmp", "emptyDir": {}},
    ]
    return [*own, *({"name": v.name, **_source(v, chosen.name)} for v in chosen.section.volumes)]


def _source(volume: Any, name: str) -> Object:
    if volume.nfs:
        server, _, path = volume.nfs.partition(":")
        return {"nfs": {"server": server, "path": path}}
    if volume.host_path:
        return {"hostPath": {"path": volume.host_path}}
    return {"persistentVolumeClaim": {"claimName": volume.pvc or f"{name}-{volume.name}"}}


def _replicas(chosen: Settings) -> dict[str, int]:
    if not chosen.section.master:
        return {"Worker": chosen.nodes}
    return {"Master": 1, **({"Worker": chosen.nodes - 1} if chosen.nodes > 1 else {})}
