"""Jobs, pods and events as kubectl prints them, and the backend's view of them."""

from __future__ import annotations

from typing import Any

from qwen_job.launch.backend import Entry
from qwen_job.launch.kubernetes.backend import KubernetesBackend
from tests.support.kubectl import Recorded, items


def job(name: str = "a", condition: str = "Running", message: str = "", **metadata: Any) -> dict[str, Any]:
    """Return a PyTorchJob with one condition."""
    return {
        "kind": "PyTorchJob",
        "metadata": {"name": name, "namespace": "ml", "creationTimestamp": "2026-11-01T00:00:00Z", **metadata},
        "status": {"conditions": [{"type": condition, "status": "True", "message": message}]},
    }


def pod(name: str = "a", phase: str = "Running", **status: Any) -> dict[str, Any]:
    """Return a pod of the job ``name``."""
    return {
        "metadata": {"name": f"{name}-worker-0", "namespace": "ml", "labels": {"app.kubernetes.io/instance": name}},
        "spec": {"nodeName": "gpu1"} if phase == "Running" else {},
        "status": {"phase": phase, **status},
    }


def unscheduled(message: str) -> dict[str, Any]:
    """Return a pod that the scheduler cannot place."""
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
    return pod(phase="Pending", conditions=[condition])


def waiting(reason: str) -> dict[str, Any]:
    """Return a pod whose container cannot start."""
    return pod(phase="Pending", containerStatuses=[{"state": {"waiting": {"reason": reason, "message": "m"}}}])


def ended(code: int, reason: str = "Error") -> dict[str, Any]:
    """Return a pod whose container exited with ``code``."""
    return pod(phase="Failed", containerStatuses=[{"state": {"terminated": {"exitCode": code, "reason": reason}}}])


def asked_for(pods: int, condition: str = "Created", **more: Any) -> dict[str, Any]:
    """Return a job that asks for this many pods."""
    return {**job(condition=condition, **more), "spec": {"pytorchReplicaSpecs": {"Worker": {"replicas": pods}}}}


def event(said: str, thing: str = "a", when: str = "2026-02-01", **more: Any) -> dict[str, Any]:
    """Return a warning event about the object ``thing``."""
    return {"message": said, "lastTimestamp": when, "involvedObject": {"name": thing}, **more}


def preparing(phase: str = "Running", **status: Any) -> dict[str, Any]:
    """Return the pod that prepares the job a."""
    return _side_pod("a-prepare", phase, status)


def evaluating(phase: str = "Running", **status: Any) -> dict[str, Any]:
    """Return the pod that evaluates the model of the job a."""
    return _side_pod("a-evaluate", phase, status)


def _side_pod(name: str, phase: str, status: dict[str, Any]) -> dict[str, Any]:
    labels = {"app.kubernetes.io/instance": name}
    return {
        "metadata": {"name": f"{name}-x", "namespace": "ml", "labels": labels},
        "status": {"phase": phase, **status},
    }


def only(kubectl: Recorded, this: dict[str, Any], *pods: dict[str, Any]) -> Entry:
    """Return the backend's entry for a cluster with this job and these pods only."""
    unknown = (1, "", 'error: the server doesn\'t have a resource type "x"')
    kubectl.answers(
        ("get pods", items(*pods)),
        ("get pytorchjobs", items(this)),
        ("get trainjobs", unknown),
        ("get jobsets", unknown),
    )
    (entry,) = KubernetesBackend().entries()
    return entry
