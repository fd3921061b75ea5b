"""The choice of ZeRO stage, offload, gradient checkpointing and micro-batch: the fastest that fits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from qwen_job.errors import JobError
from qwen_job.job import Job
from qwen_job.plan.facts import Gpu, ModelShape
from qwen_job.plan.memory import GIB, MemoryEstimate, estimate_memory
from qwen_job.plan.speed import SpeedEstimate, estimate_speed

# A micro-batch beyond this many tokens gains nothing on any GPU and costs memory.
MAX_MICRO_TOKENS = 32_768


@dataclass(frozen=True)
class Sharding:
    """One way to lay the job over the GPUs, and what it is estimated to take."""

    zero_stage: int
    offload_optimizer: bool
    gradient_checkpointing: bool
    micro_batch_size: int
    memory: MemoryEstimate | None
    speed: SpeedEstimate | None
    reason: str


def choose_sharding(
    job: Job, gpu: Gpu, shape: ModelShape | None, *, rows: int, precision: str, attention: str, fused_loss: str
) -> Sharding:
    """Return the fastest way that fits the GPU; what the user wrote is kept.

    ``rows`` is micro-batch x accumulation. Without a known shape or GPU memory, the reference's way (ZeRO-2,
    checkpointing, one row) is taken and the reason says so. Errors: :class:`JobError` when nothing fits.
    """
    if shape is None or gpu.memory_bytes is None:
        what = "the GPU's memory" if shape is not None else "the model's shape"
        return _reference(
            job, gpu, shape, rows, precision, attention, fused_loss, f"{what} is unknown: as the reference"
        )
    options = [
        _estimate(job, gpu, shape, option, rows, precision, attention, fused_loss) for option in _options(job, rows)
    ]
    fitting = [option for option in options if option.memory is not None and option.memory.fits()]
    if not fitting:
        raise JobError([_nothing_fits(job, gpu, options)])
    return min(fitting, key=_cost)


def _cost(option: Sharding) -> tuple[float, int, bool, int]:
    # Where the time is unknown, prefer no offload, the lowest stage and the smallest micro-batch.
    seconds = option.speed.mid if option.speed else 0.0
    return (round(seconds, 3), option.zero_stage, option.offload_optimizer, option.micro_batch_size)


def _options(job: Job, rows: int) -> Iterator[tuple[int, bool, bool, int]]:
    world_size = job.cluster.nodes * job.cluster.gpus_per_node
    written = job.deepspeed.zero_stage
    stages = [written] if written is not None else [0, 1, 2, 3] if world_size > 1 else [0, 2]
    for stage in stages:
        for offload in _choices(job.deepspeed.offload_optimizer, [False, True]):
            if offload and stage == 0:
                continue
            for checkpointing in _choices(job.train.gradient_checkpointing, [False, True]):
                for micro in _micro_batches(job, rows):
                    yield stage, offload, checkpointing, micro


def _choices(written: bool | None, free: list[bool]) -> list[bool]:
    return free if written is None else [written]


def _micro_batches(job: Job, rows: int) -> list[int]:
    if job.train.per_device_train_batch_size:
        return [job.train.per_device_train_batch_size]
    if job.train.gradient_accumulation_steps:
        return [rows // job.train.gradient_accumulation_steps]
    most = max(1, MAX_MICRO_TOKENS // job.train.model_max_length)
    return [size for size in range(1, rows + 1) if rows % size == 0 and size <= most]


def _estimate(
    job: Job,
    gpu: Gpu,
    shape: ModelShape,
    option: tuple[int, bool, bool, int],
    rows: int,
    precision: str,
    attention: str,
    fused_loss: str,
) -> Sharding:
    stage, offload, checkpointing, micro = option
    common: dict[str, Any] = {
        "gpu": gpu,
        "world_size": job.cluster.nodes * job.cluster.gpus_per_node,
        "gpus_per_node": job.cluster.gpus_per_node,
        "zero_stage": stage,
        "offload_optimizer": offload,
        "precision": precision,
        "micro_batch_size": micro,
        "sequence_length": job.train.model_max_length,
        "gradient_checkpointing": checkpointing,
    }
    memory = estimate_memory(
        shape, attention=attention, fused_loss=fused_loss, save_total_limit=job.train.save_total_limit, **common
    )
    speed = estimate_speed(
        shape, gradient_accumulation_steps=rows // micro, network_gbs=job.cluster.network_gbs, **common
    )
    room = f"{memory.gpu_bytes / GIB:.1f} of {(gpu.memory_bytes or 0) / GIB:.1f} GiB a GPU"
    return Sharding(stage, offload, checkpointing, micro, memory, speed, f"the fastest that fits: {room}")


def _reference(
    job: Job,
    gpu: Gpu,
    shape: ModelShape | None,
    rows: int,
    precision: str,
    attention: str,
    fused_loss: str,
    reason: str,
) -> Sharding:
    stage = 2 if job.deepspeed.zero_stage is None else job.deepspeed.zero_stage
    checkpointing = job.train.gradient_checkpointing
    micro = rows // job.train.gradient_accumulation_steps if job.train.gradient_accumulation_steps else 1
    option = (
        stage,
        bool(job.deepspeed.offload_optimizer),
        not gpu.is_cpu if checkpointing is None else checkpointing,
        job.train.per_device_train_batch_size or micro,
    )
    if shape is None:
        return Sharding(*option, None, None, reason)
    known = _estimate(job, gpu, shape, option, rows, precision, attention, fused_loss)
    return Sharding(*option, known.memory, known.speed, reason)


def _nothing_fits(job: Job, gpu: Gpu, options: list[Sharding]) -> Any:
    def need(option: Sharding) -> int:
        return option.memory.gpu_bytes if option.memory else 0

    least = min(options, key=need)
    have = (gpu.memory_bytes or 0) / GIB
    message = (
        f"does not fit: at least {need(least) / GIB:.1f} GiB a GPU (ZeRO-{least.zero_stage}"
        f"{', optimizer on the host' if least.offload_optimizer else ''}), and {gpu.name} has {have:.1f} GiB; "
        "take more GPUs, a larger GPU or a smaller model"
        + ("" if job.deepspeed.zero_stage in (None, 3) else ", or remove deepspeed.zero_stage")
    )
    return job.problem(("cluster", "gpu"), message)
