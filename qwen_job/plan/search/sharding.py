"""Choose ZeRO stage, offload, gradient checkpointing and micro-batch for a job.

- ``question_of``: the search's question for a job
- ``choose_for``, ``reason_of``: the fastest layout that fits, and why
- ``refuse_sharing``, ``sharing_of``: the GPUs that share a row, and why
- ``reference_choice``: the layout for a model of unknown shape
"""

from __future__ import annotations

from dataclasses import replace

from qwen_job.errors import JobError
from qwen_job.facts.hardware import Gpu, gpu_names, load_gpu
from qwen_job.facts.model_shapes import ModelShape
from qwen_job.facts.sequence_parallel import Divided
from qwen_job.facts.sequence_parallel import refusal as refusal_of_size
from qwen_job.job import Job
from qwen_job.plan.batch import rows_per_gpu
from qwen_job.plan.environment import segments_grow
from qwen_job.plan.estimate.constants import constants_from
from qwen_job.plan.estimate.layout import divided_of, why_not_shared
from qwen_job.plan.estimate.memory import Constants
from qwen_job.plan.estimate.speed import SpeedConstants
from qwen_job.plan.long_rows import refuse_long_rows
from qwen_job.plan.precision import BF16_FROM
from qwen_job.plan.search.choice import Answer, Choice, choose, lacks_only_rows
from qwen_job.plan.search.nearest import least_misfit, refusal
from qwen_job.plan.search.question import MARGIN, Question
from qwen_job.text import GIB, gib


def question_of(
    job: Job, gpu: Gpu, shape: ModelShape, *, rows: int, precision: str, attention: str, fused_loss: str
) -> Question:
    """Return the search's question for a job: fields that the user wrote are fixed, the others are free."""
    train, cluster = job.train, job.cluster
    refuse_long_rows(job, shape)
    constants, speed_constants = _constants(job, gpu)
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
        micro_batch_size=train.per_device_train_batch_size,
        sequence_parallel_size=_size_of(job),
        gradient_accumulation_steps=train.gradient_accumulation_steps,
        host_memory_bytes=int(cluster.memory_gib * GIB) if cluster.memory_gib else None,
        network_gbs=cluster.network_gbs,
        storage_gbs=cluster.storage_gbs,
        save_total_limit=train.save_total_limit,
        margin=MARGIN if job.plan.margin is None else job.plan.margin,
        constants=constants,
        speed_constants=speed_constants,
        expandable_segments=segments_grow(job.env),
        expert_parallel_size=None if train.expert_parallel_size == "auto" else train.expert_parallel_size,
        tiled_mlp=None if train.tiled_mlp == "auto" else train.tiled_mlp,
        activation_offloading=None if train.activation_offloading == "auto" else train.activation_offloading,
        tiles_for_speed=train.torch_compile is not True,
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
        if lacks_only_rows(question):
            rows_per_gpu(job)
        field, why, remedies = refusal(question, able_gpus(question))
        raise JobError([job.problem(tuple(field.split(".")), why)._replace(remedies=remedies)])
    return answer.best, answer


def _size_of(job: Job) -> int | None:
    """Return the GPUs that share a row where the job decides it, None where the plan does."""
    written = job.train.sequence_parallel_size
    # Its noise depends on a row's length, and GPUs that share it have slices.
    return (1 if "neftune_noise_alpha" in job.train.extra else None) if written == "auto" else written


def least_rows(job: Job) -> int:
    """Return the rows of a step for each GPU, or for each group of as few GPUs as the global batch allows.

    Raises:
        JobError: the global batch divides in no way.
    """
    written = job.train.sequence_parallel_size
    if written != "auto":
        return rows_per_gpu(job, written)
    gpus = job.cluster.gpus_per_node
    for size in (size for size in range(1, gpus + 1) if gpus % size == 0):
        try:
            return rows_per_gpu(job, size)
        except JobError:
            continue
    return rows_per_gpu(job)


def refuse_sharing(job: Job, shape: ModelShape | None, attention: str) -> None:
    """Refuse a number of GPUs that cannot share rows of this model on these nodes.

    Raises:
        JobError: names the numbers that can, or what to change.
    """
    size, gpus = job.train.sequence_parallel_size, job.cluster.gpus_per_node
    if size == "auto" or size == 1:
        return
    length = job.train.model_max_length
    divided = divided_of(shape, length, gpus) if shape else Divided(size, size, length, gpus)
    why = refusal_of_size(size, divided)
    if not why and shape is not None:
        why = why_not_shared(shape, attention)
    if not why and "neftune_noise_alpha" in job.train.extra:
        why = "train.neftune_noise_alpha depends on the length of a row, and a GPU has a slice; remove one of them"
    if why:
        raise JobError([job.problem(("train", "sequence_parallel_size"), f"{size}: {why}")])


def sharing_of(question: Question | None, choice: Choice) -> str:
    """Return why as many GPUs share a row as the plan says."""
    if question is None:
        return "the model's shape is unknown"
    length = f"rows of {question.sequence_length:,} tokens"
    if choice.sequence_parallel_size == 1:
        return f"{length} fit on one {'process' if question.gpu.is_cpu else 'GPU'}"
    away = question.activation_offloading or False  # that of a GPU alone comes after sharing
    alone = replace(question, sequence_parallel_size=1, global_batch_size=None, activation_offloading=away)
    least = least_misfit(alone)
    return f"{length} do not fit on one GPU" + (f": {least.misfit}" if least else "")


def reason_of(question: Question, answer: Answer) -> str:
    """Return why the plan takes the best choice of an answer."""
    if question.gpu.memory_bytes is None or answer.best is None:
        return "the device's memory is unknown: same as the reference script"
    room = f"{gib(answer.best.needs.gpu_bytes)} of {gib(question.gpu.memory_bytes)} per GPU"
    return f"fastest of {answer.considered} that fits: {room}"


def reference_choice(job: Job, rows: int, on_cpu: bool) -> Choice:
    """Return the reference script's layout (ZeRO-2, checkpointing, one row), for a model of unknown shape."""
    refuse_long_rows(job, None)
    accumulation, checkpointing = job.train.gradient_accumulation_steps, job.train.gradient_checkpointing
    micro = job.train.per_device_train_batch_size or (rows // accumulation if accumulation else 1)
    return Choice(
        zero_stage=2 if job.deepspeed.zero_stage is None else job.deepspeed.zero_stage,
        offload_optimizer=bool(job.deepspeed.offload_optimizer),
        gradient_checkpointing=not on_cpu if checkpointing is None else checkpointing,
        micro_batch_size=micro,
        gradient_accumulation_steps=accumulation or rows // micro,
        sequence_parallel_size=_size_of(job) or 1,
        expert_parallel_size=1 if job.train.expert_parallel_size == "auto" else job.train.expert_parallel_size,
        tiled_mlp=job.train.tiled_mlp is True,
        activation_offloading=job.train.activation_offloading is True,
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
