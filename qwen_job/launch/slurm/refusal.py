"""Diagnose sbatch refusals by comparing the request with the cluster's nodes and partitions."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from qwen_job.errors import ClusterRefused, EnvironmentFault
from qwen_job.job.slurm_time import slurm_seconds
from qwen_job.launch.slurm.survey import (
    Node,
    Partition,
    ask,
    gpus_of,
    nodes_of,
    partitions_of,
    read_json,
)
from qwen_job.render.bundle import Request

_SIZES = {"K": 1 / 1024, "": 1, "M": 1, "G": 1024, "T": 1024**2}


def check_time(request: Request, cluster: str = "") -> None:
    """Reject a time limit over the partition's: sbatch accepts it unless EnforcePartLimits is set, and never starts it.

    Where the partitions cannot be queried, the decision is left to Slurm.

    Raises:
        ClusterRefused: names the field of the time limit.
    """
    options = request.values
    wanted = slurm_seconds(options.get("time", ""))
    if wanted is None or "," in cluster:
        return
    try:
        partitions = partitions_of(ask("scontrol", "show", "partition", "--oneliner", cluster=cluster))
    except (ClusterRefused, EnvironmentFault):
        return
    for partition in _asked(options, partitions):
        if partition.max_seconds is None or wanted <= partition.max_seconds:
            return
    names = ", ".join(partition.name for partition in _asked(options, partitions))
    if names:
        most = max(_asked(options, partitions), key=lambda one: one.max_seconds or 0).fields["MaxTime"]
        field = request.fields.get("time", "slurm.time")
        message = f"{field}: {options['time']} is over the limit of partition {names}, {most}"
        raise ClusterRefused(f"{message}: request less; the job saves and requeues itself")


def explain(options: Mapping[str, str], cluster: str = "") -> str | None:
    """Return which field no node can satisfy, for a refusal that names none; None when that is unknown."""
    if "," in cluster:
        return None
    try:
        partitions = partitions_of(ask("scontrol", "show", "partition", "--oneliner", cluster=cluster))
        names = {partition.name for partition in _asked(options, partitions)}
        answer = read_json(ask("sinfo", "--json", cluster=cluster))
        nodes = [node for node in nodes_of(answer) if node.partitions & names]
    except (ClusterRefused, EnvironmentFault):
        return None
    where = f"partition {', '.join(sorted(names))}"
    found = list(_too_much(options, nodes, where)) if nodes else []
    return "; ".join(found) or None


def _too_much(options: Mapping[str, str], nodes: list[Node], where: str) -> Iterable[str]:
    wanted = gpus_of(options.get("gres", "")) or gpus_of(f"gpu:{options.get('gpus-per-node', '')}")
    for kind, count in wanted.items():
        there = [sum(node.gpus.values()) if not kind else node.gpus.get(kind, 0) for node in nodes]
        kinds = sorted({name for node in nodes for name in node.gpus if name})
        if not any(there):
            have = f"the GPUs of {where} are {', '.join(kinds)}" if kinds else f"no node of {where} has GPUs"
            yield f"slurm.gpu_type: {kind!r}, but {have}" if kind else f"cluster.gpus_per_node: {have}"
        elif count > max(there):
            yield f"cluster.gpus_per_node: {count}, but a node of {where} has {max(there)}"
    size = int(options.get("nodes", "1"))
    if size > len(nodes):
        yield f"cluster.nodes: {size}, but {where} has {len(nodes)}"
    memory, most = _mebibytes(options.get("mem", "")), max(node.memory_mib for node in nodes)
    if memory > most:
        yield f"slurm.memory: {options['mem']}, but the largest node of {where} has {most / 1024:.1f}G"
    cpus = options.get("cpus-per-task", "")
    if cpus.isdigit() and int(cpus) > max(node.cpus for node in nodes):
        most_cpus = max(node.cpus for node in nodes)
        yield f"slurm.cpus_per_task or cluster.cpus_per_gpu: {cpus} CPUs, but a node of {where} has {most_cpus}"


def _asked(options: Mapping[str, str], partitions: dict[str, Partition]) -> list[Partition]:
    """Return the partitions that the script names, else the default one."""
    if "partition" in options:
        return [partitions[name] for name in options["partition"].split(",") if name in partitions]
    return [partition for partition in partitions.values() if partition.fields.get("Default") == "YES"]


def _mebibytes(text: str) -> float:
    found = re.fullmatch(r"(\d+)([KMGT]?)B?", text, re.IGNORECASE)
    return int(found[1]) * _SIZES[found[2].upper()] if found else 0
