"""What a search is asked, and the ways to hold a row that it tries in turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from qwen_job.facts.choices import TILE_TOKENS
from qwen_job.facts.hardware import Gpu
from qwen_job.facts.model_shapes import ModelShape
from qwen_job.facts.sequence_parallel import Divided, sizes
from qwen_job.plan.estimate.layout import divided_of, why_not_shared
from qwen_job.plan.estimate.memory import Constants
from qwen_job.plan.estimate.speed import SpeedConstants

T = TypeVar("T")

# Fraction of GPU memory that a plan keeps free: the estimate's largest error on published figures (BENCHMARKS.md).
MARGIN = 0.08
HOST_MARGIN = 0.05


@dataclass(frozen=True)
class Question:
    """The search's input: one model on one kind of GPU. Fields that are None are free.

    ``rows_per_gpu`` is micro-batch x accumulation; with ``global_batch_size`` it follows from the number of GPUs, or of
    groups that share rows. ``gradient_accumulation_steps`` fixes a micro-batch that is not fixed itself.
    ``host_memory_bytes`` is per node; None skips the check. ``network_gbs``: see ``estimate_speed``.
    ``tiles_for_speed``: whether networks may be tiled where rows fit without.
    If the constants are None, the device's defaults are used.
    """

    shape: ModelShape
    gpu: Gpu
    nodes: int = 1
    gpus_per_node: int = 1
    precision: str = "bf16"
    sequence_length: int = 512
    attended_length: float | None = None
    fill: float = 1.0
    rows_per_gpu: int = 16
    global_batch_size: int | None = None
    attention: str = "varlen"
    fused_loss: str = "torch"
    zero_stage: int | None = None
    offload_optimizer: bool | None = None
    gradient_checkpointing: bool | None = None
    micro_batch_size: int | None = None
    sequence_parallel_size: int | None = None
    gradient_accumulation_steps: int | None = None
    host_memory_bytes: int | None = None
    network_gbs: float | None = None
    storage_gbs: float | None = None
    save_total_limit: int = 2
    margin: float = MARGIN
    constants: Constants | None = None
    speed_constants: SpeedConstants | None = None
    expandable_segments: bool = True
    expert_parallel_size: int | None = None
    tiled_mlp: bool | None = None
    activation_offloading: bool | None = None
    tiles_for_speed: bool = True

    @property
    def world_size(self) -> int:
        """Processes in the job, one per GPU."""
        return self.nodes * self.gpus_per_node

    @property
    def divided(self) -> Divided:
        """What GPUs that share rows divide among them."""
        return divided_of(self.shape, self.sequence_length, self.gpus_per_node)

    @property
    def sizes(self) -> list[int]:
        """The numbers of GPUs that may share a row, the least first; 1 alone where shared rows would not be exact."""
        every = [1] if self.gpu.is_cpu or why_not_shared(self.shape, self.attention) else sizes(self.divided)
        if (fixed := self.sequence_parallel_size) is None:
            return every
        return [fixed] if fixed in sizes(self.divided) else []

    def rows(self, size: int = 1) -> int:
        """Rows of an optimizer step per group of ``size`` GPUs; 0 if they are not a multiple of the groups."""
        if self.global_batch_size is None:
            return self.rows_per_gpu
        groups = self.world_size // size
        return 0 if self.global_batch_size % groups else self.global_batch_size // groups


class Rung(NamedTuple):
    """How a row is held: by how many GPUs, with networks in tiles or not, with checkpoints on the host or not."""

    size: int
    tiled_mlp: bool
    activation_offloading: bool


def rungs(question: Question) -> list[Rung]:
    """Return the ways to hold a row, the simplest first: those that cost time only where a row is long."""
    offloaded = free(question.activation_offloading, (False, True))
    tiled = free(question.tiled_mlp, (False, True))
    found: list[Rung] = []
    for away in offloaded:
        # What is not enough with tiles goes to the host: the tiles cost less, and stay.
        last = away and question.activation_offloading is None
        found += [Rung(size, tiles, away) for size in question.sizes for tiles in (tiled[::-1] if last else tiled)]
    return [rung for rung in found if _sensible(question, rung)]


def _sensible(question: Question, rung: Rung) -> bool:
    """Tell whether the job asks for a rung, or the plan may take it: on GPUs, for rows longer than a tile."""
    tokens = (question.micro_batch_size or 1) * question.sequence_length // rung.size
    free = not question.gpu.is_cpu and tokens > TILE_TOKENS and question.gradient_checkpointing is not False
    tiles = not rung.tiled_mlp or question.tiled_mlp is True or (free and not question.shape.experts)
    return tiles and (not rung.activation_offloading or question.activation_offloading is True or free)


def free(value: T | None, possible: Sequence[T]) -> Sequence[T]:
    """Return the values to try of a field: its own, or all that are ``possible`` where it is None."""
    return possible if value is None else (value,)
