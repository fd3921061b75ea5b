"""CPUs and memory of a Slurm job: request what the plan needs, and check what the user wrote against it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

from qwen_job.errors import Problem
from qwen_job.plan import Plan
from qwen_job.plan.search.question import HOST_MARGIN
from qwen_job.text import GIB, gib_or_mib

_MEMORY = ("mem", "mem-per-cpu", "mem-per-gpu")
_UNITS = {"K": 2**10, "": 2**20, "M": 2**20, "G": 2**30, "T": 2**40}


def whole_nodes(plan: Plan) -> bool:
    """Tell whether the job gets whole nodes."""
    slurm, written = plan.job.slurm, plan.job.slurm.sbatch.get("exclusive")
    if "exclusive" in slurm.sbatch:
        return written in (True, None)
    return plan.nodes > 1 and not plan.gpu.is_cpu if slurm.exclusive is None else slurm.exclusive


def written_cpus(plan: Plan) -> int | None:
    """Return the CPUs per node that job.yaml requests; None if it requests none."""
    slurm, cluster = plan.job.slurm, plan.job.cluster
    own, per_gpu = slurm.sbatch.get("cpus-per-task"), slurm.sbatch.get("cpus-per-gpu")
    if isinstance(own, str) and own.isdecimal():
        return int(own)
    if isinstance(per_gpu, str) and per_gpu.isdecimal():
        return int(per_gpu) * plan.gpus_per_node
    return slurm.cpus_per_task or (cluster.cpus_per_gpu * plan.gpus_per_node if cluster.cpus_per_gpu else None)


def needed_cpus(plan: Plan) -> int:
    """Return the CPUs per node below which processes wait for each other: one per process and data loader."""
    return max(one.gpus_per_node * (1 + one.job.train.dataloader_num_workers) for one in all_runs(plan))


def planned_cpus(plan: Plan) -> int | None:
    """Return --cpus-per-task; None if the job gets whole nodes, or the user's own option sets it."""
    if "cpus-per-gpu" in plan.job.slurm.sbatch:
        return None
    written = written_cpus(plan)
    return written if written or whole_nodes(plan) else needed_cpus(plan)


def planned_memory(plan: Plan) -> str | None:
    """Return --mem: as written, all of a whole node, else what the plan needs; None if that is unknown."""
    slurm = plan.job.slurm
    if slurm.memory is not None:
        return slurm.memory
    if any(slurm.sbatch.get(name) not in (None, False) for name in _MEMORY[1:]):
        return None
    if whole_nodes(plan):
        return "0"
    needs = [one.memory.host_bytes - _optional_states(one) for one in all_runs(plan) if one.memory is not None]
    return f"{math.ceil(max(needs) / GIB)}G" if needs else None


def _optional_states(plan: Plan) -> int:
    """Return the bytes of states in memory that nobody asked for: more memory would only lengthen the wait."""
    chosen = plan.job.train.memory_save_steps == "auto"
    return plan.memory.states_bytes if chosen and plan.memory is not None else 0


def _with_states(plan: Plan) -> str:
    """Return the memory in which the plan keeps states in memory: all that a node needs, and the plan's margin."""
    needs = [one.memory.host_bytes for one in all_runs(plan) if one.memory is not None]
    return f"{math.ceil(max(needs) / (1 - HOST_MARGIN) / GIB)}G"


def resource_notes(plan: Plan) -> Iterator[str]:
    """Yield notes about resources that are requested by default, and about those that cannot be."""
    slurm, cpus = plan.job.slurm, written_cpus(plan)
    if slurm.spare_nodes:
        total = plan.nodes + slurm.spare_nodes
        yield f"slurm.spare_nodes: the job gets {total} nodes and trains on {plan.nodes}; the others count as used, too"
    if cpus is not None and cpus < plan.gpus_per_node:
        field = "slurm.sbatch.cpus-per-task" if "cpus-per-task" in slurm.sbatch else "slurm.cpus_per_task"
        yield f"{field}: {cpus} CPUs for {plan.gpus_per_node} processes per node; they will wait for each other"
    if whole_nodes(plan):
        return
    if cpus is None and slurm.sbatch.get("cpus-per-task") is not False:
        yield (
            f"slurm.cpus_per_task: not set, so the job requests {needed_cpus(plan)} CPUs per node, one per process "
            "and data loader; set cluster.cpus_per_gpu to request more"
        )
    if plan.job.slurm.memory is None and planned_memory(plan) and (states := _optional_states(plan)):
        yield (
            f"train.memory_save_steps: auto: --mem={planned_memory(plan)} has no room for states in memory "
            f"({gib_or_mib(states)}), so a node that Slurm limits to it saves on disk only; to keep them, write "
            f"slurm.memory: {_with_states(plan)} or slurm.exclusive: true"
        )
    if planned_memory(plan) is None and not any(name in slurm.sbatch for name in _MEMORY):
        yield (
            "slurm.memory: not set, and the plan does not know what this model needs, so the job gets the partition's "
            "default; set slurm.memory"
        )


def resource_problems(plan: Plan) -> Iterator[Problem]:
    """Yield problems where the user's memory is less than the plan needs per node."""
    memory = plan.memory
    for path, size in _written_memory(plan):
        if memory is not None and size is not None and 0 < size < memory.host_needed:
            message = f"is {gib_or_mib(size)} per node, but the plan needs {gib_or_mib(memory.host_needed)}"
            message += " ('qwen-job plan' lists it)"
            yield plan.job.problem(
                path, f"{message}: use {math.ceil(memory.host_needed / GIB)}G, or 0 for the whole node"
            )


def _written_memory(plan: Plan) -> Iterator[tuple[tuple[str, ...], int | None]]:
    """Yield the field and the bytes per node of every memory request of the user."""
    slurm = plan.job.slurm
    if slurm.memory is not None:
        yield ("slurm", "memory"), bytes_of(slurm.memory)
    times = {"mem": 1, "mem-per-cpu": planned_cpus(plan), "mem-per-gpu": plan.gpus_per_node}
    for name in _MEMORY:
        value, many = slurm.sbatch.get(name), times[name]
        if isinstance(value, str):
            size = bytes_of(value)
            yield ("slurm", "sbatch", name), None if size is None or many is None else size * many


def bytes_of(text: str) -> int | None:
    """Return a value of --mem in bytes; a bare number is MB. None for anything else."""
    found = re.fullmatch(r"(\d+)([KMGT]?)B?", text, re.IGNORECASE)
    return int(found[1]) * _UNITS[found[2].upper()] if found else None


def all_runs(plan: Plan) -> list[Plan]:
    """Return the plans of a sweep's runs, or the plan alone."""
    return [run.plan for run in plan.sweep] or [plan]
