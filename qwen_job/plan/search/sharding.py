"""Choose ZeRO stage, offload, gradient checkpointing and micro-batch for a job.

- ``question_of``: the search's question for a job
- ``choose_for``, ``reason_of``: the fastest layout that fits, and why
- ``reference_choice``: the layout for a model of unknown shape
"""

from __future__ import annotations

from qwen_job.errors import JobError
from qwen_job.facts.hardware import Gpu, gpu_names, load_gpu
from qwen_job.facts.model_shapes import ModelShape
from qwen_job.job import Job
from qwen_job.plan.environment import segments_grow
from qwen_job.plan.estimate.constants import constants_from
from qwen_job.plan.estimate.memory import Constants
from qwen_job.plan.estimate.speed import SpeedConstants
from qwen_job.plan.precision import BF16_FROM
from qwen_job.plan.search.choice import MARGIN, Answer, Choice, Question, choose
from qwen_job.plan.search.nearest import refusal
from qwen_job.text import GIB, gib


def question_of(
    job: Job, gpu: Gpu, shape: ModelShape, *, rows: int, precision: str, attention: str, fused_loss: str
) -> Question:
    """Return the search's question for a job: fields that the user wrote are fixed, the others are free."""
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
        expandable_segments=segments_grow(job.env),
    )


def _constants(job: Job, gpu: Gpu) -> tuple[Constants | None, SpeedConstants | None]:
    written = job.plan.constants()
    if not written:
        return None, None
    return constants_from(written, gpu)


def choose_for(job: Job, question: Question) -> tuple[Choice, Answer]:
    """Return the fastest layout that fits, and the whole answer of the search.

    Raises:
        JobError: settings contradict each other, or nothing fits; names the nearest jobs that do.
    """
    answer = choose(question)
    if answer.best is None:
        field, why = refusal(question, able_gpus(question))
        raise JobError([job.problem(tuple(field.split(".")), why)])
    return answer.best, answer


def reason_of(question: Question, answer: Answer) -> str:
    """Return why the plan takes the best choice of an answer."""
    if question.gpu.memory_bytes is None or answer.best is None:
        return "the device's memory is unknown: same as the reference script"
    room = f"{gib(answer.best.needs.gpu_bytes)} of {gib(question.gpu.memory_bytes)} per GPU"
    return f"fastest of {answer.considered} that fits: {room}"


def reference_choice(job: Job, rows: int, on_cpu: bool) -> Choice:
    """Return the reference script's layout (ZeRO-2, checkpointing, one row), for a model of unknown shape."""
    accumulation, checkpointing = job.train.gradient_accumulation_steps, job.train.gradient_checkpointing
    micro = job.train.per_device_train_batch_size or (rows // accumulation if accumulation else 1)
    return Choice(
        zero_stage=2 if job.deepspeed.zero_stage is None else job.deepspeed.zero_stage,
        offload_optimizer=bool(job.deepspeed.offload_optimizer),
        gradient_checkpointing=not on_cpu if checkpointing is None else checkpointing,
        micro_batch_size=micro,
        gradient_accumulation_steps=accumulation or rows // micro,
    )


def refuse_contradictions(job: Job, on_cpu: bool) -> None:
    """Raise a JobError if offload_optimizer contradicts the device or the ZeRO stage."""
    if not job.deepspeed.offload_optimizer:
        return
    where = ("deepspeed", "offload_optimizer")
    if on_cpu:
        raise JobError([job.problem(where, "a CPU job's optimizer is always in host memory; remove the line")])
    if job.deepspeed.zero_stage == 0:
        raise JobError([job.problem(where, "needs ZeRO, but deepspeed.zero_stage is 0; write zero_stage 1, 2 or 3")])


def able_gpus(question: Question) -> list[Gpu]:
    """Return the known GPUs that support the question's precision and kernels."""
    modern = question.precision == "bf16" or question.fused_loss == "liger"
    known = (load_gpu(name) for name in gpu_names())
    return [gpu for gpu in known if not gpu.is_cpu and (not modern or gpu.compute_capability >= BF16_FROM)]
