"""Evaluate every combination of ZeRO stage, offload, checkpointing and micro-batch, and choose the fastest that fits.

Also why the others lost, and the smallest cluster that fits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from typing import NamedTuple

from qwen_job.plan.estimate.layout import Layout
from qwen_job.plan.estimate.memory import MemoryEstimate, estimate_memory
from qwen_job.plan.estimate.speed import SpeedEstimate, estimate_speed
from qwen_job.plan.precision import BF16_FROM
from qwen_job.plan.search.question import HOST_MARGIN, Question, Rung, free, rungs
from qwen_job.text import GIB

# Split experts, tiles and offloaded checkpoints were not measured on GPUs yet: for speed, the plan takes them where
# 1 / 0.85 times as much is estimated. That is also what compiled layers gain, which tiles exclude.
UNMEASURED = 0.85
LARGEST_MICRO_BATCH = 64
LARGEST_CLUSTER = 64
# Bytes per token of prepared data (data/prepared.py), read from storage during training.
TOKEN_BYTES = 4
# Largest micro-batch on a CPU, in tokens: enough for its caches and threads.
USUAL_TOKENS = 2048


class Choice(NamedTuple):
    """One combination with its estimates.

    ``memory`` is None for a model of unknown shape, ``speed`` also for a GPU of unknown peak.
    """

    zero_stage: int
    offload_optimizer: bool
    gradient_checkpointing: bool
    micro_batch_size: int
    gradient_accumulation_steps: int
    memory: MemoryEstimate | None = None
    speed: SpeedEstimate | None = None
    misfit: str = ""
    sequence_parallel_size: int = 1
    expert_parallel_size: int = 1
    tiled_mlp: bool = False
    activation_offloading: bool = False

    def global_batch_size(self, world_size: int) -> int:
        """Rows of a step on ``world_size`` GPUs."""
        return self.micro_batch_size * self.gradient_accumulation_steps * (world_size // self.sequence_parallel_size)

    @property
    def fits(self) -> bool:
        """Whether it fits in GPU and host memory."""
        return not self.misfit

    @property
    def needs(self) -> MemoryEstimate:
        """The memory estimate; only for a choice from the search."""
        assert self.memory is not None, "the model's shape is unknown"
        return self.memory

    def __str__(self) -> str:
        parts = [f"ZeRO-{self.zero_stage}"]
        parts += ["optimizer on the host"] if self.offload_optimizer else []
        parts += ["checkpointing"] if self.gradient_checkpointing else []
        parts += ["tiled MLP"] if self.tiled_mlp else []
        parts += ["activations on the host"] if self.activation_offloading else []
        parts += [f"rows shared by {self.sequence_parallel_size} GPUs"] if self.sequence_parallel_size > 1 else []
        parts += [f"experts split over {self.expert_parallel_size}"] if self.expert_parallel_size > 1 else []
        return f"{', '.join(parts)}, micro-batch {self.micro_batch_size}"


class Runner(NamedTuple):
    """A combination that was not chosen, and why it lost."""

    choice: Choice
    why: str


class Answer(NamedTuple):
    """The chosen combination (None if nothing fits), the runners-up in order, and how many were evaluated."""

    best: Choice | None
    runners_up: Sequence[Runner] = ()
    considered: int = 0


def choose(question: Question) -> Answer:
    """Return the fastest combination that fits; if several are equally fast, the one that needs the least memory.

    Rows that fit as they are stay so. Longer ones have their networks tiled, then are shared by as few GPUs as
    possible; checkpoints go to the host only where nothing else is enough. Either is also done where it is much faster
    than an optimizer on the host. If speeds are unknown, no offload, no checkpointing and ZeRO-2 (the reference
    script's stage) are preferred.
    """
    choices: list[Choice] = []
    best: Choice | None = None
    for rung in rungs(question):
        found = list(_combinations(question, rung))
        if (best := _best(found)) is not None:
            for other in _faster_rungs(question, rung, best):
                found += _combinations(question, other)
            best = _best(found)
        choices += found
        if best is not None or (not found and lacks_only_rows(question)):
            break
    return Answer(best, _runners(best, choices), len(choices))


def lacks_only_rows(question: Question) -> bool:
    """Tell whether a row fits on one GPU, and the global batch does not divide: no reason for GPUs to share rows."""
    alone = Rung(1, question.tiled_mlp or False, question.activation_offloading or False)
    if question.global_batch_size is None or 1 not in question.sizes or any(_combinations(question, alone)):
        return False
    return choose(replace(question, sequence_parallel_size=1, global_batch_size=None)).best is not None


def combinations(question: Question) -> Iterator[Choice]:
    """Yield every combination of the free fields, with its estimates.

    ZeRO-0 is only considered if the user asks for it: ZeRO-1 computes the same in less memory.
    """
    for rung in rungs(question):
        yield from _combinations(question, rung)


def _faster_rungs(question: Question, rung: Rung, best: Choice) -> list[Rung]:
    """Return what may be faster than ``best``, the best of ``rung``, if that needs the optimizer to be on the host.

    Tiles or checkpoints on the host may leave it room on as many GPUs.
    """
    if not best.offload_optimizer or question.offload_optimizer or best.speed is None or best.speed.rough:
        return []
    later = [other for other in rungs(question) if other.size == rung.size and other != rung]
    return [
        other
        for other in later
        if other.activation_offloading >= rung.activation_offloading
        and (other.tiled_mlp == rung.tiled_mlp or (other.tiled_mlp and question.tiles_for_speed))
    ]


def _combinations(question: Question, rung: Rung) -> Iterator[Choice]:
    """Yield the combinations in which rows are held in one way."""
    size = rung.size
    for stage in free(question.zero_stage, (1, 2, 3)):
        for offload in free(question.offload_optimizer, (False, True)):
            if offload and (stage == 0 or question.gpu.is_cpu):
                continue
            for checkpointing in free(question.gradient_checkpointing, (False, True)):
                if not checkpointing and (rung.activation_offloading or rung.tiled_mlp > (question.tiled_mlp or False)):
                    continue
                for micro, split in product(_micro_batches(question, size), _splits(question, stage)):
                    steps = max(1, question.rows(size) // micro)
                    choice = Choice(
                        stage,
                        offload,
                        checkpointing,
                        micro,
                        steps,
                        sequence_parallel_size=size,
                        expert_parallel_size=split,
                        tiled_mlp=rung.tiled_mlp,
                        activation_offloading=rung.activation_offloading,
                    )
                    yield _evaluate(question, choice)


def fit(question: Question, largest: int = LARGEST_CLUSTER) -> tuple[int, Answer] | None:
    """Return the fewest nodes (1 to ``largest``) on which the job fits, and the choice there; None if none do."""
    for nodes in range(1, largest + 1):
        answer = choose(replace(question, nodes=nodes))
        if answer.best is not None:
            return nodes, answer
    return None


def _micro_batches(question: Question, shared_by: int) -> list[int]:
    """Return the micro-batches to evaluate: the powers of two that divide the rows of a GPU, or of those that share."""
    rows, found, size = question.rows(shared_by), [], 1
    if (fixed := question.micro_batch_size) is None and question.gradient_accumulation_steps is not None:
        fixed = rows // question.gradient_accumulation_steps
    if fixed is not None:
        return [fixed] if rows and fixed and rows % fixed == 0 else []
    most = min(rows, LARGEST_MICRO_BATCH)
    if question.gpu.is_cpu:
        most = min(most, max(1, USUAL_TOKENS // question.sequence_length))
    while size <= most:
        if rows % size == 0:
            found.append(size)
        size *= 2
    return found


def _splits(question: Question, stage: int) -> list[int]:
    """Return the numbers of GPUs to split experts over: none, and as many of a node's as divide them.

    Beyond a node, tokens would pass the network in every layer. GPUs below 8.0 compute experts one by one either way.
    """
    written = question.expert_parallel_size
    if written is not None:
        return [] if question.world_size % written or (written > 1 and stage == 0) else [written]
    experts, near = question.shape.experts, min(question.gpus_per_node, question.world_size)
    if experts is None or stage == 0 or question.gpu.is_cpu or question.gpu.compute_capability < BF16_FROM:
        return [1]
    return sorted({1, math.gcd(experts.count, near)})


def layout_of(question: Question, choice: Choice) -> Layout:
    """Return the input of the estimates: the choice on the question's model and GPUs."""
    return Layout(
        question.shape,
        gpu=question.gpu,
        world_size=question.world_size,
        gpus_per_node=question.gpus_per_node,
        zero_stage=choice.zero_stage,
        offload_optimizer=choice.offload_optimizer,
        precision=question.precision,
        micro_batch_size=choice.micro_batch_size,
        gradient_accumulation_steps=choice.gradient_accumulation_steps,
        sequence_length=question.sequence_length,
        gradient_checkpointing=choice.gradient_checkpointing,
        attention=question.attention,
        fused_loss=question.fused_loss,
        fused_norms=question.gpu is None or not question.gpu.is_cpu,
        lean_zero=True,
        expandable_segments=question.expandable_segments,
        sequence_parallel_size=choice.sequence_parallel_size,
        expert_parallel_size=choice.expert_parallel_size,
        tiled_mlp=choice.tiled_mlp,
        activation_offloading=choice.activation_offloading,
    )


def _evaluate(question: Question, choice: Choice) -> Choice:
    """Return the choice with its estimates."""
    layout = layout_of(question, choice)
    memory = estimate_memory(layout, save_total_limit=question.save_total_limit, constants=question.constants)
    return choice._replace(memory=memory, speed=speed_of(question, layout), misfit=_misfit(question, memory))


def speed_of(question: Question, layout: Layout) -> SpeedEstimate | None:
    """Return the speed of one layout with the question's data, network and constants."""
    return estimate_speed(
        layout,
        attended_length=question.attended_length,
        fill=question.fill,
        network_gbs=question.network_gbs,
        data_tokens_per_second=question.storage_gbs * 1e9 / TOKEN_BYTES if question.storage_gbs else None,
        constants=question.speed_constants,
    )


def _misfit(question: Question, memory: MemoryEstimate) -> str:
    """Return which limit is exceeded and by how much; empty if everything fits."""
    if memory.capacity is not None:
        allowed = memory.capacity * (1 - question.margin)
        if memory.gpu_bytes > allowed:
            largest = max(memory.gpu, key=lambda item: memory.gpu[item])
            return (
                f"needs {memory.gpu_bytes / GIB:.1f} GiB per GPU, {(memory.gpu_bytes - allowed) / GIB:.1f} GiB more "
                f"than {memory.capacity / GIB:.1f} GiB with {question.margin:.0%} to spare; "
                f"most is {largest}, {memory.gpu[largest] / GIB:.1f} GiB"
            )
    if question.host_memory_bytes is not None:
        allowed = question.host_memory_bytes * (1 - HOST_MARGIN)
        if memory.host_needed > allowed:
            return (
                f"needs {memory.host_needed / GIB:.0f} GiB of host memory per node, "
                f"{(memory.host_needed - allowed) / GIB:.0f} GiB too many"
            )
    return ""


def _best(choices: Sequence[Choice]) -> Choice | None:
    return min((choice for choice in choices if choice.fits), key=_preference, default=None)


def _unmeasured(choice: Choice) -> tuple[int, ...]:
    """Return how much of each thing that was not measured on GPUs yet a choice has; see ``UNMEASURED``."""
    return choice.expert_parallel_size - 1, choice.tiled_mlp, choice.activation_offloading


def _preference(choice: Choice) -> tuple[float, ...]:
    """Return the sort key of a choice that fits: speed to three digits, then simplicity, then memory."""
    simple = (
        choice.tiled_mlp + choice.activation_offloading,
        choice.offload_optimizer,
        choice.expert_parallel_size,
        choice.gradient_checkpointing,
        choice.zero_stage != 2,
        choice.zero_stage,
    )
    if choice.speed is None or choice.speed.rough:
        return (0.0, *simple, -choice.micro_batch_size)
    speed = choice.speed.tokens_per_second * (UNMEASURED if any(_unmeasured(choice)) else 1.0)
    return (
        -round(speed, -_digits(speed)),
        *simple,
        choice.needs.gpu_bytes,
    )


def _digits(value: float) -> int:
    """Return how many digits to round away to keep three: 12,345 becomes 12,300."""
    return max(0, len(str(int(value))) - 3)


def _runners(best: Choice | None, choices: Sequence[Choice]) -> list[Runner]:
    """Return the best of every other kind (stage, offload, checkpointing, experts) and why it lost: first what fits."""
    kinds: dict[tuple[int, ...], Choice] = {}
    for choice in sorted(choices, key=lambda choice: (not choice.fits, _rank(choice))):
        sizes = choice.sequence_parallel_size, choice.expert_parallel_size
        long = choice.tiled_mlp, choice.activation_offloading
        kind = choice.zero_stage, choice.offload_optimizer, choice.gradient_checkpointing, *sizes, *long
        kinds.setdefault(kind, choice)
    others = [choice for choice in kinds.values() if choice is not best]
    others.sort(key=lambda choice: (not choice.fits, _rank(choice)))
    return [Runner(choice, _why(best, choice)) for choice in others]


def _rank(choice: Choice) -> tuple[float, ...]:
    return _preference(choice) if choice.fits else (choice.needs.gpu_bytes, choice.needs.host_needed)


def _why(best: Choice | None, choice: Choice) -> str:
    """Return why ``choice`` lost: it does not fit, or why it is slower."""
    if not choice.fits or best is None:
        return choice.misfit
    if choice.speed is None or best.speed is None or best.speed.rough:
        return f"speed {'not known well enough' if choice.speed else 'unknown'}; the chosen layout is simpler"
    ratio = best.speed.tokens_per_second / choice.speed.tokens_per_second
    more = any(mine > its for mine, its in zip(_unmeasured(choice), _unmeasured(best), strict=True))
    if ratio < 0.99 and more:
        return f"estimated {1 / ratio - 1:.0%} faster, which is too little for what was not measured on GPUs yet"
    if ratio < 1.01:
        return "as fast, but more complex or larger"
    reasons = []
    if choice.gradient_checkpointing and not best.gradient_checkpointing:
        reasons.append("computes every layer twice")
    if choice.offload_optimizer and not best.offload_optimizer:
        reasons.append("moves gradients to the host and steps there")
    if choice.zero_stage > best.zero_stage:
        reasons.append("gathers weights for every micro-batch" if choice.zero_stage == 3 else "reduces more often")
    if choice.expert_parallel_size > best.expert_parallel_size:
        reasons.append("sends tokens to the experts of other GPUs")
    if choice.micro_batch_size < best.micro_batch_size:
        reasons.append("only has room for smaller micro-batches")
    return f"{1 - 1 / ratio:.0%} slower: {'; '.join(reasons) or 'communicates more'}"
