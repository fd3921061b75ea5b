"""The two ceilings of a device: how fast it copies, and how fast it multiplies the shapes of a layer."""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_day.product import Sizes
from benchmarks.gpu_day.workbench import Ledger, device
from qwen_job.facts.model_shapes import load_model_shape


def all_figures(sizes: Sizes, _home: Path, ledger: Ledger) -> None:
    """Note versions, then measure copies and products."""
    ledger.measure("versions", versions)
    ledger.measure("copy", partial(copies, sizes.tiny))
    for name, (rows, inner, columns) in products(sizes).items():
        ledger.measure(name, partial(product, rows, inner, columns, sizes.tiny))


def versions() -> dict[str, Any]:
    """Return what the figures were measured with."""
    import deepspeed
    import transformers

    found = {"python": platform.python_version(), "torch": torch.__version__, "transformers": transformers.__version__}
    found |= {"deepspeed": deepspeed.__version__, "device": "CPU"}
    if torch.cuda.is_available():
        found["device"] = torch.cuda.get_device_name()
    if "triton" in sys.modules:
        found["triton"] = sys.modules["triton"].__version__
    return found


def products(sizes: Sizes) -> dict[str, tuple[int, int, int]]:
    """Return [rows, inner] x [inner, columns] of one micro-batch's forward pass, and of a weight's gradient."""
    shape = load_model_shape(sizes.model)
    tokens = 8 * sizes.length
    hidden, wide = shape.hidden_size, shape.intermediate_size
    return {
        "product: q, k, v or output": (tokens, hidden, hidden),
        "product: q, k and v in one": (tokens, hidden, 3 * hidden),
        "product: gate or up": (tokens, hidden, wide),
        "product: gate and up in one": (tokens, hidden, 2 * wide),
        "product: down": (tokens, wide, hidden),
        "product: gradient of gate's weight": (wide, tokens, hidden),
        "product: a chunk of logits": (min(2048, tokens), hidden, shape.vocab_size),
    }


def seconds(work: Callable[[], object], most: float = 0.5) -> float:
    """Return the time of one call, by the device's own clock, after a warm-up; at least five calls, ``most`` in all."""
    if not torch.cuda.is_available():
        started = time.perf_counter()
        work()
        return time.perf_counter() - started
    for _ in range(3):
        work()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    work()
    end.record()
    torch.cuda.synchronize()
    calls = int(min(200, max(5, most * 1000 / max(1e-3, begin.elapsed_time(end)))))
    begin.record()
    for _ in range(calls):
        work()
    end.record()
    torch.cuda.synchronize()
    return float(begin.elapsed_time(end)) / 1000 / calls


def copies(tiny: bool) -> dict[str, Any]:
    """Return the bandwidth of a large copy, bytes read and written."""
    size = 1 << (20 if tiny else 32)
    source = torch.empty(size, dtype=torch.uint8, device=device()).random_(0, 255)
    target = torch.empty_like(source)
    return {"gb_per_second": round(2 * size / seconds(lambda: target.copy_(source)) / 1e9, 1)}


def product(rows: int, inner: int, columns: int, tiny: bool) -> dict[str, Any]:
    """Return the rate of a product in bf16 on random numbers: zeros run faster than real data."""
    kind = torch.float32 if tiny else torch.bfloat16
    left = torch.randn(rows, inner, device=device(), dtype=kind)
    right = torch.randn(columns, inner, device=device(), dtype=kind)
    taken = seconds(lambda: left @ right.T)
    return {"ms": round(1000 * taken, 3), "tflops": round(2 * rows * inner * columns / taken / 1e12, 1)}
