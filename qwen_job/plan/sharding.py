"""The choice of ZeRO stage, offload, gradient checkpointing and micro-batch for a job, through :mod:`search`."""

from __future__ import annotations

from dataclasses import dataclass, field

from qwen_job.errors import JobError, Problem
from qwen_job.job import Job
from qwen_job.plan.facts import Gpu, ModelShape, gpu_names, load_gpu
from qwen_job.plan.memory import GIB, MemoryEstimate
from qwen_job.plan.search import Choice, Question, Runner, choose, nearest
from qwen_job.plan.speed import SpeedEstimate


@dataclass(frozen=True)
class Sharding:
    """One way to lay the job over the GPUs, what it is estimated to take, and what came next to it."""

    zero_stage: int
    offload_optimizer: bool
    gradient_checkpointing: bool
    micro_batch_size: int
    memory: MemoryEstimate | None
    speed: SpeedEstimate | None
    reason: str
    choice: Choice | None = None
    runners_up: list[Runner] = field(default_factory=list)
    considered: int = 0


def question_of(
    job: Job, gpu: Gpu, shape: ModelShape, *, rows: int, precision: str, attention: str, fused_loss: str
) -> Question:
    """Return what the search is asked for this job; what the user wrote is fixed, the rest is free."""
    train, cluster = job.train, job.cluster
    micro = train.per_device_train_batch_size
    if micro is None and train.gradient_accumulation_steps is not None:
        micro = rows // train.gradient_accumulation_steps
    return Question(
        shape=shape,
        gpu=gpu,
        nodes=cluster.nodes,
        gpus_per_node=cluster.gpus_per_node,
        precision=precision,
        sequence_length=train.model_max_length,
        rows_per_gpu=rows,
        global_batch_size=train.global_batch_size,
        attention=attention,
        fused_loss=fused_loss,
        zero_stage=job.deepspeed.zero_stage,
        offload_optimizer=job.deepspeed.offload_optimizer,
        gradient_checkpointing=train.gradient_checkpointing,
        micro_batch_size=micro,
        host_memory_bytes=int(cluster.memory_gib * GIB) if cluster.memory_gib else None,
        network_gbs=cluster.network_gbs,
    )


def choose_sharding(job: Job, question: Question | None, rows: int, *, on_cpu: bool) -> Sharding:
    """Return the fastest way that fits. Without a question (the model's shape is unknown) it is the reference's way.

    Errors: :class:`JobError` when nothing fits, with the nearest jobs that do.
    """
    if question is None:
        return _reference(job, rows, on_cpu)
    answer = choose(question)
    if answer.best is None:
        raise JobError([_nothing_fits(job, question, answer.runners_up)])
    best = answer.best
    return Sharding(
        best.zero_stage,
        best.offload_optimizer,
        best.gradient_checkpointing,
        best.micro_batch_size,
        best.memory,
        best.speed,
        _reason(question, best, answer.considered),
        best,
        answer.runners_up,
        answer.considered,
    )


def _reason(question: Question, best: Choice, considered: int) -> str:
    if question.gpu.memory_bytes is None:
        return "the device's memory is unknown: as the reference"
    room = f"{best.memory.gpu_bytes / GIB:.1f} of {question.gpu.memory_bytes / GIB:.1f} GiB a GPU"
    return f"the fastest of {considered} that fits: {room}"


def _reference(job: Job, rows: int, on_cpu: bool) -> Sharding:
    """ZeRO-2, checkpointing, one row: what the reference does, where nothing can be estimated."""
    accumulation, checkpointing = job.train.gradient_accumulation_steps, job.train.gradient_checkpointing
    micro = job.train.per_device_train_batch_size or (rows // accumulation if accumulation else 1)
    return Sharding(
        2 if job.deepspeed.zero_stage is None else job.deepspeed.zero_stage,
        bool(job.deepspeed.offload_optimizer),
        not on_cpu if checkpointing is None else checkpointing,
        micro,
        None,
        None,
        "the model's shape is unknown: as the reference",
    )


def _nothing_fits(job: Job, question: Question, runners_up: list[Runner]) -> Problem:
    least = min((runner.choice for runner in runners_up), key=lambda choice: choice.memory.gpu_bytes)
    have = (question.gpu.memory_bytes or 0) / GIB
    message = (
        f"does not fit: at least {least.memory.gpu_bytes / GIB:.1f} GiB a GPU are needed ({least}), and "
        f"{question.gpu.name} has {have:.1f} GiB"
    )
    ways = nearest(question, [load_gpu(name) for name in gpu_names()])
    if ways:
        message += "; these would fit: " + "; ".join(
            f"{way.field}{f'={way.value}' if way.value is not None else ' (remove it)'} ({way.message})" for way in ways
        )
    return job.problem(("cluster", "gpu"), message)
