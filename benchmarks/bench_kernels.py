"""The loss and one forward and backward of Qwen-1.8B, with each set of kernels, on one GPU and without an optimizer.

    python benchmarks/bench_kernels.py

16,384 tokens in packed rows of 2,048, bf16. Each line is the median of five after two to warm up, timed by the GPU's
events. The error of a loss is against float32. Without a GPU small sizes show only that the script runs.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks import train_runs
from qwen_job.train import loss as losses
from qwen_job.train.attention import implementation
from qwen_job.train.kernels import stock_kernels, use_lean_kernels

GPU = train_runs.on_gpu()
DEVICE = "cuda" if GPU else "cpu"
TOKENS, ROW, HIDDEN, WORDS = (16384, 2048, 2048, 151936) if GPU else (256, 64, 64, 2048)


def main() -> None:
    """Print both tables."""
    print(f"{train_runs.device_name()}\n\n| loss over {TOKENS} tokens | time | peak | error |\n|---|---|---|---|")
    losses_table()
    print("\n| forward and backward | time | peak | tokens/s |\n|---|---|---|---|")
    for name in ("stock formulas", "lean kernels", "compiled layers", "liger's kernels"):
        print(f"| {name} | {line(lambda name=name: model_line(name))} |", flush=True)


def losses_table() -> None:
    """Print a line for every loss kernel."""
    torch.manual_seed(0)
    hidden = torch.randn(TOKENS, HIDDEN, device=DEVICE, dtype=torch.bfloat16, requires_grad=True)
    weight = (torch.randn(WORDS, HIDDEN, device=DEVICE, dtype=torch.bfloat16) * 0.02).requires_grad_()
    numbers = (hidden, weight, torch.randint(0, WORDS, (TOKENS,), device=DEVICE))
    exact = exact_loss(*numbers)
    kinds = ["none", "chunked", "chunked, compiled", "torch", "liger"]
    for kind in kinds if hasattr(torch.nn, "LinearCrossEntropyOptions") else [*kinds[:3], "liger"]:
        print(f"| {kind} | {line(lambda kind=kind: loss_line(kind, *numbers, exact))} |", flush=True)


def line(measure: Callable[[], str]) -> str:
    """Return what ``measure`` says, or why it cannot."""
    if GPU:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    try:
        return measure()
    except (ImportError, RuntimeError) as error:
        return f"failed: {' '.join(str(error).split())[:90]} | | "


def seconds(work: Callable[[], object]) -> float:
    """Return the median time of five runs."""
    times = []
    for number in range(7):
        started = time.perf_counter()
        if GPU:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            work()
            end.record()
            torch.cuda.synchronize()
            taken = begin.elapsed_time(end) / 1000
        else:
            work()
            taken = time.perf_counter() - started
        times += [taken] if number >= 2 else []
    return train_runs.median(times)


def peak() -> str:
    """Return the most memory that was allocated since the line began."""
    return f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB" if GPU else ""


def exact_loss(hidden: Any, weight: Any, targets: Any) -> float:
    """Return the mean loss in float32."""
    total = 0.0
    with torch.no_grad():
        for start in range(0, TOKENS, 2048):
            part = slice(start, start + 2048)
            logits = hidden[part].float() @ weight.float().T
            total += torch.nn.functional.cross_entropy(logits, targets[part], reduction="sum").item()
    return total / TOKENS


def loss_line(kind: str, hidden: Any, weight: Any, targets: Any, exact: float) -> str:
    """Measure one loss kernel, forward and backward."""
    plain_step = losses._chunk_step
    if kind.endswith("compiled"):
        losses.compile_chunks()
    chosen = losses.fused_loss(kind.partition(",")[0])

    def work() -> Any:
        hidden.grad = weight.grad = None
        loss = chosen(hidden, weight, targets) / TOKENS
        loss.backward()
        return loss

    try:
        taken = seconds(work)
        return f"{taken * 1000:.1f} ms | {peak()} | {abs(work().item() / exact - 1):.1e}"
    finally:
        losses._chunk_step = plain_step


def model_line(name: str) -> str:
    """Measure one model, forward and backward."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    if name.startswith("liger"):
        from liger_kernel.transformers import apply_liger_kernel_to_qwen2

        apply_liger_kernel_to_qwen2(cross_entropy=False, fused_linear_cross_entropy=False)
    sizes = train_runs.BIG if GPU else train_runs.SMALL
    kind = "varlen" if GPU else "sdpa"
    config = Qwen2Config(
        **sizes,
        num_key_value_heads=sizes["num_attention_heads"],
        vocab_size=WORDS,
        use_cache=False,
        attn_implementation=implementation(kind),
    )
    with torch.device(DEVICE):
        model = Qwen2ForCausalLM(config).bfloat16().train()
    if name in ("lean kernels", "compiled layers"):
        use_lean_kernels(model, compiled=name == "compiled layers")
    if name == "compiled layers":
        for layer in model.model.layers:
            layer.compile()
    head = losses.LossHead(model, "chunked")
    inputs, targets, chosen = batch()

    def work() -> None:
        (head.loss(model, inputs, targets, chosen) / TOKENS).backward()
        for parameter in model.parameters():
            parameter.grad = None

    with nullcontext() if name == "lean kernels" else stock_kernels():
        taken = seconds(work)
    return f"{taken * 1000:.0f} ms | {peak()} | {TOKENS / taken:,.0f}"


def batch() -> tuple[dict[str, Any], Any, Any]:
    """Return packed rows of documents of 64 to 600 tokens as the model's inputs, targets and their positions."""
    draw = torch.Generator().manual_seed(1)
    lengths = []
    for _ in range(TOKENS // ROW):
        left = ROW
        while left:
            lengths.append(min(left, int(torch.randint(ROW // 32, ROW // 3, (1,), generator=draw))))
            left -= lengths[-1]
    ids = torch.randint(0, WORDS, (1, TOKENS), generator=draw).to(DEVICE)
    positions = torch.cat([torch.arange(length) for length in lengths])[None].to(DEVICE)
    inputs = {"input_ids": ids, "position_ids": positions}
    if GPU:
        ends = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32).to(DEVICE)
        inputs |= {"cu_seq_lens_q": ends, "max_length_q": ROW}
    return inputs, ids.roll(-1), torch.arange(TOKENS - 1, device=DEVICE)


if __name__ == "__main__":
    main()
