"""The speed of a step with one thing changed at a time, in one process.

Each variant trains the same rows from the same weights, so the losses tell whether it computes the same.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

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
        return {"the plan's choice": Variant({}), "DeepSpeed's own way": Variant({}, "DeepSpeed's gradients")}
    overlapped = {"overlap_comm": True, "reduce_bucket_size": 200_000_000}
    return {
        "the plan's choice": Variant({}),
        "not compiled": Variant({"torch_compile": False}),
        "compiled": Variant({"torch_compile": True}),
        "8 rows at once": Variant(rows_at_once(8, sizes)),
        "16 rows at once": Variant(rows_at_once(16, sizes)),
        "DeepSpeed's own way with gradients": Variant({}, "DeepSpeed's gradients"),
        "attention launched for whole rows": Variant({}, "whole rows"),
        "loss in chunks of 8,192": Variant({}, "large chunks"),
        "compiled, gate and up in one product": Variant({"torch_compile": True}, "gate and up"),
        "communication as on several GPUs": Variant(config(zero_optimization=overlapped)),
        "DeepSpeed's timers on": Variant(config(timers={"throughput": {"enabled": True, "synchronized": True}})),
        "ZeRO-1": Variant({"deepspeed": {"zero_stage": 1}}),
        "compiled, coordinate descent": Variant({"torch_compile": True}, "coordinate descent"),
        "compiled, max-autotune": Variant({"torch_compile": True, "torch_compile_mode": "max-autotune-no-cudagraphs"}),
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
def merged_gate_and_up() -> Iterator[None]:
    """Multiply by gate's and up's weights in one product of a copy of both, which costs a pass over the weights."""
    import torch
    from transformers.models.qwen2.modeling_qwen2 import Qwen2MLP

    def forward(self: Any, hidden: Any) -> Any:
        both = torch.nn.functional.linear(hidden, torch.cat([self.gate_proj.weight, self.up_proj.weight]))
        gate, up = both.chunk(2, dim=-1)
        return self.down_proj(self.act_fn(gate) * up)

    with mock.patch.object(Qwen2MLP, "forward", forward):
        yield


AROUND: dict[str, Any] = {
    "large chunks": large_chunks,
    "gate and up": merged_gate_and_up,
    "": nullcontext,
    "coordinate descent": coordinate_descent,
    "DeepSpeed's gradients": own_gradients,
    "whole rows": whole_rows,
}


def measure(bench: Any, sizes: Sizes, home: Path, variant: Variant) -> dict[str, Any]:
    """Train one variant and return its speed. ``bench``: a Workbench."""
    plan = plan_for(sizes, home, "variants", **variant.changes)
    around: AbstractContextManager[None] = AROUND[variant.around]()
    warm, timed = (1, 1) if sizes.tiny else (WARM, TIMED)
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
    }
