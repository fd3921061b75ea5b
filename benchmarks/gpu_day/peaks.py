"""Planned beside measured peak memory, in one process.

Each setting is planned as a job and trained for three steps of two micro-batches. ``allocated`` is what tensors take,
which the plan estimates; ``reserved`` is what the allocator holds for them; ``device`` is what nvidia-smi shows.
Settings that the plan does not fit into this GPU are not tried.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.gpu_day.product import Sizes, plan_for
from qwen_job.errors import JobError
from qwen_job.facts.model_shapes import load_model_shape
from qwen_job.plan.train_config import train_config

SMALL, QWEN3, MIDDLE, LARGE = "qwen1.5-1.8b-chat", "qwen3-1.7b", "qwen3-4b", "qwen2.5-7b-instruct"
HYBRID = "qwen3.5-2b"
PLAIN = {"gradient_checkpointing": False}
CHECKPOINTED = {"gradient_checkpointing": True}
TILED, AWAY = CHECKPOINTED | {"tiled_mlp": True}, {"activation_offloading": True}


def settings(sizes: Sizes) -> dict[str, dict[str, Any]]:
    """Return the settings by name: model, rows x tokens, and what differs from the plan's choice."""
    rows: dict[str, tuple[str, int, int, dict[str, Any]]]
    if sizes.tiny:
        # Compiled up to the graphs: a compiler for the CPU would take minutes.
        compiled = PLAIN | {"torch_compile": True, "torch_compile_backend": "aot_eager"}
        rows = {"tiny 1 x 64": (sizes.model, 1, 64, compiled), "tiny 2 x 32": (sizes.model, 2, 32, CHECKPOINTED)}
    else:
        rows = {
            "1.8B, 1 x 512": (SMALL, 1, 512, PLAIN),
            "1.8B, 1 x 512, checkpointing": (SMALL, 1, 512, CHECKPOINTED),
            "1.8B, 8 x 2048": (SMALL, 8, 2048, PLAIN),
            "1.8B, 8 x 2048, not compiled": (SMALL, 8, 2048, PLAIN | {"torch_compile": False}),
            "1.8B, 16 x 2048": (SMALL, 16, 2048, PLAIN),
            "1.8B, 16 x 2048, checkpointing": (SMALL, 16, 2048, CHECKPOINTED),
            "1.8B, 2 x 8192": (SMALL, 2, 8192, PLAIN),
            "1.8B, 1 x 8192, checkpointing, all logits": (SMALL, 1, 8192, CHECKPOINTED | {"fused_loss": "none"}),
            "1.8B, 4 x 2048, ZeRO-3": (SMALL, 4, 2048, PLAIN | zero(3)),
            "1.8B, 4 x 8192, ZeRO-3, checkpointing": (SMALL, 4, 8192, CHECKPOINTED | zero(3)),
            "1.7B (Qwen3), 4 x 2048": (QWEN3, 4, 2048, PLAIN),
            "2B (Qwen3.5), 4 x 2048": (HYBRID, 4, 2048, PLAIN),
            "4B (Qwen3), 2 x 2048": (MIDDLE, 2, 2048, PLAIN),
            "4B (Qwen3), 4 x 8192, checkpointing": (MIDDLE, 4, 8192, CHECKPOINTED),
            # Long rows: as they are, tiled, and with checkpoints on the host. The last one is near the limit of 80 GB.
            "1.8B, 1 x 65536, checkpointing": (SMALL, 1, 65536, CHECKPOINTED),
            "1.8B, 1 x 65536, tiled": (SMALL, 1, 65536, TILED),
            "1.8B, 1 x 65536, tiled, activations offloaded": (SMALL, 1, 65536, TILED | AWAY),
            "4B (Qwen3), 1 x 131072, tiled": (MIDDLE, 1, 131072, TILED | zero(2, offload=True)),
            "4B (Qwen3), 1 x 262144, tiled": (MIDDLE, 1, 262144, TILED | zero(3, offload=True)),
            "4B (Qwen3), 1 x 262144, tiled, activations offloaded": (
                MIDDLE, 1, 262144, TILED | AWAY | zero(3, offload=True),
            ),
            "1.8B, 4 x 2048, optimizer offloaded": (SMALL, 4, 2048, PLAIN | zero(2, offload=True)),
            "7B (Qwen2.5), 1 x 2048, checkpointing, optimizer offloaded": (
                LARGE, 1, 2048, CHECKPOINTED | zero(2, offload=True),
            ),
        }  # fmt: skip
    return {name: _changes(*row) for name, row in rows.items()}


def zero(stage: int, offload: bool = False) -> dict[str, Any]:
    """Return what asks for a ZeRO stage."""
    return {"deepspeed": {"zero_stage": stage, "offload_optimizer": offload}}


def _changes(model: str, micro: int, length: int, changes: dict[str, Any]) -> dict[str, Any]:
    batch = {"per_device_train_batch_size": micro, "gradient_accumulation_steps": 2, "global_batch_size": 2 * micro}
    return {"model": model, "model_max_length": length, **batch, **changes}


def measure(bench: Any, sizes: Sizes, home: Path, changes: dict[str, Any], free_host: int) -> dict[str, Any]:
    """Plan a setting and train it; returns bytes. ``bench``: a Workbench."""
    try:
        plan = plan_for(sizes, home, "peaks", **changes)
    except JobError as error:
        return {"skipped": " ".join(str(error).split())[:200]}
    memory = plan.memory
    assert memory is not None
    expected = train_config(plan).plan.memory_bytes_per_gpu or 0  # less than what must fit, where layers are compiled
    planned = {
        "parameters": load_model_shape(changes["model"]).num_parameters,
        "planned": expected,
        "planned_device": memory.gpu_bytes - memory.moments[memory.peak] + expected,
        "at": memory.peak,
    }
    if memory.host_needed > free_host:
        return {"skipped": f"needs {memory.host_needed / 2**30:.0f} GiB of host memory", **planned}
    found = bench.measure(plan, steps=1 if sizes.tiny else 3)
    return {
        **planned,
        "allocated": found.allocated,
        "reserved": found.reserved,
        "device": found.device,
        "before": found.before,
        "step_seconds": round(found.seconds[-1], 4),
        "loss": found.losses[-1],
        "graphs": found.graphs,
    }
