"""Batch arithmetic: global batch = micro-batch x accumulation x GPUs, or groups of GPUs that share rows."""

from __future__ import annotations

from typing import NamedTuple

from qwen_job.errors import JobError
from qwen_job.job import Job
from qwen_job.plan.decision import Ledger

# The reference job's accumulation (1 row x 16 a GPU); what a job without any batch setting gets.
REFERENCE_ROWS_PER_GPU = 16


class Batch(NamedTuple):
    """Rows at once on a GPU, times accumulation steps, times GPUs; ``sequence_parallel_size`` GPUs share their rows."""

    micro_batch_size: int
    gradient_accumulation_steps: int
    world_size: int
    sequence_parallel_size: int = 1

    @property
    def global_batch_size(self) -> int:
        """Rows in one optimizer step."""
        groups = self.world_size // self.sequence_parallel_size
        return self.micro_batch_size * self.gradient_accumulation_steps * groups


def rows_per_gpu(job: Job, size: int = 1) -> int:
    """Return the rows that each GPU sees in one optimizer step: micro-batch x accumulation.

    ``size`` GPUs see the same rows.

    Raises:
        JobError: global_batch_size does not divide; suggests the nearest that does.
    """
    train, groups = job.train, job.cluster.world_size // size
    micro, accumulation = train.per_device_train_batch_size, train.gradient_accumulation_steps
    if train.global_batch_size is None:
        if micro and accumulation:
            return micro * accumulation
        return micro * max(1, REFERENCE_ROWS_PER_GPU // micro) if micro else accumulation or REFERENCE_ROWS_PER_GPU
    if micro and accumulation and micro * accumulation * groups != train.global_batch_size:
        message = (
            f"{train.global_batch_size} is not per_device_train_batch_size {micro} x gradient_accumulation_steps "
            f"{accumulation} x {_groups(groups, size)} = {micro * accumulation * groups}; remove one of the three"
        )
        raise JobError([job.problem(("train", "global_batch_size"), message)])
    unit = (micro or accumulation or 1) * groups
    if train.global_batch_size % unit:
        near = _nearest(train.global_batch_size, unit, job, size)
        raise JobError([job.problem(("train", "global_batch_size"), near)])
    return train.global_batch_size // groups


def _groups(groups: int, size: int) -> str:
    return f"{groups} GPUs" if size == 1 else f"{groups} groups of {size} GPUs"


def _nearest(wanted: int, unit: int, job: Job, size: int) -> str:
    below, above = wanted // unit * unit, (wanted // unit + 1) * unit
    fits = f"{below} or {above}" if below else str(above)
    parts = [f"{job.cluster.nodes} x {job.cluster.gpus_per_node} GPUs"]
    parts += [f"sequence_parallel_size {size}"] if size > 1 else []
    for field in ("per_device_train_batch_size", "gradient_accumulation_steps"):
        value = getattr(job.train, field)
        if value:
            parts.append(f"{field} {value}")
    return f"{wanted} does not divide by {unit} ({', '.join(parts)}); the nearest that does is {fits}"


def decide_batch(job: Job, ledger: Ledger, rows: int, micro_batch_size: int, reason: str, size: int = 1) -> Batch:
    """Write the batch into the ledger; ``micro_batch_size`` is the planned one where the user wrote none.

    ``rows`` of a step are for each group of ``size`` GPUs.
    """
    train, world_size = job.train, job.cluster.world_size
    micro = ledger.decide(
        "train.per_device_train_batch_size",
        train.per_device_train_batch_size,
        rows // train.gradient_accumulation_steps if train.gradient_accumulation_steps else micro_batch_size,
        "global batch / accumulation / GPUs" if train.gradient_accumulation_steps else reason,
    )
    accumulation = ledger.decide(
        "train.gradient_accumulation_steps",
        train.gradient_accumulation_steps,
        rows // micro,
        f"{rows} rows a {'GPU' if size == 1 else 'group'} in a step / micro-batch {micro}",
    )
    batch = Batch(micro, accumulation, world_size, size)
    ledger.decide(
        "train.global_batch_size",
        train.global_batch_size,
        batch.global_batch_size,
        f"micro-batch {micro} x accumulation {accumulation} x {_groups(world_size // size, size)}"
        + _grows(job, batch.global_batch_size),
    )
    return batch


def _grows(job: Job, rows: int) -> str:
    """Say that the batch, and so the result, depends on the number of GPUs, and which line keeps it."""
    if job.train.global_batch_size is not None:
        return ""
    return f"; changes with the number of GPUs: train.global_batch_size: {rows} keeps it"
