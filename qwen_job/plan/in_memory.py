"""Decide whether a run keeps states in host memory: what they take of a node, and what the node has."""

from __future__ import annotations

import math
import re

from qwen_job.errors import JobError
from qwen_job.facts.choices import MemorySaveSteps, states_of
from qwen_job.job import Job
from qwen_job.plan.advice import bytes_of
from qwen_job.plan.decision import Ledger
from qwen_job.plan.estimate.memory import state_bytes
from qwen_job.plan.search.choice import Choice, layout_of
from qwen_job.plan.search.question import HOST_MARGIN, Question
from qwen_job.text import GIB, gib_or_mib

_FIELD = "train.memory_save_steps"
# Linux gives a tmpfs, and so /dev/shm, half of the memory unless it is mounted with another size (tmpfs(5)).
_TMPFS_SHARE = 0.5


def decide_memory_saves(
    job: Job, question: Question | None, choice: Choice, ledger: Ledger
) -> tuple[MemorySaveSteps, Choice]:
    """Return the steps between states in memory, and the choice with their size in its estimate.

    Raises:
        JobError: the job gives a number of steps, and the states do not fit; tells by how much.
    """
    asked = job.train.memory_save_steps
    written = None if asked == "auto" else asked
    if written == 0 or question is None or choice.memory is None:
        reason = "the model's shape is unknown: each node looks whether they fit"
        return ledger.decide(_FIELD, written, "auto", reason), choice
    size = states_of(question.nodes) * state_bytes(layout_of(question, choice))
    short = _split_experts(question, choice) or _shortage(job, question, choice, size)
    if short and written:
        raise JobError([job.problem(("train", "memory_save_steps"), f"{short}; write auto or 0, or change that")])
    if short:
        return ledger.decide(_FIELD, written, 0, f"off: {short}"), choice
    kept = "and the neighbour's" if question.nodes > 1 else "in two versions"
    reason = f"the state {kept} takes {gib_or_mib(size)} of a node's memory; as often as costs 1% of the time"
    return ledger.decide(_FIELD, written, "auto", reason), choice._replace(memory=choice.memory.with_states(size))


def _split_experts(question: Question, choice: Choice) -> str:
    several = question.nodes > 1 and choice.expert_parallel_size > 1
    return "of several nodes, only the first would have the experts that GPUs split" if several else ""


def shared_memory(job: Job) -> int | None:
    """Return the size of /dev/shm where the job itself decides it; our containers elsewhere share the host's."""
    meant = job.wrote("kubernetes") or job.wrote("kubernetes", "shm_size")
    return bytes_of(job.kubernetes.shm_size) if meant else None


def _shortage(job: Job, question: Question, choice: Choice, size: int) -> str:
    """Return why ``size`` bytes do not fit into a node's shared memory or host memory, or ""."""
    have = question.host_memory_bytes
    spare = GIB * question.gpus_per_node if question.gpus_per_node > 1 else 0  # NCCL's and the data loaders'
    shm = shared_memory(job)
    if shm is None and have is not None:
        shm, spare = int(_TMPFS_SHARE * have), 0
    if shm is not None and size > shm - spare:
        taken, room = f"states in memory take {gib_or_mib(size)} of a node", gib_or_mib(shm)
        if shared_memory(job) is None:
            return f"{taken}, {gib_or_mib(size - shm)} too much: /dev/shm, half of the node's memory, has {room}"
        others = f", NCCL and the data loaders {gib_or_mib(spare)}" if spare else ""
        enough = f"write {math.ceil((size + spare) / GIB)}Gi to keep them"
        return f"{taken}{others}; kubernetes.shm_size is {room}: {enough}"
    for field, limit in _limits(job, have).items():
        free = limit * (1 - HOST_MARGIN) - choice.needs.host_bytes
        if size > free:
            more = gib_or_mib(size - free)
            return f"states in memory take {gib_or_mib(size)} of a node, {more} more than {field} leaves"
    return ""


def _limits(job: Job, have: int | None) -> dict[str, int]:
    limits = {} if have is None else {"cluster.memory_gib": have}
    asked = job.slurm.memory or ""
    if found := re.fullmatch(r"([1-9]\d*)([KMGT]?)B?", asked, re.IGNORECASE):
        # --mem counts in MB (sbatch(1)).
        limits["slurm.memory"] = int(found[1]) * 1024 ** (" KMGT".index((found[2] or "M").upper()))
    if job.kubernetes.memory:
        limits["kubernetes.memory"] = bytes_of(job.kubernetes.memory)
    return limits
