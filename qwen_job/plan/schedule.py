"""The whole run: rows an epoch from the size of the data, steps, time, GPU-hours and money."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

from qwen_job.job import Job
from qwen_job.plan.estimate.memory import MemoryEstimate
from qwen_job.plan.estimate.speed import (
    COMPILE_SECONDS,
    CPU_START_SECONDS,
    DEFAULT_STORAGE_GBS,
    START_SECONDS,
    RunEstimate,
    SpeedEstimate,
    estimate_run,
)
from qwen_job.plan.search.choice import TOKEN_BYTES, Choice, layout_of, speed_of
from qwen_job.plan.search.question import Question

# Share of real tokens in packed rows: best-fit packing leaves little free.
PACKED_FILL = 0.97
# The prepared data's index, bytes a conversation (data/prepared.py).
SAMPLE_BYTES = 40


class DataSize(NamedTuple):
    """The size of one epoch's data, from the caller: the plan reads no files.

    ``tokens`` counts real tokens of all ``samples`` conversations, none of them over the row's length; None when they
    are not known. ``attended_length`` is sum(s_i^2)/sum(s_i). ``source`` says where the numbers come from.
    """

    samples: int
    tokens: float | None = None
    attended_length: float | None = None
    source: str = "written in the job"


class RunPlan(NamedTuple):
    """The run as planned. ``rows_per_epoch`` is None without data, ``estimate`` and ``speed`` on an unknown device.

    ``speed`` is for the data at hand: its tokens/s count real tokens, and its attention sees only one conversation.
    ``memory`` is the choice's with the prepared data in it.
    """

    data: DataSize | None
    rows_per_epoch: int | None
    steps_per_epoch: int | None
    steps: int | None
    speed: SpeedEstimate | None
    estimate: RunEstimate | None
    memory: MemoryEstimate


def data_of(job: Job) -> DataSize | None:
    """Return what the job itself says about its data, None when it does not say how many samples there are."""
    if job.data.samples is None:
        return None
    kept = round(job.data.samples * (1 - _held_out(job)))
    most = job.train.model_max_length
    mean = None if job.data.tokens_per_sample is None else min(job.data.tokens_per_sample, most)
    return DataSize(kept, None if mean is None else mean * kept, mean)


def plan_run(job: Job, question: Question, choice: Choice, data: DataSize | None, *, compiles: bool = False) -> RunPlan:
    """Return the run that the choice gives with this data; ``compiles``: layers are compiled before the first step."""
    train = job.train
    rows, fill = _rows(job, data)
    batch = choice.global_batch_size(question.world_size)
    per_epoch = None if rows is None else max(1, math.ceil(rows / batch))
    steps = train.max_steps if train.max_steps > 0 else None
    if steps is None and per_epoch is not None:
        steps = max(1, math.ceil(per_epoch * train.num_train_epochs))
    speed = _speed(job, question, choice, data, fill)
    estimate = None
    if speed is not None and steps is not None:
        estimate = estimate_run(
            speed,
            rows=rows or steps * batch,
            global_batch_size=batch,
            num_train_epochs=train.num_train_epochs,
            world_size=question.world_size,
            max_steps=train.max_steps,
            checkpoint_bytes=choice.needs.disk["checkpoints"] // (question.save_total_limit + 1),
            save_steps=train.save_steps,
            storage_gbs=job.cluster.storage_gbs or DEFAULT_STORAGE_GBS,
            start_seconds=(CPU_START_SECONDS if question.gpu.is_cpu else START_SECONDS)
            + (COMPILE_SECONDS if compiles else 0.0),
            price_per_gpu_hour=job.cluster.price_per_gpu_hour,
            spare_gpus=job.slurm.spare_nodes * question.gpus_per_node,
        )
    memory = choice.needs.as_exported(train.export).with_data(_prepared_bytes(data))
    return RunPlan(data, rows, per_epoch, steps, speed, estimate, memory)


def _prepared_bytes(data: DataSize | None) -> int:
    """Bytes of the prepared data: its tokens, and the index of its conversations; 0 where nothing is known."""
    return 0 if data is None or data.tokens is None else int(TOKEN_BYTES * data.tokens + SAMPLE_BYTES * data.samples)


def _held_out(job: Job) -> float:
    return 0.0 if job.data.eval else job.data.eval_split


def _rows(job: Job, data: DataSize | None) -> tuple[int | None, float]:
    """Return the rows of an epoch and the share of real tokens in them.

    Packing without known tokens counts a row for every conversation, which is the most that there can be.
    """
    if data is None:
        return None, 1.0
    length = job.train.model_max_length
    if data.tokens is None:
        return data.samples, 1.0
    if job.data.packing:
        return max(1, math.ceil(data.tokens / (length * PACKED_FILL))), PACKED_FILL
    return data.samples, min(1.0, data.tokens / max(1, data.samples * length))


def _speed(job: Job, question: Question, choice: Choice, data: DataSize | None, fill: float) -> SpeedEstimate | None:
    """Return the speed of the choice with this data; without data it is that of full rows."""
    if data is None or data.tokens is None:
        return choice.speed
    attended = data.attended_length if job.data.packing else None
    return speed_of(replace(question, fill=fill, attended_length=attended), layout_of(question, choice))
