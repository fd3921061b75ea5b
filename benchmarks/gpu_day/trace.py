"""What a profile of one step says: milliseconds by kind of kernel, and the gaps in which the GPU had no work.

Reads the Chrome trace that torch.profiler writes; times in it are microseconds.
"""

from __future__ import annotations

import gzip
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

# The first that matches a kernel's name, from the most particular to the most general.
KINDS = {
    "attention": r"flash|fmha|attention|pytorch_flash",
    "matrix products": r"gemm|nvjet|cutlass|cublas|splitk|xmma|wgmma",
    "optimizer": r"adam|lamb",
    "gradient norm, foreach": r"multi_tensor|foreach",
    "compiled (Triton)": r"^triton_",
    "norm": r"norm",
    "softmax and loss": r"softmax|nll|cross_entropy|logsumexp",
    "embedding and index": r"embedding|index|gather|scatter|sort|radix|cub::",
    "communication": r"nccl",
    "copies and casts": r"memcpy|memset|copy|catarray|cat_|fill|direct_copy",
    "reductions": r"reduce",
    "elementwise": r"elementwise|vectorized|unrolled",
}
_PATTERNS = {kind: re.compile(pattern, re.IGNORECASE) for kind, pattern in KINDS.items()}
GPU_CATEGORIES = frozenset({"kernel", "gpu_memcpy", "gpu_memset"})
GAP_MICROSECONDS = 50.0
_MOST_GAPS = 15


class Span(NamedTuple):
    """One event, in microseconds."""

    name: str
    start: float
    end: float


class Trace(NamedTuple):
    """The events of a GPU and of the CPU's operators, both sorted by their start."""

    gpu: list[Span]
    cpu: list[Span]


def read(path: Path) -> Trace:
    """Read a Chrome trace, gzipped or not."""
    content = path.read_bytes()
    return from_events(json.loads(gzip.decompress(content) if path.suffix == ".gz" else content)["traceEvents"])


def from_events(events: Iterable[Mapping[str, Any]]) -> Trace:
    """Sort the complete events of a trace by where they ran."""
    gpu, cpu = [], []
    for event in events:
        if event.get("ph") != "X":
            continue
        span = Span(str(event["name"]), float(event["ts"]), float(event["ts"]) + float(event.get("dur", 0)))
        if event.get("cat") in GPU_CATEGORIES:
            gpu.append(span)
        elif event.get("cat") in ("cpu_op", "cuda_runtime", "cuda_driver", "user_annotation"):
            cpu.append(span)
    return Trace(sorted(gpu, key=lambda span: span.start), sorted(cpu, key=lambda span: span.start))


def kind_of(name: str) -> str:
    """Return the kind of a kernel by its name."""
    return next((kind for kind, pattern in _PATTERNS.items() if pattern.search(name)), "other")


def summary(trace: Trace) -> dict[str, Any]:
    """Return the step's milliseconds: busy, idle, by kind, the largest kernels, and the largest gaps."""
    if not trace.gpu:
        return {"kernels": 0, "cpu_ms": round(_length(trace.cpu) / 1000, 2)}
    by_kind: dict[str, float] = defaultdict(float)
    by_name: dict[str, list[float]] = defaultdict(list)
    for span in trace.gpu:
        by_kind[kind_of(span.name)] += span.end - span.start
        by_name[span.name].append(span.end - span.start)
    gaps = list(gaps_of(trace.gpu))
    long = sorted((gap for gap in gaps if gap.end - gap.start > GAP_MICROSECONDS), key=lambda gap: gap.start - gap.end)
    return {
        "kernels": len(trace.gpu),
        "gpu_ms": _ms(_length(trace.gpu)),
        "idle_ms": _ms(sum(gap.end - gap.start for gap in gaps)),
        "by_kind_ms": {kind: _ms(by_kind[kind]) for kind in sorted(by_kind, key=lambda kind: -by_kind[kind])},
        "largest": [
            {"kernel": name[:120], "calls": len(times), "ms": _ms(sum(times))}
            for name, times in sorted(by_name.items(), key=lambda item: -sum(item[1]))[:25]
        ],
        "long_gaps": len(long),
        "long_gaps_ms": _ms(sum(gap.end - gap.start for gap in long)),
        "gaps": [
            {
                "at_ms": _ms(gap.start - trace.gpu[0].start),
                "ms": _ms(gap.end - gap.start),
                "after": gap.name[:60],
                "cpu": above(trace.cpu, gap),
            }
            for gap in long[:_MOST_GAPS]
        ],
    }


def gaps_of(gpu: Sequence[Span]) -> Iterable[Span]:
    """Yield the times at which no kernel ran, named after the kernel that ended before; streams may overlap."""
    last = gpu[0]
    for span in gpu[1:]:
        if span.start > last.end:
            yield Span(last.name, last.end, span.start)
        if span.end > last.end:
            last = span


def above(cpu: Sequence[Span], gap: Span) -> str:
    """Return what the CPU spent most of a gap in: the operator that overlaps it most, the shorter one if equal."""
    best, most = "Python", 0.0
    for span in cpu:
        if span.start >= gap.end:
            break
        overlap = min(span.end, gap.end) - max(span.start, gap.start)
        # An operator around all of it says nothing; the innermost that still covers it does.
        if overlap > 0 and overlap >= most:
            best, most = span.name, overlap
    return best[:80]


def _length(spans: Sequence[Span]) -> float:
    return max((span.end for span in spans), default=0.0) - min((span.start for span in spans), default=0.0)


def _ms(microseconds: float) -> float:
    return round(microseconds / 1000, 3)
