"""The kernels alone, forward and backward: attention over packed documents, the loss, and all layers of a model.

A time is the median of five after two to warm up, by the GPU's events. An error is that of the loss against float32, or
of attention's output and its three gradients against the first kernel's, relative in the 2-norm.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from benchmarks.gpu_day import variants
from benchmarks.gpu_day.product import Sizes
from benchmarks.gpu_day.workbench import Ledger, Rows, clean, device
from qwen_job.facts.model_shapes import ModelShape, load_model_shape
from qwen_job.train import attention as attention_module
from qwen_job.train import loss as losses
from qwen_job.train.attention import Kernel, block_mask, implementation, inputs_for, memory_efficient, varlen
from qwen_job.train.batches import Batch, collate, on_device
from qwen_job.train.kernels import stock_kernels, use_lean_kernels, use_lean_rotation


def all_kernels(sizes: Sizes, _home: Path, ledger: Ledger) -> None:
    """Measure every kernel at a micro-batch of eight rows."""
    shape = load_model_shape(sizes.model)
    batch = packed(sizes, 2 if sizes.tiny else 8, shape)
    for name, dtype in attentions(sizes).items():
        ledger.measure(f"attention: {name}, {dtype}", partial(attention, name, dtype, batch, shape))
    trained = shape.vocab_size, shape.hidden_size, len(batch["chosen"])
    for name in ("none", "chunked", "chunked, compiled", "liger"):
        if not (sizes.tiny and name not in ("none", "chunked")):
            ledger.measure(f"loss: {name}", partial(loss, name, *trained))
    for name in ("stock formulas", "lean kernels", "compiled layers", "liger's kernels"):
        if not (sizes.tiny and name not in ("stock formulas", "lean kernels")):
            ledger.measure(f"layers and loss: {name}", partial(layers, name, sizes, batch))


def packed(sizes: Sizes, rows: int, shape: ModelShape) -> Batch:
    """Return one micro-batch of made-up rows on the device."""
    made = Rows(rows, sizes.length, shape.vocab_size)
    return on_device(collate([(index, made[index]) for index in range(rows)], pad_id=0), torch.device(device()))


def seconds(work: Callable[[], object]) -> float:
    """Return the median time of five runs."""
    times = []
    for number in range(7):
        started = time.perf_counter()
        if torch.cuda.is_available():
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            work()
            end.record()
            torch.cuda.synchronize()
            taken = float(begin.elapsed_time(end)) / 1000
        else:
            work()
            taken = time.perf_counter() - started
        times += [taken] if number >= 2 else []
    return statistics.median(times)


def figures(taken: float, **more: Any) -> dict[str, Any]:
    """Return milliseconds and the peak of memory since ``clean``."""
    memory = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return {"ms": round(1000 * taken, 3), "memory_bytes": memory, **more}


def attentions(sizes: Sizes) -> dict[str, str]:
    """Return the kernels and the type that each is timed in; fp16 is what GPUs below compute capability 8.0 have."""
    if sizes.tiny:
        return {"sdpa with a mask": "float32"}
    return {
        "varlen": "bfloat16",
        "varlen, blocks for whole rows": "bfloat16",
        "varlen, FA4": "bfloat16",
        "varlen, FA3": "bfloat16",
        "varlen in fp16": "float16",
        "memory-efficient, as below 8.0": "float16",
        "sdpa with a mask": "float16",
    }


@contextmanager
def using(kernel: Any) -> Iterator[None]:
    """Let varlen call another kernel of ours than this GPU's."""
    chosen = Kernel(kernel, frozenset({"scale", "enable_gqa"}))
    with mock.patch.object(attention_module, "varlen_kernel", lambda: chosen):
        yield


def attention(name: str, dtype: str, batch: Batch, shape: ModelShape) -> dict[str, Any]:
    """Measure one layer's attention, forward and backward, and its error against float32 on the first row."""
    clean(device())
    width, heads, kv_heads = shape.head_dim, shape.num_attention_heads, shape.num_key_value_heads
    kind = getattr(torch, dtype)
    rows, length = batch["input_ids"].shape
    shapes = [(rows, count, length, width) for count in (heads, kv_heads, kv_heads)]
    torch.manual_seed(0)
    parts = [torch.randn(shape, device=device(), dtype=kind, requires_grad=True) for shape in shapes]
    mask = block_mask(batch["document_ids"])
    call = partial(_attend, name, parts, batch, mask)
    slope = torch.randn_like(call())

    def work() -> None:
        for part in parts:
            part.grad = None
        call().backward(slope)

    with variants.flash(name[-3:]) if name.endswith(("FA3", "FA4")) else nullcontext():
        taken = seconds(work)
    exact = [part[:1].detach().float().requires_grad_() for part in parts]
    repeats = heads // kv_heads
    wide = [exact[0], *(part.repeat_interleave(repeats, 1) for part in exact[1:])]
    scores = (wide[0] @ wide[1].transpose(-1, -2) * width**-0.5).masked_fill(~mask[:1], float("-inf"))
    (scores.softmax(-1) @ wide[2]).backward(slope[:1].float())
    errors = [
        float((part.grad[:1].float() - true.grad).norm() / true.grad.norm())  # type: ignore[index, union-attr, operator]
        for part, true in zip(parts, exact, strict=True)
    ]
    return figures(taken, error=max(errors))


def _attend(name: str, parts: list[torch.Tensor], batch: Batch, mask: torch.Tensor) -> torch.Tensor:
    """Return [B, heads, S, D]."""
    query, key, value = parts
    rows, heads, length, width = query.shape
    if name == "sdpa with a mask":
        return torch.nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, scale=width**-0.5, enable_gqa=heads != key.shape[1]
        )
    boundaries: dict[str, Any] = {
        key: value
        for key, value in inputs_for(batch, "varlen", parts[0].dtype).items()
        if "length" in key or "cu_" in key
    }
    if "whole rows" in name:
        boundaries["max_length_q"] = length
    flat = [part.transpose(0, 1).flatten(1, 2)[None] for part in parts]
    with using(memory_efficient) if "memory-efficient" in name else nullcontext():
        out, _ = varlen(torch.nn.Module(), flat[0], flat[1], flat[2], None, scaling=width**-0.5, **boundaries)
    return out[0].view(rows, length, heads, width).transpose(1, 2)


def loss(name: str, words: int, hidden_size: int, tokens: int) -> dict[str, Any]:
    """Measure one loss kernel over the positions of a micro-batch that are trained."""
    clean(device())
    torch.manual_seed(0)
    kind = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    hidden = torch.randn(tokens, hidden_size, device=device(), dtype=kind, requires_grad=True)
    weight = (torch.randn(words, hidden_size, device=device(), dtype=kind) * 0.02).requires_grad_()
    targets = torch.randint(0, words, (tokens,), device=device())
    if name.endswith("compiled"):
        losses.compile_chunks()
    chosen = losses.fused_loss(name.partition(",")[0])

    def work() -> Any:
        hidden.grad = weight.grad = None
        mean = chosen(hidden, weight, targets) / tokens
        mean.backward()
        return mean

    try:
        taken = seconds(work)
        exact = _exact_loss(hidden, weight, targets)
        return figures(taken, tokens=tokens, error=abs(work().item() / exact - 1))
    finally:
        losses.compile_chunks(wanted=False)


def _exact_loss(hidden: Any, weight: Any, targets: Any) -> float:
    total = 0.0
    with torch.no_grad():
        for start in range(0, len(targets), 2048):
            part = slice(start, start + 2048)
            logits = hidden[part].float() @ weight.float().T
            total += torch.nn.functional.cross_entropy(logits, targets[part], reduction="sum").item()
    return total / len(targets)


def layers(name: str, sizes: Sizes, batch: Batch) -> dict[str, Any]:
    """Measure a model, forward and backward, without an optimizer."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    clean(device())
    if name.startswith("liger"):
        from liger_kernel.transformers import apply_liger_kernel_to_qwen2

        apply_liger_kernel_to_qwen2(cross_entropy=False, fused_linear_cross_entropy=False)
    shape, kind = load_model_shape(sizes.model), "sdpa" if sizes.tiny else "varlen"
    values: dict[str, Any] = {
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_hidden_layers,
        "num_attention_heads": shape.num_attention_heads,
        "num_key_value_heads": shape.num_key_value_heads,
        "vocab_size": shape.vocab_size,
        "use_cache": False,
        "attn_implementation": implementation(kind),
    }
    with torch.device(device()):
        model: Any = Qwen2ForCausalLM(Qwen2Config(**values)).train()
    model = model if sizes.tiny else model.bfloat16()
    if name in ("lean kernels", "compiled layers"):
        use_lean_kernels(model)
    if name == "compiled layers":
        use_lean_rotation(model, wanted=False)
        for layer in model.model.layers:
            layer.compile()
    head = losses.LossHead(model, "chunked")
    inputs = inputs_for(batch, kind, model.dtype)

    def work() -> None:
        (head.loss(model, inputs, batch["targets"], batch["chosen"]) / batch["tokens"]).backward()
        for parameter in model.parameters():
            parameter.grad = None

    with nullcontext() if name == "lean kernels" else stock_kernels():
        taken = seconds(work)
    return figures(taken, tokens_per_second=round(batch["tokens"] / taken))
