"""The smallest cluster for a job: with its own GPU, and with every other known one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from qwen_job.errors import REMEDY, JobError
from qwen_job.facts.hardware import gpu_names
from qwen_job.job import Job
from qwen_job.plan.plan import question_for
from qwen_job.plan.schedule import DataSize, RunPlan, plan_run
from qwen_job.plan.search.choice import LARGEST_CLUSTER, Choice, choose
from qwen_job.plan.search.nearest import heading, least_misfit, more_host_memory, nearest, remedies
from qwen_job.plan.search.question import Question
from qwen_job.plan.search.sharding import able_gpus


@dataclass(frozen=True)
class Smallest:
    """The fewest GPUs of one kind that fit the job; if none do, ``choice`` is None and ``why`` has the reason."""

    gpu: str
    nodes: int
    gpus_per_node: int
    choice: Choice | None
    run: RunPlan | None
    why: str = ""


def smallest_clusters(job: Job, data: DataSize | None = None) -> list[Smallest]:
    """Return the job's own GPU first, then every other known one that can run the job, fewest GPUs first.

    Full nodes are preferred. Where host memory is limited, fewer GPUs on each node may need fewer of them altogether:
    the job's own GPU then comes twice. The job's price is for its own GPU, so only that one gets a cost.

    Raises:
        JobError: the model's shape is unknown.
    """
    own = question_for(job)
    first = _smallest(job, own, data)
    unpriced = job.model_copy(update={"cluster": job.cluster.model_copy(update={"price_per_gpu_hour": None})})
    others = []
    for name in gpu_names():
        if name == own.gpu.name or name.upper() == "CPU":
            continue
        try:
            question = question_for(job, name)
        except JobError:
            continue
        # For other GPUs, doubling is precise enough and a tenth of the work.
        found = _smallest(unpriced, question, data, doubling=True)
        others += [found] if found.choice else []
    return [
        first,
        *_fewer_on_a_node(job, own, data, first),
        *sorted(others, key=lambda one: (one.nodes * one.gpus_per_node, one.gpu)),
    ]


def host_limit(job: Job, found: Smallest) -> str:
    """Return a message about the smaller cluster that fits with more host memory; empty if that decides nothing.

    ``found`` is the job's own GPU's.
    """
    have, most = job.cluster.memory_gib, found.nodes * found.gpus_per_node
    if have is None or found.choice is None:
        return ""
    question = question_for(job)
    for nodes, gpus in _sizes(replace(question, host_memory_bytes=None), job.cluster.gpus_per_node, False):
        if nodes * gpus >= most:
            return ""
        for change in more_host_memory(replace(question, nodes=nodes, gpus_per_node=gpus)):
            return f"limited by cluster.memory_gib: {have:g}; with {change.value} GiB, {nodes} x {gpus} fits"
    return ""


def _smallest(job: Job, question: Question, data: DataSize | None, *, doubling: bool = False) -> Smallest:
    for nodes, gpus in _sizes(question, job.cluster.gpus_per_node, doubling):
        if found := _at(job, question, data, nodes, gpus):
            return found
    nodes = LARGEST_CLUSTER
    return Smallest(
        question.gpu.name, nodes, question.gpus_per_node, None, None, "" if doubling else _why(job, question)
    )


def _at(job: Job, question: Question, data: DataSize | None, nodes: int, gpus: int) -> Smallest | None:
    """Return the job on a cluster of this size; None: it does not fit."""
    asked = replace(question, nodes=nodes, gpus_per_node=gpus)
    if not any(rows and rows % (asked.micro_batch_size or 1) == 0 for rows in map(asked.rows, asked.sizes)):
        return None
    best = choose(asked).best
    return Smallest(question.gpu.name, nodes, gpus, best, plan_run(job, asked, best, data)) if best else None


def _fewer_on_a_node(job: Job, question: Question, data: DataSize | None, found: Smallest) -> list[Smallest]:
    """Return the smallest cluster of parts of several nodes, if it has fewer GPUs than the one that was found."""
    full, most = found.gpus_per_node, found.nodes * found.gpus_per_node
    if question.host_memory_bytes is None or found.choice is None or found.nodes == 1 or full < question.gpus_per_node:
        return []
    for nodes, gpus in _parts_of_nodes(full, range(2, LARGEST_CLUSTER + 1)):
        if nodes * gpus < most and (one := _at(job, question, data, nodes, gpus)):
            return [one]
    return []


def _parts_of_nodes(gpus_per_node: int, counts: Iterable[int]) -> list[tuple[int, int]]:
    """Return (nodes, GPUs per node) of several nodes of which only some GPUs are used, the fewest GPUs first."""
    several = ((nodes, size) for size in _powers_below(gpus_per_node) for nodes in counts if nodes > 1)
    return sorted(several, key=lambda one: (one[0] * one[1], one[0]))


def _powers_below(count: int) -> list[int]:
    return [2**power for power in range(count.bit_length()) if 2**power < count]


def _sizes(question: Question, gpus_per_node: int, doubling: bool) -> Iterator[tuple[int, int]]:
    """Yield (nodes, GPUs per node): parts of one node, then whole nodes, smallest first; then fewer GPUs on each node.

    Fewer GPUs on a node leave more host memory to each, so they are tried where that memory is limited.
    """
    parts = _powers_below(gpus_per_node)
    counts = [2**power for power in range(LARGEST_CLUSTER.bit_length())] if doubling else range(1, LARGEST_CLUSTER + 1)
    yield from ((1, size) for size in parts)
    yield from ((nodes, gpus_per_node) for nodes in counts)
    if question.host_memory_bytes is not None:
        yield from _parts_of_nodes(gpus_per_node, counts)


def _why(job: Job, question: Question) -> str:
    """Return why no cluster is large enough, and the nearest jobs that would fit."""
    if question.global_batch_size is not None:
        for nodes, gpus in _sizes(question, job.cluster.gpus_per_node, False):
            if choose(replace(question, nodes=nodes, gpus_per_node=gpus, global_batch_size=None)).best:
                rows = f"{question.global_batch_size} rows a step do not divide by"
                return f"{rows} {nodes * gpus} GPUs or any larger cluster; write a multiple of {nodes * gpus}"
    largest = replace(question, nodes=LARGEST_CLUSTER, global_batch_size=None)
    least = least_misfit(largest)
    if least is None:
        return "the rows of a step do not divide by the micro-batch"
    ways = tuple(f"{way.field}: {way.message}" for way in nearest(largest)) or remedies(largest, able_gpus(largest))
    return "\n".join(
        [f"{least} {least.misfit}" + (f"; {heading(ways)}" if ways else ""), *(REMEDY + way for way in ways)]
    )
