"""The choice of ZeRO stage, offload, gradient checkpointing and micro-batch for a job, through :mod:`search`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from qwen_job.errors import JobError
from qwen_job.facts.tables import Gpu, ModelShape, gpu_names, load_gpu
from qwen_job.job import Job
from qwen_job.plan.estimate.memory import Constants, MemoryEstimate
from qwen_job.plan.estimate.speed import SpeedConstants, SpeedEstimate
from qwen_job.plan.precision import BF16_FROM
from qwen_job.plan.search.choice import MARGIN, Choice, Question, Runner, choose
from qwen_job.text import GIB


class Sharding(NamedTuple):
    """One way to lay the job over the GPUs, what it is estimated to take, and what came next to it."""

    zero_stage: int
    offload_optimizer: bool
    gradient_checkpointing: bool
    micro_batch_size: int
    memory: MemoryEstimate | None
    speed: SpeedEstimate | None
    reason: str
    choice: Choice | None = None
    runners_up: Sequence[Runner] = ()
    considered: int = 0


def question_of(
    job: Job, gpu: Gpu, shape: ModelShape, *, rows: int, precision: str, attention: str, fused_loss: str
) -> Question:
    """Return what the search is asked for this job; what the user wrote is fixed, the rest is free."""
    train, cluster = job.train, job.cluster
    constants, speed_constants = _constants(job, gpu)
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
        storage_gbs=cluster.storage_gbs,
        save_total_limit=train.save_total_limit,
        margin=MARGIN if job.plan.margin is None else job.plan.margin,
        constants=constants,
        speed_constants=speed_constants,
    )


def _constants(job: Job, gpu: Gpu) -> tuple[Constants | None, SpeedConstants | None]:
    written = job.plan.constants()
    if not written:
        return None, None
    # Only here: whoever calibrated nothing need not import what calibrates.
    from qwen_job.plan.estimate.calibrate import constants_from

    return constants_from(written, gpu)


def choose_sharding(job: Job, question: Question | None, rows: int, *, on_cpu: bool) -> Sharding:
    """Return the fastest way that fits. Without a question (the model's shape is unknown) it is the reference's way.

    Errors: :class:`JobError` when demands contradict each other or nothing fits, with the nearest jobs that do.
    """
    _refuse_contradictions(job, on_cpu)
    if question is None:
        return _reference(job, rows, on_cpu)
    answer = choose(question)
    if answer.best is None:
        from qwen_job.plan.search.nearest import refusal  # only who is refused pays for it

        field, why = refusal(question, able_gpus(question))
        raise JobError([job.problem(tuple(field.split(".")), why)])
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


def _refuse_contradictions(job: Job, on_cpu: bool) -> None:
    if not job.deepspeed.offload_optimizer:
        return
    where = ("deepspeed", "offload_optimizer")
    if on_cpu:
        raise JobError([job.problem(where, "a job on CPUs keeps its optimizer on the host anyway; remove the line")])
    if job.deepspeed.zero_stage == 0:
        raise JobError([job.problem(where, "needs ZeRO, and deepspeed.zero_stage is 0; write zero_stage 1, 2 or 3")])


def able_gpus(question: Question) -> list[Gpu]:
    """Return the known GPUs that compute in the question's precision with its kernels."""
    modern = question.precision == "bf16" or question.attention == "varlen" or question.fused_loss == "liger"
    known = (load_gpu(name) for name in gpu_names())
    return [gpu for gpu in known if not gpu.is_cpu and (not modern or gpu.compute_capability >= BF16_FROM)]
