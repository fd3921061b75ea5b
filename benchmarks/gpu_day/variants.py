"""The speed of a step with one thing changed at a time, in one process.

Each variant trains the same rows from the same weights, so the losses tell whether it computes the same.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from benchmarks.gpu_day import merged
from benchmarks.gpu_day.product import Sizes, plan_for

WARM, TIMED = 4, 6  # steps; a rehearsal has one of each


class Variant(NamedTuple):
    """``changes`` to the job; ``around``: the name of a change to the process, of ``AROUND``."""

    changes: dict[str, Any]
    around: str = ""


def config(**values: Any) -> dict[str, Any]:
    """Return what overrides keys of deepspeed.json."""
    return {"deepspeed": {"config": values}}


def rows_at_once(micro: int, sizes: Sizes) -> dict[str, Any]:
    """Return another micro-batch at the same batch."""
    return {"per_device_train_batch_size": micro, "gradient_accumulation_steps": sizes.rows // micro}


def variants(sizes: Sizes) -> dict[str, Variant]:
    """Return the variants by name; the first is the plan's choice."""
    if sizes.tiny:
        names = "DeepSpeed's gradients", "all merged", "one chunk", "FA3"
        return {"the plan's choice": Variant({})} | {name: Variant({}, name) for name in names}
    overlapped = {"overlap_comm": True, "reduce_bucket_size": 200_000_000}
    compiled = {"torch_compile": True}
    autotuned = compiled | {"torch_compile_mode": "max-autotune-no-cudagraphs"}
    zero_3 = {"deepspeed": {"zero_stage": 3}}
    return {
        "the plan's choice": Variant({}),
        "not compiled": Variant({"torch_compile": False}),
        "compiled": Variant(compiled),
        "FlashAttention 4": Variant({}, "FA4"),
        "FlashAttention 3": Variant({}, "FA3"),
        "q, k and v in one product, gate and up in one": Variant({}, "all merged"),
        "gate and up in one product": Variant({}, "gate and up"),
        "8 rows at once": Variant(rows_at_once(8, sizes)),
        "16 rows at once": Variant(rows_at_once(16, sizes)),
        "loss in chunks of 8,192": Variant({}, "large chunks"),
        "the same, the head's gradient in 16 bits": Variant({}, "one chunk"),
        "DeepSpeed's own way with gradients": Variant({}, "DeepSpeed's gradients"),
        "attention launched for whole rows": Variant({}, "whole rows"),
        "communication as on several GPUs": Variant(config(zero_optimization=overlapped)),
        "DeepSpeed's timers on": Variant(config(timers={"throughput": {"enabled": True, "synchronized": True}})),
        "ZeRO-1": Variant({"deepspeed": {"zero_stage": 1}}),
        "compiled, coordinate descent": Variant(compiled, "coordinate descent"),
        "compiled, CUDA graphs": Variant(compiled | {"torch_compile_mode": "reduce-overhead"}),
        "compiled, max-autotune": Variant(autotuned),
        "ZeRO-3": Variant(zero_3),
        "ZeRO-3, compiled": Variant(compiled | zero_3),
    }


@contextmanager
def coordinate_descent() -> Iterator[None]:
    """Let the compiler search the neighbourhood of its best tile sizes."""
    import torch._inductor.config as inductor

    with inductor.patch(coordinate_descent_tuning=True):
        yield


@contextmanager
def own_gradients() -> Iterator[None]:
    """Let DeepSpeed move, add up and measure the gradients its own way (train/lean_zero.py)."""
    from qwen_job.train import deepspeed_engine

    with mock.patch.object(deepspeed_engine, "use_lean_zero", lambda _optimizer: None):
        yield


@contextmanager
def whole_rows() -> Iterator[None]:
    """Launch attention's blocks for documents as long as a row."""
    from qwen_job.train import attention

    with mock.patch.object(attention, "_BLOCK", 2048):
        yield


@contextmanager
def large_chunks() -> Iterator[None]:
    """Take the loss of up to 8,192 positions at once."""
    from qwen_job.train import loss

    with mock.patch.object(loss, "_CHUNK_ROWS", 8192):
        yield


@contextmanager
def one_chunk() -> Iterator[None]:
    """Take the loss of up to 8,192 positions at once, the head's gradient in the 16 bits of its weight, not float32."""
    from qwen_job.train import loss

    def product(total: Any, left: Any, right: Any) -> Any:
        return left @ right if total is None else total.add_(left @ right)

    with large_chunks(), mock.patch.object(loss, "_add_product", product):
        yield


@contextmanager
def flash(version: str) -> Iterator[None]:
    """Let torch's FlashAttention be that of another package: FA3 (flash_attn_interface), FA4 (flash-attn-4).

    Raises:
        ImportError: this machine does not have it.
    """
    from torch.nn.attention import activate_flash_attention_impl, restore_flash_attention_impl

    activate_flash_attention_impl(version)
    try:
        yield
    finally:
        restore_flash_attention_impl()


AROUND: dict[str, Any] = {
    "": nullcontext,
    "large chunks": large_chunks,
    "one chunk": one_chunk,
    "gate and up": merged.merged_feed_forward,
    "all merged": merged.merged_layers,
    "FA3": partial(flash, "FA3"),
    "FA4": partial(flash, "FA4"),
    "coordinate descent": coordinate_descent,
    "DeepSpeed's gradients": own_gradients,
    "whole rows": whole_rows,
}


def measure(bench: Any, sizes: Sizes, home: Path, variant: Variant) -> dict[str, Any]:
    """Train one variant and return its speed. ``bench``: a Workbench."""
    plan = plan_for(sizes, home, "variants", **variant.changes)
    around: AbstractContextManager[None] = AROUND[variant.around]()
    warm, timed = (1, 1) if sizes.tiny else (WARM, TIMED)
    merged.copied.clear()
    with around:
        found = bench.measure(plan, steps=warm + timed)
    seconds = statistics.median(found.seconds[warm:])
    return {
        "ms": round(1000 * seconds, 2),
        "spread_ms": round(1000 * (max(found.seconds[warm:]) - min(found.seconds[warm:])), 2),
        "tokens_per_second": round(sizes.rows * sizes.length / seconds),  # made-up rows have no pads
        "first_step_seconds": round(found.seconds[0], 2),
        "losses": [round(loss, 6) for loss in found.losses],
        "allocated": found.allocated,
        "reserved": found.reserved,
        "graphs": found.graphs,
        "micro_batch": plan.batch.micro_batch_size,
        "copied_weights": len(merged.copied),
    }
