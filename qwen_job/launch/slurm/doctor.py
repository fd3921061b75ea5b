"""Turn the survey of a Slurm cluster into a site profile, with warnings about settings that affect jobs."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from qwen_job.errors import ClusterRefused
from qwen_job.facts.hardware import gpu_names, load_gpu
from qwen_job.launch.slurm.survey import RUNTIMES, Node, Partition, Survey
from qwen_job.render.quote import to_yaml
from qwen_job.render.slurm.sbatch_options import slurm_time

_ARRAY_SIZE = 1001


@dataclass
class Proposal:
    """The profile's lines by section, each with its source, and the findings.

    A line whose value is None is written as a comment, for the user to fill in.
    """

    lines: dict[str, list[tuple[str, Any, str]]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, section: str, name: str, value: Any, why: str) -> None:
        """Add a line to the profile."""
        self.lines.setdefault(section, []).append((name, value, why))

    def text(self, head: str) -> str:
        """Return the profile as YAML, each line with its source in a comment."""
        parts = [f"# {head}"]
        for section, lines in self.lines.items():
            only_comments = all(value is None for _, value, _ in lines)
            parts.append(f"{'# ' if only_comments else ''}{section}:")
            for name, value, why in lines:
                shown = f"# {name}:" if value is None else f"{name}: {to_yaml(value).strip()}"
                parts.append(f"{f'  {shown}':<34}  # {why}")
        return "\n".join(parts) + "\n"


@dataclass(frozen=True)
class _Machines:
    """The nodes that the profile describes, all of one partition; ``kind`` is their GPU type, None without GPUs.

    ``mixed`` means that the partition also has GPUs of other types.
    """

    partition: Partition
    kind: str | None
    nodes: list[Node]
    mixed: bool = False

    @property
    def gpus(self) -> int:
        """The most common number of GPUs of that type per node."""
        return _most_common([node.gpus[self.kind] for node in self.nodes]) if self.kind is not None else 0


def propose(found: Survey, partition: str | None = None) -> Proposal:
    """Return the profile for ``partition``, by default the one with the most GPUs.

    Raises:
        ClusterRefused: the partition is unknown, or the cluster has no nodes.
    """
    proposal = Proposal()
    machines = _choose(found, partition, proposal)
    _cluster(machines, found, proposal)
    _container(found, proposal)
    _slurm(machines, found, proposal)
    _surprises(machines, found, proposal)
    return proposal


def _choose(found: Survey, wanted: str | None, proposal: Proposal) -> _Machines:
    if wanted is not None and wanted not in found.partitions:
        raise ClusterRefused(
            f"there is no partition {wanted!r}; the cluster has {', '.join(found.partitions) or 'none'}"
        )
    names = [wanted] if wanted else [name for name, partition in found.partitions.items() if partition.is_up]
    counts: Counter[tuple[str, str]] = Counter()
    for node in found.nodes:
        for name in names:
            if name in node.partitions and node.usable:
                counts.update({(name, kind): count for kind, count in node.gpus.items()})
    if not counts:
        return _without_gpus(found, names, proposal)
    default = {name for name in names if found.partitions[name].fields.get("Default") == "YES"}
    name, kind = max(counts, key=lambda key: (counts[key], key[0] in default))
    others = sorted({other for other, _ in counts} - {name})
    if others:
        proposal.notes.append(f"other partitions with GPUs: {', '.join(others)} (choose one with --partition)")
    kinds = sorted(other or "without a type" for there, other in counts if there == name and other != kind)
    if kinds:
        text = f"partition {name} also has other GPUs: {', '.join(kinds)}; slurm.gpu_type avoids them"
        proposal.warnings.append(text)
    nodes = [node for node in found.nodes if name in node.partitions and node.usable and kind in node.gpus]
    return _Machines(found.partitions[name], kind, nodes, mixed=bool(kinds))


def _without_gpus(found: Survey, names: list[str], proposal: Proposal) -> _Machines:
    nodes = [node for node in found.nodes if node.usable and node.partitions & set(names)]
    if not nodes:
        raise ClusterRefused("sinfo shows no node that could start a job; try again when the cluster is up")
    proposal.warnings.append("no node has a gres named gpu, so Slurm allocates no GPUs and this profile trains on CPUs")
    counts = Counter(name for node in nodes for name in node.partitions & set(names))
    name = counts.most_common(1)[0][0]
    return _Machines(found.partitions[name], None, [node for node in nodes if name in node.partitions])


def _cluster(machines: _Machines, found: Survey, proposal: Proposal) -> None:
    nodes, name = machines.nodes, machines.partition.name
    where = f"{len(nodes)} node{'s' * (len(nodes) > 1)} of partition {name}"
    cpus, memory = _most_common([n.cpus for n in nodes]), min(n.memory_mib for n in nodes)
    if machines.kind is None:
        proposal.add("cluster", "gpu", "CPU", "no node has a gres named gpu")
    else:
        _gpu(machines, where, proposal)
        if len({node.gpus[machines.kind] for node in nodes}) > 1:
            counts = sorted({node.gpus[machines.kind] for node in nodes})
            proposal.warnings.append(
                f"nodes of {name} have {' or '.join(map(str, counts))} GPUs; the profile uses {machines.gpus}"
            )
        proposal.add("cluster", "cpus_per_gpu", max(1, cpus // machines.gpus), f"{cpus} CPUs for {machines.gpus} GPUs")
    if memory:
        proposal.add("cluster", "memory_gib", round(memory / 1024, 1), f"RealMemory={memory} of the smallest node")
    adapters = f"this machine has {', '.join(found.adapters)}" if found.adapters else "this machine has no adapter"
    why = f"infiniband, roce, efa or ethernet: {adapters}; check the nodes with srun ls /sys/class/infiniband"
    proposal.add("cluster", "interconnect", None, why)


def _gpu(machines: _Machines, where: str, proposal: Proposal) -> None:
    kind = machines.kind or ""
    features = {feature for node in machines.nodes for feature in node.features}
    known = gpu_called(kind, features)
    if len(known) == 1:
        proposal.add("cluster", "gpu", known[0], f"gres type {kind!r} of {where}")
    else:
        which = " or ".join(known) if known else "its name in qwen_job/facts/gpus, or its own figures"
        why = "ambiguous" if known else "unknown"
        proposal.add("cluster", "gpu", None, f"{which}: gres type {kind!r} is {why}")
        said = f"gres type {kind!r}" if kind else "its gres has no type"
        proposal.warnings.append(f"cluster.gpu: {said}; write {which}")
    proposal.add("cluster", "gpus_per_node", machines.gpus, f"gres gpu of {where}")


def gpu_called(kind: str, features: set[str]) -> list[str]:
    """Return the GPUs of qwen_job/facts/gpus that a gres type (a100, nvidia_a100-sxm4-80gb) may refer to."""
    word = _plain(kind)
    if not word:
        return []
    known = [load_gpu(name) for name in gpu_names() if name != "CPU"]
    # The bare name of a GPU that comes in several memory sizes is ambiguous.
    family = [gpu.name for gpu in known if _plain(gpu.name.split("-")[0]) == word]
    exact = [gpu.name for gpu in known if word in map(_plain, (gpu.name, *gpu.aliases))]
    if len(family) < 2:
        return exact or family
    sizes = {found[1] for text in features if (found := re.search(r"(\d+)\s*gi?b?$", text.lower()))}
    fitting = [name for name in family if name.rsplit("-", 1)[-1].rstrip("G") in sizes]
    return fitting if len(fitting) == 1 else family


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9]|^tesla|^nvidia", "", text.lower())


def _container(found: Survey, proposal: Proposal) -> None:
    if found.pyxis:
        proposal.add("container", "runtime", "pyxis", "srun --help knows --container-image")
        proposal.add("container", "image", None, "the image, e.g. /shared/images/qwen-job.sqsh")
        return
    here = [RUNTIMES[name] for name in found.runtimes if RUNTIMES[name]]
    if here:
        why = f"{' or '.join(here)}: found on this machine; check the nodes with srun which {here[0]}"
        proposal.add("container", "runtime", None, why)
    else:
        proposal.notes.append(
            "no container runtime on this machine and no pyxis; set slurm.setup or slurm.modules to provide Python"
        )
    others = [name for name in found.runtimes if not RUNTIMES[name]]
    if others:
        proposal.notes.append(f"{', '.join(others)}: found on this machine, but not supported; use pyxis or apptainer")


def _slurm(machines: _Machines, found: Survey, proposal: Proposal) -> None:
    partition, config = machines.partition, found.config
    proposal.add(
        "slurm", "partition", partition.name, f"{'its nodes have GPUs' if machines.kind is not None else 'up'}"
    )
    if len(found.accounts) == 1:
        proposal.add("slurm", "account", found.accounts[0], "your only account (sacctmgr show user)")
    elif found.accounts:
        proposal.add("slurm", "account", None, f"one of {', '.join(found.accounts)} (sacctmgr show user)")
    if machines.kind is not None:
        _gpu_request(machines, config, proposal)
    if partition.max_seconds:
        proposal.add("slurm", "time", slurm_time(partition.max_seconds), f"MaxTime of partition {partition.name}")
    if partition.fields.get("OverSubscribe", "").startswith("EXCLUSIVE"):
        proposal.add("slurm", "exclusive", True, "OverSubscribe=EXCLUSIVE: the partition allocates whole nodes")
    _memory(partition, config, proposal)
    disk = min(node.disk_mib for node in machines.nodes)
    if disk > 0 and config.get("TmpFS", "").startswith("/"):
        proposal.add("slurm", "scratch", config["TmpFS"], f"TmpFS; every node's TmpDisk is at least {disk} MiB")


def _gpu_request(machines: _Machines, config: dict[str, str], proposal: Proposal) -> None:
    select = config.get("SelectType", "")
    way = "gpus-per-node" if "cons_tres" in select else "gres"
    proposal.add("slurm", "gpu_request", way, f"SelectType={select or 'unknown'}")
    if machines.kind and machines.mixed:
        proposal.add("slurm", "gpu_type", machines.kind, "the gres type, so that no other GPU is allocated")


def _memory(partition: Partition, config: dict[str, str], proposal: Proposal) -> None:
    """Request all memory where the partition's default would be less than a node's."""
    if "memory" not in config.get("SelectTypeParameters", "").lower():
        return
    for name in ("DefMemPerNode", "DefMemPerCPU", "DefMemPerGPU"):
        value = partition.fields.get(name, "UNLIMITED")
        value = config.get(name, "UNLIMITED") if value == "UNLIMITED" else value
        if value not in ("UNLIMITED", "0", ""):
            why = f"without it a job gets {name}={value} MiB; 0 requests all of a node"
            proposal.add("slurm", "memory", "0", why)
            return


def _surprises(machines: _Machines, found: Survey, proposal: Proposal) -> None:
    partition, config = machines.partition, found.config
    if config.get("JobRequeue") == "0":
        text = "JobRequeue=0: the script requests --requeue itself; if that is forbidden, set slurm.chain: 5"
        proposal.warnings.append(text)
    mode = partition.fields.get("PreemptMode", config.get("PreemptMode", ""))
    if config.get("PreemptType", "preempt/none") != "preempt/none" and "CANCEL" in mode:
        grace = partition.fields.get("GraceTime", "0")
        text = f"PreemptMode={mode}: a preempted job is cancelled after {grace} s, not requeued; slurm.chain resumes it"
        proposal.warnings.append(text)
    if partition.max_seconds is None:
        proposal.notes.append(f"partition {partition.name} has no time limit; set slurm.time to be scheduled earlier")
    down = [node.name for node in found.nodes if partition.name in node.partitions and not node.usable]
    if down:
        proposal.notes.append(f"left out {len(down)} nodes of {partition.name} that are down or drained")
    if "associations" in config.get("AccountingStorageEnforce", "") and not found.accounts:
        proposal.warnings.append("slurm.account: this cluster requires one, but sacctmgr lists none of yours")
    if int(config.get("MaxArraySize", _ARRAY_SIZE) or 0) < _ARRAY_SIZE:
        most = int(config["MaxArraySize"]) - 1
        proposal.warnings.append(
            f"MaxArraySize={config['MaxArraySize']}: a sweep or a chain can have at most {most} jobs"
        )
    if config.get("JobContainerType", "").endswith("tmpfs"):
        proposal.notes.append(f"{config['JobContainerType']}: every job has its own /tmp")


def _most_common(values: list[int]) -> int:
    return Counter(values).most_common(1)[0][0]
