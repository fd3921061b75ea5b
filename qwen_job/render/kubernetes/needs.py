"""What a pod must request: cores, memory, whole GPUs or one slice, and time; compared with the user's amounts."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from qwen_job.errors import Problem
from qwen_job.job.document import Path, dotted
from qwen_job.job.kubernetes import Kubernetes
from qwen_job.plan import Plan
from qwen_job.plan.advice import bytes_of
from qwen_job.render.evaluation import pod_words
from qwen_job.text import GIB

# Seconds between the end of saving and the exit of the processes.
LEAVING_SECONDS = 30
# Host memory of an evaluation: the libraries, and a model that is loaded through it.
_LEAST_BYTES = 8 * GIB
# A part of a GPU: a process sees only one MIG slice, and NCCL sees shares of a GPU as the same GPU.
_PART = r"[^/]+/(mig-.*|.*\.shared)"
_SLICE_SHARE = 0.9


class Evaluation(NamedTuple):
    """The pod that evaluates: options of ``qwen-job evaluate RUN``, time limit in seconds, cores and memory."""

    options: tuple[str, ...]
    time: int | None
    cpu: str
    memory: str | None


def needs(plan: Plan) -> dict[str, str]:
    """Return the cores and memory that a pod needs; no memory for a model that the plan does not know.

    One core for each process and, with GPUs, for each data loader; copying a checkpoint to the host uses the rest.
    """
    loaders = 0 if plan.gpu.is_cpu else plan.job.train.dataloader_num_workers
    cores = plan.job.cluster.cpus_per_gpu or 1 + loaders
    memory = {}
    if plan.memory is not None:
        states = plan.memory.states_bytes
        # /dev/shm counts toward the pod's memory; where states do not fit, the node keeps none.
        kept = states if states <= bytes_of(plan.job.kubernetes.shm_size) else 0
        memory = {"memory": f"{math.ceil((plan.memory.host_needed + kept) / GIB)}Gi"}
    return {"cpu": str(cores * plan.gpus_per_node), **memory}


def evaluation(plan: Plan) -> Evaluation | None:
    """Return what the evaluating pod runs and needs: one GPU's share of a training pod's cores and memory."""
    words = pod_words(plan)
    if plan.job.evaluate is None or not words:
        return None
    return Evaluation(tuple(words), plan.job.evaluate.time or None, _cores_of_one(plan), _memory_of_one(plan))


def _cores_of_one(plan: Plan) -> str:
    amounts = [one for one in written(plan.job.kubernetes, "cpu").values() if one.isdecimal()]
    return str(max(1, math.ceil(int(amounts[0] if amounts else needs(plan)["cpu"]) / plan.gpus_per_node)))


def _memory_of_one(plan: Plan) -> str | None:
    amounts = [size for one in written(plan.job.kubernetes, "memory").values() if (size := simple_bytes(one))]
    planned = needs(plan).get("memory")
    if not amounts and planned is None:
        return None
    node = amounts[0] if amounts else bytes_of(planned or "0")
    return f"{math.ceil(min(node, max(node / plan.gpus_per_node, _LEAST_BYTES)) / 2**20)}Mi"


def written(section: Kubernetes, resource: str) -> dict[Path, str]:
    """Return field below ``kubernetes`` -> amount for every place where the user sets ``cpu`` or ``memory``."""
    main = "pytorch" if section.kind == "pytorchjob" else "node"
    containers: list[tuple[Path, dict[str, Any]]] = [(("pod_container",), section.pod_container)]
    items = section.pod.get("containers")
    for number, item in enumerate(items if isinstance(items, list) else ()):
        if isinstance(item, dict) and item.get("name") == main:
            containers.append((("pod", "containers", number), item))
    own = {"cpu": section.cpu, "memory": section.memory}[resource]
    found: dict[Path, str] = {(resource,): own} if own else {}
    if resource in section.resources:
        found[("resources", resource)] = section.resources[resource]
    for path, container in containers:
        for group in ("limits", "requests"):
            amount = _at(container, "resources", group, resource)
            if amount is not None:
                where: Path = (*path, "resources", group, resource)
                found[where] = str(amount)
    return found


def _at(value: Any, *keys: str) -> Any:
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def request_notes(plan: Plan) -> Iterator[str]:
    """Yield notes about amounts that are requested by default."""
    for path, amount in written(plan.job.kubernetes, "cpu").items():
        cores = float(amount.removesuffix("m")) / (1000 if amount.endswith("m") else 1) if _is_cores(amount) else None
        if cores is not None and cores < plan.gpus_per_node:
            text = f"{amount} for {plan.gpus_per_node} processes, which need a core each and would wait for each other"
            yield f"{dotted(('kubernetes', *path))}: {text}; use {needs(plan)['cpu']}"
    wanted = {name: amount for name, amount in needs(plan).items() if not written(plan.job.kubernetes, name)}
    if plan.job.cluster.cpus_per_gpu:
        wanted.pop("cpu", None)
    if wanted:
        amounts = " and ".join(
            f"{amount} {'cores' if name == 'cpu' else 'of memory'}" for name, amount in wanted.items()
        )
        fields = ", ".join(f"kubernetes.{name}" for name in wanted)
        yield f"{fields}: not set, so each pod requests {amounts} (what the plan needs), without a limit"


def _is_cores(amount: str) -> bool:
    return re.fullmatch(r"[0-9]+(\.[0-9]+)?m?", amount) is not None


def amount_problems(plan: Plan) -> Iterator[Problem]:
    """Yield amounts of the user that are less than the job needs."""
    for path, text in [*_memory(plan), *_parts(plan), *_time(plan)]:
        yield plan.job.problem(("kubernetes", *path), text)


def _memory(plan: Plan) -> Iterator[tuple[Path, str]]:
    need, shm = needs(plan).get("memory", "0"), plan.job.kubernetes.shm_size
    for path, amount in written(plan.job.kubernetes, "memory").items():
        size = simple_bytes(amount)
        if size is None:
            continue
        if size < bytes_of(need):
            yield path, f"{amount} is less than the {need} of host memory that the plan estimates per node; use {need}"
        elif size < bytes_of(shm) and "requests" not in path:
            yield path, f"{amount} is less than kubernetes.shm_size ({shm}), which is part of it; use a smaller one"


def simple_bytes(amount: str) -> int | None:
    """Return a quantity in bytes; None for an invalid one."""
    return bytes_of(amount) if re.fullmatch(r"[0-9]+(\.[0-9]+)?(m|k|[MGTPE]|[KMGTPE]i)?", amount) else None


def _parts(plan: Plan) -> Iterator[tuple[Path, str]]:
    section = plan.job.kubernetes
    counts: dict[Path, tuple[str, int]] = {("gpu_resource",): (section.gpu_resource or "", plan.gpus_per_node)}
    counts |= {("resources", name): (name, int(amount)) for name, amount in section.resources.items() if "/" in name}
    for path, (name, count) in counts.items() if not plan.gpu.is_cpu else ():
        part = re.fullmatch(_PART, name)
        if part and count > 1:
            yield (
                path,
                f"a process sees only one {name}, and the pod has {count}; set cluster.gpus_per_node: 1",
            )
        size = re.search(r"\.(\d+)gb", part[1]) if part else None
        have = plan.gpu.memory_bytes
        if size and have and int(size[1]) * 1e9 < _SLICE_SHARE * have:
            text = f"{name} has {size[1]} GB, but the plan assumes {have / 1e9:.0f} GB ({plan.gpu.name})"
            yield path, f"{text}; set cluster.gpu: {{name: {part[1] if part else ''}, memory_gib: ...}}"


def _time(plan: Plan) -> Iterator[tuple[Path, str]]:
    deadline, least = plan.job.kubernetes.active_deadline, plan.job.retry.grace + LEAVING_SECONDS
    if deadline is not None and deadline <= least:
        text = f"{deadline} s leaves no time to train: saving alone may take {least} s (retry.grace); use a longer one"
        yield ("active_deadline",), text
