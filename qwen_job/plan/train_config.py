"""train.yaml: all settings of the training inside the image."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from qwen_job.facts.data_names import is_name
from qwen_job.job import Job
from qwen_job.job.model import DataFile as JobFile
from qwen_job.job.notify import Notify
from qwen_job.plan.estimate.memory import estimate_memory
from qwen_job.plan.schedule import PACKED_FILL
from qwen_job.plan.search.choice import layout_of
from qwen_job.run.config import TrainConfig
from qwen_job.run.sections import (
    DataFile,
    DataSpec,
    Guards,
    ModelSpec,
    Monitor,
    Planned,
    RopeScaling,
    Stop,
    Training,
    Webhook,
)

if TYPE_CHECKING:
    from qwen_job.plan.plan import Plan

# Fields of train that train.yaml keeps outside its training section, or in a different form.
_ELSEWHERE = {
    "activation_offloading", "attention", "bf16", "expert_parallel_size", "export", "fp16", "fused_loss",
    "global_batch_size", "gradient_checkpointing", "hang_seconds", "loss_spike_factor", "model_max_length", "on_nan",
    "resume", "router_aux_loss_coef", "seed", "sequence_parallel_size", "skip_rows", "tiled_mlp", "torch_compile",
}  # fmt: skip
# Fields of data that only the plan reads.
_FOR_THE_PLAN = ("samples", "tokens_per_sample")


def train_config(plan: Plan) -> TrainConfig:
    """Return train.yaml's content; every key is present, None if it is off.

    The job is already validated; building another validator would take longer than everything else here.
    """
    job, train, gpu = plan.job, plan.job.train, plan.gpu
    return TrainConfig.model_construct(
        version=1,
        name=job.name,
        output_dir=Path(job.output),
        seed=train.seed,
        resume=train.resume,
        world_size=plan.world_size,
        device="cpu" if gpu.is_cpu else "cuda",
        precision=plan.precision,
        attention=plan.attention,
        sequence_parallel_size=plan.choice.sequence_parallel_size,
        fused_loss=plan.fused_loss,
        torch_compile=plan.torch_compile,
        gradient_checkpointing=plan.choice.gradient_checkpointing,
        activation_offloading=plan.choice.activation_offloading,
        tiled_mlp=plan.choice.tiled_mlp,
        router_aux_loss_coef=train.router_aux_loss_coef,
        export=train.export,
        # A CPU's peak is assumed: precise enough for a rough time, not for an MFU.
        peak_tflops=None if gpu.is_cpu else gpu.peak_tflops.get(plan.precision),
        model=ModelSpec.model_construct(
            name=job.model.name,
            source=job.model.resolved_source,
            revision=job.model.revision,
            cache_dir=Path(plan.job.model_cache),
            rope_scaling=_rope_scaling(job),
        ),
        data=_data(job),
        training=_training(plan),
        stop=Stop.model_construct(grace_seconds=job.retry.grace),
        guards=Guards.model_construct(
            on_nan=train.on_nan,
            loss_spike_factor=train.loss_spike_factor,
            skip_rows=train.skip_rows,
            hang_seconds=train.hang_seconds,
        ),
        notify=tuple(_webhook(hook) for hook in job.notify),
        monitor=_monitor(job),
        plan=_planned(plan),
    )


def _rope_scaling(job: Job) -> RopeScaling | None:
    scaling = job.model.rope_scaling
    return RopeScaling.model_construct(**dict(scaling)) if scaling is not None else None


def _monitor(job: Job) -> Monitor:
    file = job.monitor.prometheus_file
    return Monitor.model_construct(
        report_every=job.monitor.report_every,
        prometheus_file=Path(file) if file else None,
        prometheus_port=job.monitor.prometheus_port,
    )


def _webhook(hook: Notify) -> Webhook:
    return Webhook.model_construct(kind=hook.kind, url=hook.url, secret=hook.secret, events=tuple(hook.events))


def _planned(plan: Plan) -> Planned:
    """Return what metrics.jsonl will measure: bytes that torch allocates (no context or fragmentation), real tokens."""
    speed, memory = plan.speed, plan.memory
    fill = PACKED_FILL if plan.job.data.packing else 1.0
    return Planned.model_construct(
        memory_bytes_per_gpu=_measurable_bytes(plan),
        step_seconds=round(speed.mid, 6) if speed else None,
        tokens_per_second=round(speed.tokens_per_second * fill, 1) if speed else None,
        memory_items=_memory_items(plan),
        memory_capacity_bytes=memory.capacity if memory else None,
        memory_save_bytes=(memory.states_bytes or None) if memory else None,
        host_memory_bytes=memory.host_bytes - memory.states_bytes if memory else None,
    )


def _measurable_bytes(plan: Plan) -> int | None:
    """Return the bytes that a run measures: what torch allocates on a GPU, or one whole process on a CPU.

    It counts on compiled layers where they may be: what must fit is more, because a node can lack a compiler.
    """
    memory = plan.memory
    if memory is None:
        return None
    if plan.torch_compile is not False and plan.question is not None and memory.gpu:
        memory = estimate_memory(
            layout_of(plan.question, plan.choice)._replace(compiled=True), constants=plan.question.constants
        )
    return memory.moments[memory.peak] if memory.gpu else sum((_memory_items(plan) or {}).values())


def _memory_items(plan: Plan) -> dict[str, int] | None:
    """Return the bytes by item of one GPU at its peak, or of one process on a CPU, for the report's picture."""
    memory = plan.memory
    if memory is None:
        return None
    return memory.gpu or {item: size // plan.gpus_per_node for item, size in memory.host.items()}


def _data(job: Job) -> DataSpec:
    data = {name: getattr(job.data, name) for name in type(job.data).model_fields if name not in _FOR_THE_PLAN}
    data |= {split: tuple(_file(file) for file in data[split]) for split in ("train", "eval")}
    data["ignore_keys"] = tuple(job.data.ignore_keys)
    data["cache_dir"] = Path(job.data.cache_dir) if job.data.cache_dir else None
    return DataSpec.model_construct(**data, max_length=job.train.model_max_length)


def _file(file: JobFile) -> DataFile:
    if is_name(file.path):
        return DataFile.model_construct(source=file.path, weight=file.weight, revision=file.revision)
    return DataFile.model_construct(path=Path(file.path), weight=file.weight)


def _training(plan: Plan) -> Training:
    train = plan.job.train
    written = {name: getattr(train, name) for name in type(train).model_fields if name not in _ELSEWHERE}
    written["per_device_train_batch_size"] = plan.batch.micro_batch_size
    written["gradient_accumulation_steps"] = plan.batch.gradient_accumulation_steps
    written["longest_first"] = train.begins_with_longest
    written["memory_save_steps"] = plan.memory_save_steps
    if train.eval_steps is None and (plan.job.data.eval or plan.job.data.eval_split):
        written["eval_steps"] = train.save_steps
    return Training.model_construct(**{**written, **train.extra})
