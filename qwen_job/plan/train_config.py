"""train.yaml: everything that the training inside the image needs to know, in full."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qwen_job.job import Job
from qwen_job.plan.schedule import PACKED_FILL

if TYPE_CHECKING:
    from qwen_job.plan.plan import Plan

# train's fields that are decisions of their own in train.yaml, not TrainingArguments.
_ELSEWHERE = {
    "attention", "bf16", "fp16", "fused_loss", "global_batch_size", "gradient_checkpointing", "hang_seconds",
    "loss_spike_factor", "model_max_length", "on_nan", "resume", "seed", "skip_rows",
    "torch_compile",
}  # fmt: skip


def train_config(plan: Plan) -> dict[str, Any]:
    """Return train.yaml's content; every key is present, None where something is off."""
    job, gpu = plan.job, plan.gpu
    speed = plan.speed
    fill = PACKED_FILL if job.data.packing else 1.0
    return {
        "version": 1,
        "name": job.name,
        "output_dir": job.output,
        "seed": job.train.seed,
        "resume": job.train.resume,
        "world_size": plan.world_size,
        "device": "cpu" if gpu.is_cpu else "cuda",
        "precision": plan.precision,
        "attention": plan.attention,
        "fused_loss": plan.fused_loss,
        "torch_compile": job.train.torch_compile,
        "gradient_checkpointing": plan.choice.gradient_checkpointing,
        # A processor's peak is assumed: good enough for a rough time, not for an MFU.
        "peak_tflops": None if gpu.is_cpu else gpu.peak_tflops.get(plan.precision),
        "model": {
            "name": job.model.name,
            "source": job.model.resolved_source,
            "revision": job.model.revision,
            "cache_dir": plan.model_cache,
        },
        "data": _data(job),
        "training": _training(plan),
        "stop": {"grace_seconds": job.retry.grace},
        "guards": {
            "on_nan": job.train.on_nan,
            "loss_spike_factor": job.train.loss_spike_factor,
            "skip_rows": job.train.skip_rows,
            "hang_seconds": job.train.hang_seconds,
        },
        # What metrics.jsonl measures: bytes that torch allocates (no context, no fragmentation), and real tokens.
        "plan": {
            "memory_bytes_per_gpu": _measurable_bytes(plan),
            "step_seconds": round(speed.mid, 6) if speed else None,
            "tokens_per_second": round(speed.tokens_per_second * fill, 1) if speed else None,
            "memory_items": _memory_items(plan),
            "memory_capacity_bytes": plan.memory.capacity if plan.memory else None,
        },
    }


def _measurable_bytes(plan: Plan) -> int | None:
    """Bytes that a run measures: what torch allocates on a GPU; on a CPU the whole of one process."""
    memory = plan.memory
    if memory is None:
        return None
    return memory.moments[memory.peak] if memory.gpu else sum((_memory_items(plan) or {}).values())


def _memory_items(plan: Plan) -> dict[str, int] | None:
    """Bytes by item of one GPU at its peak, for the report's picture; on a CPU those of one process."""
    memory = plan.memory
    if memory is None:
        return None
    return memory.gpu or {item: size // plan.gpus_per_node for item, size in memory.host.items()}


def _data(job: Job) -> dict[str, Any]:
    # Dumped by the whole job: a serializer of its own would have to be built for this section.
    data: dict[str, Any] = job.model_dump(include={"data"})["data"]
    del data["samples"], data["tokens_per_sample"]
    data["max_length"] = job.train.model_max_length
    return data


def _training(plan: Plan) -> dict[str, Any]:
    train = plan.job.train
    written = {name: getattr(train, name) for name in type(train).model_fields if name not in _ELSEWHERE}
    written["per_device_train_batch_size"] = plan.batch.micro_batch_size
    written["gradient_accumulation_steps"] = plan.batch.gradient_accumulation_steps
    if train.eval_steps is None and (plan.job.data.eval or plan.job.data.eval_split):
        written["eval_steps"] = train.save_steps
    return {**written, **train.extra}
