"""What a Kubernetes cluster offers to a training job, and the profile that follows from it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from qwen_job.errors import ClusterRefused
from qwen_job.launch.kubectl import NoSuchKind, kubectl
from qwen_job.launch.kubernetes import KINDS
from qwen_job.render.quote import to_yaml

_GPU_RESOURCES = ("nvidia.com/gpu",)


@dataclass(frozen=True)
class Survey:
    """What was found; ``unknown`` names what this user may not look at."""

    kinds: tuple[str, ...]
    gpu_products: dict[str, int]
    rdma: tuple[str, ...]
    storage_classes: tuple[str, ...]
    queues: tuple[str, ...]
    unknown: tuple[str, ...]


def survey() -> Survey:
    """Ask the cluster. Errors: :class:`EnvironmentFault` without kubectl or a cluster."""
    unknown: list[str] = []
    known = kubectl("api-resources", "--output", "name").split()
    nodes = _items("nodes", unknown)
    products: dict[str, int] = {}
    extra: set[str] = set()
    for node in nodes:
        capacity = node.get("status", {}).get("allocatable") or {}
        extra |= {name for name in capacity if name.startswith("rdma/") or name == "vpc.amazonaws.com/efa"}
        gpus = sum(int(capacity.get(name, 0)) for name in _GPU_RESOURCES)
        if gpus:
            product = (node["metadata"].get("labels") or {}).get("nvidia.com/gpu.product", "unlabelled")
            products[product] = products.get(product, 0) + gpus
    return Survey(
        kinds=tuple(kind.lower() for kind, resource in KINDS.items() if resource in known),
        gpu_products=dict(sorted(products.items())),
        rdma=tuple(sorted(extra)),
        storage_classes=_names("storageclasses", unknown),
        queues=_names("localqueues.kueue.x-k8s.io", unknown),
        unknown=tuple(unknown),
    )


def _items(resource: str, unknown: list[str]) -> list[dict[str, Any]]:
    try:
        items: list[dict[str, Any]] = json.loads(kubectl("get", resource, "-o", "json"))["items"]
    except NoSuchKind:
        return []
    except ClusterRefused:
        unknown.append(resource)
        return []
    return items


def _names(resource: str, unknown: list[str]) -> tuple[str, ...]:
    return tuple(sorted(item["metadata"]["name"] for item in _items(resource, unknown)))


def profile(found: Survey) -> str:
    """Return a layer for ``-f``: the kubernetes section that fits the cluster. Errors: :class:`ClusterRefused`."""
    if not found.kinds:
        wanted = ", ".join(KINDS)
        raise ClusterRefused(f"the cluster has none of {wanted}: install the Kubeflow training-operator or JobSet")
    products = [name for name in found.gpu_products if name != "unlabelled"]
    section: dict[str, Any] = {"kind": found.kinds[0]}
    if len(products) == 1:
        section["gpu_products"] = products
    if len(found.queues) == 1:
        section["queue"] = f"kueue:{found.queues[0]}"
    return to_yaml({"kubernetes": section})
