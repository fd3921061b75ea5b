"""The longest row that fits on a cluster, by the number of GPUs that share it, and what more nodes would add."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

from qwen_job.job import Job
from qwen_job.plan.batch import REFERENCE_ROWS_PER_GPU
from qwen_job.plan.plan import question_for
from qwen_job.plan.search.choice import LARGEST_CLUSTER, Choice, choose
from qwen_job.plan.search.question import Question

# Lengths are multiples of this many tokens; the search ends at the last one.
STEP, MOST = 1024, 4 * 1024 * 1024


class Longest(NamedTuple):
    """The longest row that ``size`` GPUs of a cluster can share, and the layout there; 0 and None if none fits."""

    nodes: int
    gpus_per_node: int
    size: int
    length: int
    choice: Choice | None


class Answer(NamedTuple):
    """The longest rows on the job's own cluster, by size and by what makes room, and the best on a larger one."""

    question: Question
    here: list[Longest]
    larger: Longest | None

    @property
    def best(self) -> Longest:
        """The longest on the job's own cluster, shared by the fewest GPUs."""
        return max(self.here, key=lambda one: (one.length, -one.size))


def longest_rows(job: Job) -> Answer:
    """Search the longest rows, one in a micro-batch unless the job says otherwise; its other fixed fields are kept.

    Raises:
        JobError: the model's shape is unknown.
    """
    question = question_for(job)
    micro = question.micro_batch_size or 1
    # Whether a batch divides is another matter; that gradients are accumulated is not.
    asked = replace(
        question,
        global_batch_size=None,
        gradient_accumulation_steps=None,
        micro_batch_size=micro,
        rows_per_gpu=micro * REFERENCE_ROWS_PER_GPU,
    )
    here = [one for size in _sizes(asked) for one in _step_by_step(asked, size)]
    answer = Answer(question, here, None)
    return answer._replace(larger=_larger(asked, answer.best.length))


def _step_by_step(question: Question, size: int) -> list[Longest]:
    """Return the longest row of ``size`` GPUs as it is, with tiled networks, and with checkpoints on the host.

    Each only where it adds something: what one more costs is the difference of their tokens/s.
    """
    found: list[Longest] = []
    for tiled, away in ((False, False), (True, False), (True, True)):
        if question.tiled_mlp not in (None, tiled) or question.activation_offloading not in (None, away):
            continue
        one = longest(replace(question, tiled_mlp=tiled, activation_offloading=away), size)
        if not found or one.length > found[-1].length:
            found.append(one)
    return found or [longest(question, size)]


def _sizes(question: Question) -> list[int]:
    """Return the sizes that some length allows."""
    return replace(question, sequence_length=_step(question)).sizes or [question.sequence_parallel_size or 1]


def _step(question: Question) -> int:
    return math.lcm(STEP, question.sequence_parallel_size or question.gpus_per_node)


def longest(question: Question, size: int) -> Longest:
    """Return the longest row that ``size`` GPUs of the question's cluster can share."""
    step, found = math.lcm(STEP, size), None
    low, high = 0, MOST // step
    while low < high:
        middle = (low + high + 1) // 2
        asked = replace(question, sequence_length=middle * step, sequence_parallel_size=size)
        best = choose(asked).best
        low, high, found = (middle, high, best) if best else (low, middle - 1, found)
    return Longest(question.nodes, question.gpus_per_node, size, low * step, found)


def _larger(question: Question, length: int) -> Longest | None:
    """Return the longest row on the first cluster of twice, four times ... as many nodes that takes a longer one."""
    nodes = 2 * question.nodes
    while nodes <= LARGEST_CLUSTER and length < MOST - STEP:
        asked = replace(question, nodes=nodes)
        best = max((longest(asked, size) for size in _sizes(asked)), key=lambda one: (one.length, -one.size))
        if best.length > length:
            return best
        nodes *= 2
    return None
