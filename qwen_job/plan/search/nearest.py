"""If nothing fits: which limit is exceeded, by how much, and the nearest jobs that fit.

- ``refusal``: the whole message
- ``nearest``: changes that are each enough alone; ``together``: the smallest combination, if none is
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import combinations as subsets
from typing import Any, NamedTuple

from qwen_job.facts.hardware import Gpu
from qwen_job.plan.search.choice import LARGEST_CLUSTER, Choice, choose, combinations, fit
from qwen_job.plan.search.question import HOST_MARGIN, Question
from qwen_job.text import GIB

# Granularity of the search for a shorter sequence length.
LENGTH_STEP = 64
# More than this many times the nodes is no remedy where another one exists.
MOST_TIMES_THE_NODES = 4
# Fields that the user may have fixed: in the question, and in job.yaml.
FIXABLE = {
    "zero_stage": "deepspeed.zero_stage",
    "offload_optimizer": "deepspeed.offload_optimizer",
    "gradient_checkpointing": "train.gradient_checkpointing",
    "micro_batch_size": "train.per_device_train_batch_size",
    "sequence_parallel_size": "train.sequence_parallel_size",
    "expert_parallel_size": "train.expert_parallel_size",
    "tiled_mlp": "train.tiled_mlp",
    "activation_offloading": "train.activation_offloading",
}


class Change(NamedTuple):
    """One change that makes a job fit: ``field`` of job.yaml, its new value (None: remove the line), in words."""

    field: str
    value: int | str | bool | None
    message: str


class Refusal(NamedTuple):
    """The field of job.yaml to blame, the reason, and what would work: each alone is enough, the cheapest first."""

    field: str
    message: str
    remedies: tuple[str, ...] = ()


def refusal(question: Question, gpus: Sequence[Gpu] = ()) -> Refusal:
    """Return why a job does not fit, and the nearest jobs that do.

    ``gpus``: alternatives to suggest.
    """
    least = least_misfit(question)
    if least is None:
        near = f"write a multiple of {question.world_size}"
        rows = f"{question.global_batch_size} rows a step do not divide by {question.world_size} GPUs"
        return Refusal("train.global_batch_size", f"{rows}; {near}")
    ways = remedies(question, gpus)
    words = heading(ways) if ways else "no length, number of nodes or GPU known is enough"
    field = "cluster.memory_gib" if _fits_gpu(question, least) else "cluster.gpu"
    return Refusal(field, f"does not fit even with {least}: {least.misfit}; {words}", ways)


def remedies(question: Question, gpus: Sequence[Gpu] = ()) -> tuple[str, ...]:
    """Return what would make a job fit, in words: each alone is enough, the cheapest first; empty if nothing does."""
    changes = nearest(question, gpus)
    return tuple(f"{change.field}: {change.message}" for change in changes) or tuple(together(question, gpus))


def heading(ways: Sequence[str]) -> str:
    """Return the words before a list of remedies."""
    return "what would work:" if len(ways) == 1 else "what would work, each alone, the cheapest first:"


def least_misfit(question: Question) -> Choice | None:
    """Return the combination that exceeds its limit by the smallest share; None without any combination."""
    return min(combinations(question), key=lambda choice: _excess(question, choice), default=None)


def nearest(question: Question, gpus: Iterable[Gpu] = ()) -> list[Change]:
    """Return changes that each make the job fit alone, the least intrusive first.

    In this order: removing one of the user's fixed fields, a shorter sequence, more GPUs of the same node, more nodes,
    more host memory, another GPU of ``gpus`` (the smallest that is enough). Many times the nodes are only suggested
    where nothing else helps. Empty if none helps.
    """
    if choose(question).best:
        return []
    near = [*_freed(question), *_shorter(question), *_more_gpus(question)]
    other = [*more_host_memory(question), *_other_gpu(question, gpus)]
    most = min(LARGEST_CLUSTER, MOST_TIMES_THE_NODES * question.nodes) if near or other else LARGEST_CLUSTER
    return [*near, *_more_nodes(question, most), *other]


def together(question: Question, gpus: Sequence[Gpu] = ()) -> list[str]:
    """Return one suggestion that combines several changes; empty if there is none.

    In this order: without two or more of the fixed fields, the same on more nodes, another GPU on 1 to 64 nodes, a
    shorter sequence on the largest cluster.
    """
    fixed = [name for name in FIXABLE if getattr(question, name) is not None]
    for count in range(2, len(fixed) + 1):
        for names in subsets(fixed, count):
            best = choose(_free(question, names)).best
            if best:
                return [f"without {_fields(names)} ({best})"]
    freed, without = _free(question, fixed), f"without {_fields(fixed)}, " if fixed else ""
    grown = fit(freed)
    if grown and grown[1].best:
        return [f"{without}{grown[0]} nodes ({grown[1].best})"]
    for asked, words in ((question, ""), (freed, without)):
        found = _smallest_other(asked, gpus)
        if found:
            return [words + found]
    return _shorter_on_the_largest(freed, gpus, without) or _with_a_larger_host(question, gpus)


def _smallest_other(question: Question, gpus: Sequence[Gpu]) -> str:
    """Return a message about the smallest other GPU that is enough on the fewest nodes."""
    nodes = 1
    while nodes <= LARGEST_CLUSTER:
        for gpu in sorted(gpus, key=lambda gpu: gpu.memory_bytes or 0):
            best = choose(replace(question, gpu=gpu, nodes=nodes)).best
            if best and gpu.memory_bytes:
                return f"cluster.gpu: {gpu.name} with cluster.nodes: {nodes} ({best})"
        nodes *= 2
    return ""


def _shorter_on_the_largest(question: Question, gpus: Sequence[Gpu], without: str) -> list[str]:
    largest = max(gpus, key=lambda gpu: gpu.memory_bytes or 0, default=question.gpu)
    asked = replace(question, gpu=largest, nodes=LARGEST_CLUSTER, global_batch_size=None)
    length = _longest(asked)
    words = f"{without}train.model_max_length: {length} on {LARGEST_CLUSTER} nodes of {largest.name}"
    return [f"{words}, the largest cluster that is tried"] if length else []


def _with_a_larger_host(question: Question, gpus: Sequence[Gpu]) -> list[str]:
    if question.host_memory_bytes is None:
        return []
    roomy = replace(question, host_memory_bytes=None)
    return [f"{way}, with more host memory than cluster.memory_gib says" for way in remedies(roomy, gpus)[:1]]


def _free(question: Question, names: Iterable[str]) -> Question:
    freed: dict[str, Any] = dict.fromkeys(names)
    return replace(question, **freed)


def _fields(names: Iterable[str]) -> str:
    return " and ".join(FIXABLE[name] for name in names)


def _freed(question: Question) -> Iterator[Change]:
    """Yield a change for each fixed field whose removal alone makes the job fit."""
    for name, place in FIXABLE.items():
        if getattr(question, name) is None:
            continue
        best = _largest_micro_batch(question) if name == "micro_batch_size" else choose(_free(question, [name])).best
        if best:
            value = getattr(best, name)
            words = f"{str(value).lower()} instead of {str(getattr(question, name)).lower()} fits ({best})"
            yield Change(place, value, words)


def _largest_micro_batch(question: Question) -> Choice | None:
    """Return the choice with the largest smaller micro-batch that fits, with about as many rows a step."""
    written, steps = question.micro_batch_size or 1, question.gradient_accumulation_steps
    if steps is not None and question.global_batch_size is not None:
        return None
    for size in reversed([2**power for power in range((written - 1).bit_length())]):
        rows = size * (steps or question.rows_per_gpu // size)
        best = choose(replace(question, micro_batch_size=size, rows_per_gpu=rows)).best
        if best:
            return best
    return None


def _shorter(question: Question) -> Iterator[Change]:
    length = _longest(question)
    if length:
        message = f"sequences of {length} tokens instead of {question.sequence_length} fit"
        yield Change("train.model_max_length", length, message)


def _more_gpus(question: Question) -> Iterator[Change]:
    """Yield a change to more GPUs of each node, up to those of a usual node."""
    have = question.gpus_per_node
    for count in (2, 4, 8):
        if count > have and not question.gpu.is_cpu and choose(replace(question, gpus_per_node=count)).best:
            yield Change("cluster.gpus_per_node", count, f"{count} GPUs a node instead of {have} are enough")
            return


def _more_nodes(question: Question, most: int) -> Iterator[Change]:
    """Yield a change to the fewest nodes that are enough, up to ``most``."""
    grown = fit(question, most) or fit(replace(question, global_batch_size=None), most)
    if grown and grown[0] > question.nodes:
        yield Change("cluster.nodes", grown[0], f"{grown[0]} nodes instead of {question.nodes} are enough")


def _other_gpu(question: Question, gpus: Iterable[Gpu]) -> Iterator[Change]:
    able = [gpu for gpu in gpus if gpu.memory_bytes and choose(replace(question, gpu=gpu)).best]
    if able:
        gpu = min(able, key=lambda gpu: gpu.memory_bytes or 0)
        yield Change("cluster.gpu", gpu.name, f"{gpu.name} has enough memory")


def _longest(question: Question) -> int | None:
    """Return the longest shorter sequence, in steps of 64, with which the job fits."""
    low, high = 0, (question.sequence_length - 1) // LENGTH_STEP
    while low < high:
        middle = (low + high + 1) // 2
        if choose(replace(question, sequence_length=middle * LENGTH_STEP)).best:
            low = middle
        else:
            high = middle - 1
    return low * LENGTH_STEP or None


def more_host_memory(question: Question) -> Iterator[Change]:
    """Yield a change to enough host memory, if the host has too little."""
    have = question.host_memory_bytes
    if have is None:
        return
    fitting = [choice for choice in combinations(replace(question, host_memory_bytes=None)) if choice.fits]
    if fitting:
        best = min(fitting, key=lambda choice: choice.needs.host_needed)
        need = math.ceil(best.needs.host_needed / (1 - HOST_MARGIN) / GIB)
        message = f"{need} GiB a node instead of {have / GIB:g} are enough ({best})"
        yield Change("cluster.memory_gib", need, message)


def _excess(question: Question, choice: Choice) -> tuple[float, int]:
    """Return by which fraction the tighter of GPU and host exceeds its limit, and the bytes per GPU."""
    memory, shares = choice.needs, [0.0]
    if memory.capacity:
        shares.append(memory.gpu_bytes / (memory.capacity * (1 - question.margin)))
    if question.host_memory_bytes:
        shares.append(memory.host_needed / (question.host_memory_bytes * (1 - HOST_MARGIN)))
    return max(shares), memory.gpu_bytes


def _fits_gpu(question: Question, choice: Choice) -> bool:
    return choice.needs.fits(question.margin)
