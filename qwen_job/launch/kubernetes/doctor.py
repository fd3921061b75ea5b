"""Survey what a Kubernetes cluster offers training jobs, and write the matching site profile."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

from qwen_job.errors import ClusterRefused
from qwen_job.facts.hardware import gpu_names, load_gpu
from qwen_job.launch.kubernetes.backend import KINDS
from qwen_job.launch.kubernetes.kubectl import NoSuchKind, kubectl
from qwen_job.render.quote import to_yaml

Object = dict[str, Any]
GPU = "nvidia.com/gpu"
PRODUCT = "nvidia.com/gpu.product"
# CRD -> the value of kubernetes.queue that selects its scheduler.
_SCHEDULERS = {"podgroups.scheduling.volcano.sh": "volcano", "podgroups.scheduling.x-k8s.io": "coscheduling"}
_KIB = {"Ki": 1, "Mi": 2**10, "Gi": 2**20, "Ti": 2**30}


@dataclass(frozen=True)
class Node:
    """A node with GPUs; cores and GiB are what the scheduler can allocate."""

    product: str
    gpus: int
    cores: int
    memory_gib: int
    taints: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Survey:
    """The result; ``unknown`` names the resources that this user may not list."""

    kinds: tuple[str, ...]
    gpu_products: dict[str, int]
    rdma: tuple[str, ...]
    storage_classes: tuple[str, ...]
    queues: tuple[str, ...]
    unknown: tuple[str, ...]
    nodes: tuple[Node, ...] = ()
    claims: tuple[str, ...] = ()
    schedulers: tuple[str, ...] = ()


def survey() -> Survey:
    """Survey the cluster.

    Raises:
        EnvironmentFault: kubectl is missing, or the cluster does not answer.
    """
    unknown: list[str] = []
    known = kubectl("api-resources", "--output", "name").split()
    every = _items("nodes", unknown)
    nodes = [node for node in map(_node, every) if node.gpus]
    products: Counter[str] = Counter()
    for node in nodes:
        products[node.product] += node.gpus
    resources = {name for node in every for name in node.get("status", {}).get("allocatable") or {}}
    return Survey(
        kinds=tuple(kind.lower() for kind, resource in KINDS.items() if resource in known),
        gpu_products=dict(sorted(products.items())),
        rdma=tuple(sorted(r for r in resources if r.startswith("rdma/") or r == "vpc.amazonaws.com/efa")),
        storage_classes=_names("storageclasses", unknown),
        queues=_names("localqueues.kueue.x-k8s.io", unknown),
        unknown=tuple(unknown),
        nodes=tuple(nodes),
        claims=tuple(sorted(map(_name, filter(_shared, _items("persistentvolumeclaims", unknown))))),
        schedulers=tuple(scheduler for crd, scheduler in _SCHEDULERS.items() if crd in known),
    )


def _node(node: Object) -> Node:
    allocatable = node.get("status", {}).get("allocatable") or {}
    labels = node["metadata"].get("labels") or {}
    taints = node.get("spec", {}).get("taints") or []
    cores = str(allocatable.get("cpu", "0"))
    return Node(
        product=labels.get(PRODUCT, "unlabelled"),
        gpus=int(allocatable.get(GPU, 0)),
        cores=int(cores[:-1]) // 1000 if cores.endswith("m") else int(cores),
        memory_gib=_gib(str(allocatable.get("memory", "0"))),
        taints=tuple((t["key"], t["effect"]) for t in taints if t.get("key") != GPU and "No" in t.get("effect", "")),
    )


def _gib(quantity: str) -> int:
    found = re.fullmatch(r"(\d+)([KMGT]i)?", quantity)
    if not found:
        return 0
    return int(found[1]) * _KIB[found[2]] // 2**20 if found[2] else int(found[1]) // 2**30


def _shared(claim: Object) -> bool:
    return "ReadWriteMany" in (claim.get("spec", {}).get("accessModes") or ())


def _items(resource: str, unknown: list[str]) -> list[Object]:
    try:
        items: list[Object] = json.loads(kubectl("get", resource, "-o", "json"))["items"]
    except NoSuchKind:
        return []
    except ClusterRefused:
        unknown.append(resource)
        return []
    return items


def _name(thing: Object) -> str:
    return str(thing["metadata"]["name"])


def _names(resource: str, unknown: list[str]) -> tuple[str, ...]:
    return tuple(sorted(map(_name, _items(resource, unknown))))


def profile(found: Survey) -> str:
    """Return a site profile for ``-f`` that fits the cluster.

    Raises:
        ClusterRefused: the cluster supports no kind of training job.
    """
    if not found.kinds:
        wanted = ", ".join(KINDS)
        raise ClusterRefused(f"the cluster has none of {wanted}; install the Kubeflow training-operator or JobSet")
    section: Object = {"kind": found.kinds[0]}
    products = [name for name in found.gpu_products if name != "unlabelled"]
    if len(products) == 1:
        section["gpu_products"] = products
    section |= _queue(found) | _tolerations(found)
    if len(found.claims) == 1:
        section["volumes"] = [{"name": "shared", "mount_path": "/shared", "pvc": found.claims[0]}]
    cluster = _cluster(found, products)
    return to_yaml({**({"cluster": cluster} if cluster else {}), "kubernetes": section})


def _queue(found: Survey) -> Object:
    """Use the only Kueue queue, or without Kueue the only gang scheduler (which a JobSet cannot use)."""
    if len(found.queues) == 1:
        return {"queue": f"kueue:{found.queues[0]}"}
    if not found.queues and len(found.schedulers) == 1 and found.kinds[0] != "jobset":
        return {"queue": found.schedulers[0]}
    return {}


def _tolerations(found: Survey) -> Object:
    """Tolerate the taints that all nodes with GPUs share."""
    common = set.intersection(*(set(node.taints) for node in found.nodes)) if found.nodes else set()
    tolerations = [{"key": key, "operator": "Exists", "effect": effect} for key, effect in sorted(common)]
    return {"tolerations": tolerations} if tolerations else {}


def _cluster(found: Survey, products: list[str]) -> Object:
    """Describe the nodes if all have the same GPU; two cores of each are left to the system."""
    if len(products) != 1 or len(found.gpu_products) != 1:
        return {}
    if re.search(r"-MIG-|-SHARED$", products[0]):
        return {"gpus_per_node": 1}  # slices and shares count as GPUs, but a process sees only one
    gpus = Counter(node.gpus for node in found.nodes).most_common(1)[0][0]
    like = [node for node in found.nodes if node.gpus == gpus]
    cores, memory = min(node.cores for node in like), min(node.memory_gib for node in like)
    name = _gpu_name(products[0])
    return {
        **({"gpu": name} if name else {}),
        "gpus_per_node": gpus,
        **({"cpus_per_gpu": (cores - 2) // gpus} if cores - 2 >= gpus else {}),
        **({"memory_gib": memory} if memory else {}),
    }


def _gpu_name(product: str) -> str | None:
    """Return our name of the GPU that gpu-feature-discovery labels e.g. NVIDIA-A100-SXM4-80GB."""
    wanted = re.sub(r"[^a-z0-9]", "", product.lower())
    for name in gpu_names():
        for alias in (name, *load_gpu(name).aliases):
            if re.sub(r"[^a-z0-9]", "", alias.lower()) in (wanted, wanted.removeprefix("nvidia")):
                return name
    return None
